"""Other people's progress bars and remarks, kept off a stderr that is no terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_LIBRARIES = ("datasets", "huggingface_hub", "webdataset", "timm", "fsspec", "httpx")


@contextmanager
def silenced() -> Iterator[None]:
    """Silence libraries that fetch and convert data; their errors are still raised.

    Bars are left where somebody sees them. What the libraries log is for those who wrote the
    calls, and what matters of it is an error or a remark of ours.
    """
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in _LIBRARIES:
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if sys.stderr is None or not sys.stderr.isatty():
            for switch in _bars():
                if not switch.are_progress_bars_disabled():
                    switch.disable_progress_bars()
                    undo.callback(switch.enable_progress_bars)
        yield


def _bars() -> list[Any]:
    """What switches the bars of the libraries that are in use."""
    return [sys.modules[name] for name in ("huggingface_hub.utils", "datasets") if name in sys.modules]
