"""SIGINT, SIGTERM and SIGHUP as exceptions that reach the command, wherever they find it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from alphatune.cli.stderr import tell
from alphatune.errors import one_line

#: seconds until a lost exception is raised again: long enough to have left the place where it was lost
_LATER = 0.01


class Terminated(BaseException):
    """SIGTERM or SIGHUP, on its way up through every ``finally``, as KeyboardInterrupt is for SIGINT."""

    number = int(signal.SIGTERM)


class HungUp(Terminated):
    """SIGHUP: the terminal, or the connection to it, is gone."""

    number = 1


@contextmanager
def signals_raised(verbose: bool = False) -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated``, and where Python drops it or KeyboardInterrupt it is raised again.

    SIGHUP raises ``HungUp``, unless it is ignored, as under nohup.

    Python drops what is raised in ``__del__``, in a weak reference's callback or in a hook around fork ("Exception
    ignored in"). A loader that starts its workers spends so much of its time there that some Ctrl-C had no effect.
    Any other exception that is dropped there is told in one line.

    Args:
        verbose: tell it as Python does, with its traceback.
    """
    process, report = os.getpid(), sys.unraisablehook
    before: dict[int, Any] = {}

    def handle(number: int, handler: Any) -> None:
        before.setdefault(number, signal.getsignal(number) or signal.SIG_DFL)
        signal.signal(number, handler)

    def ending() -> None:
        # torch raises where a worker process died, as they do when a whole group of processes gets the signal.
        if hasattr(signal, "SIGCHLD"):
            handle(signal.SIGCHLD, signal.SIG_DFL)

    def terminate(_number: int, _frame: FrameType | None) -> None:
        ending()
        raise Terminated

    def hang_up(_number: int, _frame: FrameType | None) -> None:
        ending()
        raise HungUp

    def raise_soon(error: type[BaseException]) -> None:
        def raise_it(_number: int, _frame: FrameType | None) -> None:
            raise error

        if os.getpid() == process:  # an alarm, as only a signal interrupts whatever the command does by then
            handle(signal.SIGALRM, raise_it)
            signal.setitimer(signal.ITIMER_REAL, _LATER)

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        try:
            if isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
                raise_soon(type(unraisable.exc_value))
            else:
                report(unraisable) if verbose else _report_shortly(unraisable)
        except (KeyboardInterrupt, Terminated) as late:
            raise_soon(type(late))

    handle(signal.SIGTERM, terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handle(signal.SIGHUP, hang_up)
    try:
        if hasattr(signal, "setitimer"):  # not on Windows
            sys.unraisablehook = keep
        yield
    finally:
        sys.unraisablehook = report
        if getattr(signal, "SIGALRM", None) in before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _report_shortly(unraisable: sys.UnraisableHookArgs) -> None:
    """One line, as errors have that end a command.

    Such an exception may be nobody's fault: one that a worker's death raises while a thread is being started makes
    ``threading`` stumble in that thread.
    """
    where = f"{unraisable.err_msg or 'Exception ignored in'} {_text(repr, unraisable.object)}"
    what = f"{unraisable.exc_type.__name__}: {_text(str, unraisable.exc_value)}"
    tell(f"warning: {where[:1].lower()}{where[1:]}: {what} (-v shows the traceback)")


def _text(convert: Callable[[object], str], value: object) -> str:
    try:
        return one_line(convert(value), 200)
    except Exception:  # somebody's __repr__ or __str__ may raise anything
        return f"<{type(value).__name__}>"
