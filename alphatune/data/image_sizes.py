"""How large images are before they are resized, by a few of them: where a header says it, nothing is decoded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from alphatune.data.examples import Examples
from alphatune.data.pixel_limit import open_header, pil_limit, usual_limit

#: images that are looked at, from everywhere in the data; of a stream the first few
LOOKED_AT, OF_A_STREAM = 32, 8

Size = tuple[int, int]


def image_sizes(examples: Examples) -> list[Size]:
    """Height and width of a few images; those that cannot be read, or whose format is not known, are left out."""
    found = []
    for source in _few(examples):
        with contextlib.suppress(Exception):  # whoever reads all images says what is wrong with which
            found.append(_size(source))
    return found


def _few(examples: Examples) -> Iterator[Any]:
    if examples.load is None:
        stream: Any = examples.stream
        with contextlib.suppress(Exception):
            yield from (image for image, _ in islice(stream(), OF_A_STREAM))
        return
    most = usual_limit() if examples.max_pixels is None else examples.max_pixels
    for position in np.linspace(0, len(examples) - 1, min(LOOKED_AT, len(examples))).astype(np.int64):
        # A data set may open its images by itself.
        with contextlib.suppress(Exception), pil_limit(most, quiet=True):
            yield examples.load(int(examples.indices[position]))[0]


def _size(source: Any) -> Size:
    if isinstance(source, Image.Image):
        return source.height, source.width
    try:
        with open_header(io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source) as image:
            return image.height, image.width
    finally:
        if hasattr(source, "close"):
            source.close()
