"""SIGINT and SIGTERM as exceptions that reach the command, wherever they find it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from alphatune.errors import one_line

#: seconds until a lost exception is raised again: long enough to have left the place where it was lost
_LATER = 0.01


class Terminated(BaseException):
    """SIGTERM, on its way up through every ``finally``, as KeyboardInterrupt is for SIGINT."""


@contextmanager
def signals_raised(verbose: bool = False) -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated``, and neither it nor KeyboardInterrupt can be lost.

    Python drops what is raised in ``__del__``, in a weak reference's callback or in a hook around fork ("Exception
    ignored in"). A loader that starts its workers spends so much of its time there that some Ctrl-C had no effect.
    Any other exception that is dropped there is told in one line.

    Args:
        verbose: tell it as Python does, with its traceback.
    """
    process, report = os.getpid(), sys.unraisablehook
    lost: list[type[BaseException]] = []

    def raise_lost(_number: int, _frame: FrameType | None) -> None:
        if lost:
            error = lost[0]
            lost.clear()
            raise error

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not isinstance(error, KeyboardInterrupt | Terminated):
            report(unraisable) if verbose else _report_shortly(unraisable)
        elif os.getpid() == process:
            if not lost:  # an alarm, as only a signal interrupts whatever the command does by then
                signal.setitimer(signal.ITIMER_REAL, _LATER)
            lost.append(type(error))

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    handlers = {signal.SIGTERM: terminate}
    if has_alarm := hasattr(signal, "setitimer"):  # not on Windows
        handlers[signal.SIGALRM] = raise_lost
        sys.unraisablehook = keep
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        sys.unraisablehook = report
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _report_shortly(unraisable: sys.UnraisableHookArgs) -> None:
    """One line, as errors have that end a command.

    Such an exception may be nobody's fault: one that a worker's death raises while a thread is being started makes
    ``threading`` stumble in that thread.
    """
    where = one_line(f"{unraisable.err_msg or 'Exception ignored in'} {unraisable.object!r}", 200)
    what = f"{unraisable.exc_type.__name__}: {one_line(unraisable.exc_value)}"
    print(f"warning: {where[:1].lower()}{where[1:]}: {what} (-v shows the traceback)", file=sys.stderr)
