"""SIGINT, SIGTERM and SIGHUP as exceptions that reach the command, wherever they find it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from alphatune.cli.stderr import tell
from alphatune.core.errors import AlphatuneError, one_line

#: seconds between two looks at whether the exception that a signal raises is on its way
_LOOK = 0.05
#: seconds that a signal waits at most for an import to end: torch and numpy break if an exception interrupts theirs
_IMPORT = 3.0
#: seconds after which a second signal is a new request: before that, it may be torchrun passing the first one on
_SAME_WISH = 1.0
#: seconds in which a command has to be through with ending, and after a second signal: workers that are slow to leave,
#: or somebody's own clean-up, may take any time
_PATIENCE, _NO_PATIENCE = 6.0, 1.0


class Terminated(BaseException):
    """SIGTERM or SIGHUP, on its way up through every ``finally``, as KeyboardInterrupt is for SIGINT."""

    number = int(signal.SIGTERM)


class HungUp(Terminated):
    """SIGHUP: the terminal, or the connection to it, is gone."""

    number = 1


@contextmanager
def signals_raised(
    verbose: bool = False,
    *,
    heard: Callable[[], None] = lambda: None,
    end: Callable[[type[BaseException]], None] = lambda _: None,
) -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise an exception, and where it is dropped it is raised again.

    A signal that is ignored stays so, as SIGHUP is under nohup and SIGINT in a shell's background job.

    Python drops what is raised in ``__del__``, in a weak reference's callback or in a hook around fork ("Exception
    ignored in"), and so does a library in C or a model's own ``except:``. A loader that starts its workers spends so
    much of its time there that some Ctrl-C had no effect. So an alarm looks from time to time whether the exception is
    being handled, and raises it again if it is not. Any other exception that Python drops is told in one line.

    Args:
        verbose: tell it as Python does, with its traceback.
        heard: called at the first signal, inside its handler.
        end: called, with what was raised, where the block has not ended in time.
    """
    process, report = os.getpid(), sys.unraisablehook
    before: dict[int, Any] = {}
    wanted: list[tuple[type[BaseException], float]] = []  # one, once a signal has come
    deadline = float("inf")

    def handle(number: int, handler: Any) -> None:
        before.setdefault(number, signal.getsignal(number) or signal.SIG_DFL)
        signal.signal(number, handler)

    def raises(error: type[BaseException]) -> Callable[[int, FrameType | None], None]:
        def receive(number: int, frame: FrameType | None) -> None:
            nonlocal deadline
            if os.getpid() != process:
                # A process that was forked this moment, before it has handlers of its own, must not end this command.
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            if not wanted:
                heard()
            if not hasattr(signal, "setitimer"):  # on Windows
                raise error
            if wanted and time.monotonic() - wanted[0][1] > _SAME_WISH:  # whatever is being put in order
                deadline = min(deadline, time.monotonic() + _NO_PATIENCE)
                raise error
            if not wanted:  # the first of several is the one that is obeyed
                deadline = time.monotonic() + _PATIENCE
                wanted.append((error, time.monotonic()))
                # torch raises where a worker process died, as they do when a whole group of processes gets the signal.
                # Not undone: the process is about to end.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                handle(signal.SIGALRM, look)
                signal.setitimer(signal.ITIMER_REAL, _LOOK, _LOOK)
            look(number, frame)

        return receive

    def look(_number: int, frame: FrameType | None) -> None:
        for error, since in wanted:
            if os.getpid() == process and time.monotonic() > deadline:
                signal.setitimer(signal.ITIMER_REAL, 0)  # or it would interrupt the end
                end(error)
            waiting = time.monotonic() - since < _IMPORT and _imports(frame)
            if os.getpid() == process and not waiting and not _is_handled(error):
                raise error

    def tell_dropped(unraisable: sys.UnraisableHookArgs) -> None:
        with suppress(KeyboardInterrupt, Terminated):  # they come again
            if verbose and not isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
                report(unraisable)
            elif not wanted:  # what follows a signal comes of it, as of a loader that it had not let begin
                _report_shortly(unraisable)

    for name, error in {"SIGINT": KeyboardInterrupt, "SIGTERM": Terminated, "SIGHUP": HungUp}.items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            handle(number, raises(error))
    if hasattr(signal, "setitimer"):  # otherwise what is dropped does not come again
        sys.unraisablehook = tell_dropped
    try:
        yield
        for error, _ in wanted:
            raise error
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as failure:
        # Somebody's code makes of the signal whatever error it likes. One of ours that knows of it is meant: a process
        # that is gone is why torchrun ends this one.
        for signalled, _ in wanted:
            if not (isinstance(failure, AlphatuneError) and isinstance(failure.__context__, signalled)):
                raise signalled from None
        raise
    finally:
        sys.unraisablehook = report
        alarm = getattr(signal, "SIGALRM", None)
        for number, handler in list(before.items()):
            if number != alarm:
                signal.signal(number, handler)
        if alarm in before:  # no signal can start it any more
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(alarm, before[alarm])


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Inside, no second signal cuts short the line that says why the command ends, nor the end of its workers."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [(number, signal.signal(number, signal.SIG_IGN) or signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _is_handled(error: type[BaseException]) -> bool:
    """Whether such an exception is on its way: a ``finally``, ``except`` or ``__exit__`` that it has reached runs."""
    found = sys.exc_info()[1]
    while found is not None:
        if isinstance(found, error):
            return True
        found = found.__context__
    return False


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
