"""Figures cost more than half of a short run: outside the tests of them, a blank one is written for each.

They are still painted, so that a result which cannot be painted fails; what is spared is the rendering.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from matplotlib.figure import Figure

RENDER = Figure.savefig


@contextlib.contextmanager
def blank_figures() -> Iterator[None]:
    """Whatever is saved is a blank figure of the format asked for."""
    with patch.object(Figure, "savefig", _save):
        yield


def _save(_: Figure, file: Any, *, format: str = "png", **options: Any) -> None:
    blank = _blank(format)
    if isinstance(file, io.StringIO):
        file.write(blank.decode())
    elif isinstance(file, io.BytesIO):
        file.write(blank)
    else:
        file.write_bytes(blank)


@functools.cache
def _blank(format: str) -> bytes:
    stream = io.BytesIO()
    RENDER(Figure(figsize=(1, 1)), stream, format=format)
    return stream.getvalue()
