"""SIGINT, SIGTERM and SIGHUP wait until the step they fall into is done and saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: a signal that follows another so soon is the same wish: torchrun passes on
#: to its processes what the terminal has sent them already
SAME_WISH_SECONDS = 1.0


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal has come; it is delivered on leaving the block.

    A second signal, a second later or more, does what it would have done
    without the block. A signal that is ignored, as SIGINT is in a shell's
    background job, stays ignored.
    """
    received: list[tuple[int, float]] = []
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
        if received and time.monotonic() - received[0][1] > SAME_WISH_SECONDS:
            restore()
            signal.raise_signal(number)
        received.append((number, time.monotonic()))

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return
    for number in before:
        signal.signal(number, receive)
    try:
        yield lambda: bool(received)
    finally:
        restore()
    if received:
        signal.raise_signal(received[0][0])
