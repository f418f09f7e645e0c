"""Figures cost half of a short run: outside the tests of them, and slow tests, a blank one stands for each."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from alphatune.reports.figures import canvas

RENDER = canvas.render


@contextlib.contextmanager
def blank_figures() -> Iterator[None]:
    """Whatever is drawn is blank."""
    with patch.object(canvas, "render", _render):
        yield


def _render(*_: Any) -> tuple[str, bytes]:
    return _blank()


@functools.cache
def _blank() -> tuple[str, bytes]:
    return RENDER(lambda _: None, 1, 1)
