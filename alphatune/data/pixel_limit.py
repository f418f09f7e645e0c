"""How large an image may be that is read: a small file can unpack to more pixels than memory holds.

PIL has such a limit for the whole process, which it warns of at one half. Here each run has one of its own, that is
looked at before anything is decoded, whatever decodes; what PIL had is put back.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from alphatune.core.errors import DataError


class TooLargeError(DataError):
    """An image has more pixels than are read."""


def usual_limit() -> int | None:
    """Where PIL would refuse, as the caller has set it; None: nowhere."""
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def check_size(image: Image.Image, most: int | None) -> None:
    """Refuse an image, of which the header is enough.

    Raises:
        TooLargeError: it has more pixels than that.
    """
    pixels = image.width * image.height
    if most is not None and pixels > most:
        raise TooLargeError(
            f"{image.width} × {image.height} are {pixels} pixels, more than {most}",
            f"`max_pixels={pixels}` reads it, if memory holds it; or scale it down",
        )


def check_encoded(encoded: bytes, most: int | None) -> None:
    """``check_size`` of what another decoder is to read; where PIL knows no size, that decoder is left alone.

    Raises:
        TooLargeError: it has more pixels than that.
    """
    if most is None:
        return
    try:
        image = open_header(io.BytesIO(encoded))
    except Exception:  # plugins have errors of their own
        return
    with image:
        check_size(image, most)


def open_header(source: Any) -> Image.Image:
    """``Image.open`` of any size; the pixels are not decoded yet."""
    with pil_limit(None):
        return Image.open(source)


@contextmanager
def pil_limit(most: int | None, *, quiet: bool = False) -> Iterator[None]:
    """PIL's limit, for a while: where it warns; it refuses at the double.

    Args:
        quiet: without the warnings, for code that opens images by itself.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most
    try:
        if not quiet:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
