"""SIGINT, SIGTERM and SIGHUP wait until the step they fall into is done and saved."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: a signal that follows another so soon is the same wish: torchrun passes on
#: to its processes what the terminal has sent them already
SAME_WISH_SECONDS = 1.0


class Stopped(BaseException):
    """A signal came where nothing has to be finished first."""


class DeferredSignals:
    """Says whether a signal has come."""

    def __init__(self) -> None:
        self.received: list[tuple[int, float]] = []
        self._waits = False

    def __call__(self) -> bool:
        return bool(self.received)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a signal raises ``Stopped`` at once; one that Python drops shows in the next call."""
        self._waits = True
        try:
            self._raise_if_waiting()
            yield
            self._raise_if_waiting()
        finally:
            self._waits = False

    def receive(self, number: int) -> None:
        self.received.append((number, time.monotonic()))
        self._raise_if_waiting()

    def _raise_if_waiting(self) -> None:
        if self.received and self._waits:
            raise Stopped


@contextmanager
def deferred_signals(heard: Callable[[], None] = lambda: None) -> Iterator[DeferredSignals]:
    """Yield what says whether a signal has come; it is delivered on leaving the block.

    A second signal, a second later or more, does what it would have done
    without the block. A signal that is ignored, as SIGINT is in a shell's
    background job, stays ignored.

    Args:
        heard: called at the first signal, inside its handler.
    """
    deferred, report = DeferredSignals(), sys.unraisablehook
    before = {
        number: signal.getsignal(number)
        for name in ("SIGINT", "SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
        and signal.getsignal(number) is not signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, _frame: FrameType | None) -> None:
        first = deferred.received[:1]
        if first and time.monotonic() - first[0][1] > SAME_WISH_SECONDS:
            restore()
            signal.raise_signal(number)
        if not first:
            heard()
            sys.unraisablehook = lambda _: None  # what is dropped from now on comes of ``Stopped``
        deferred.receive(number)

    if threading.current_thread() is not threading.main_thread():
        yield deferred  # only the main thread may handle signals
        return
    for number in before:
        signal.signal(number, receive)
    try:
        yield deferred
    finally:
        sys.unraisablehook = report
        restore()
    if deferred.received:
        signal.raise_signal(deferred.received[0][0])
