"""Pixels of more than 8 bits: scaled to 8, or refused by name, and never clipped to white as PIL does.

PIL itself drops the low byte of 16-bit colour; of grey it hands out all the bits.
"""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alphatune.core.errors import DataError
from alphatune.data.pixel_limit import open_header

if TYPE_CHECKING:
    from alphatune.data.examples import Examples

_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
_ALL, _SOME = 1000, 200  # so many images are looked at each, of more so many


def to_eight_bits(image: Image.Image) -> Image.Image:
    """The image, or one of mode L where its pixels have more than 8 bits.

    16 bits are shifted (value >> 8), 12 bits by 4, floats in [0, 1] multiplied by 255.

    Raises:
        DataError: signed or 32-bit integers, floats outside [0, 1], or colour that PIL misreads.
    """
    tags = getattr(image, "tag_v2", {})
    bits = max(_numbers(tags, _BITS, 16))
    if 2 in _numbers(tags, _SAMPLE_FORMAT, 1) or (image.format == "FITS" and image.mode.startswith("I")):
        raise _refused("signed integers")
    if (
        bits > 8
        and image.mode not in ("I", "F")
        and 2 in _numbers(tags, _PLANAR, 1)
        and len(image.getbands()) > 1
    ):
        raise _refused(f"{bits} bits in separate planes")
    if image.mode == "F":
        pixels = scale_to_eight_bits(np.asarray(image))
    elif image.mode.startswith("I"):
        if tags and bits > 16:
            raise _refused(f"{bits}-bit integers")
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise _refused(f"integers from {values.min()} to {values.max()}")
        pixels = (values >> (bits - 8)).astype(np.uint8)
    else:
        return image
    white_is_zero = tags and 0 in _numbers(tags, _PHOTOMETRIC, 1)  # PIL turns 8 bits, and no more
    return Image.fromarray(255 - pixels if white_is_zero else pixels)


def scale_to_eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats in [0, 1] × 255, rounded.

    Raises:
        DataError: others.
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # neither is NaN
        raise _refused(f"floats from {low:g} to {high:g}")
    scaled: NDArray[np.uint8] = np.rint(values.astype(np.float32) * 255).astype(np.uint8)
    return scaled


def depth_warning(examples: Examples) -> tuple[str, ...]:
    """What is scaled to 8 bits, by the headers of some of the images, evenly spread."""
    if not getattr(examples.load, "encoded", False):
        return ()
    count = len(examples) if len(examples) <= _ALL else _SOME
    chosen = np.linspace(0, len(examples) - 1, count).astype(np.int64)
    found = Counter(kind for index in examples.indices[chosen] if (kind := _kind(examples, int(index))))
    of = f"of {count} images" + (" looked at" if count < len(examples) else "")
    return tuple(f"{what} in {n} {of}: {done} (in {examples.source})" for (what, done), n in found.items())


def _kind(examples: Examples, index: int) -> tuple[str, str] | None:
    """What an image has and what is done to it, by its header; None where that cannot be read, which a pass names."""
    source: Any = None
    try:
        source, _ = examples.load(index)  # type: ignore[misc]
        with open_header(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _depth(image)
    except Exception:
        return None
    finally:
        if hasattr(source, "close"):
            source.close()


def _depth(image: Image.Image) -> tuple[str, str] | None:
    if image.mode == "F":
        return "floats", "scaled to 8 bits (value × 255)"
    bits = max(_numbers(getattr(image, "tag_v2", {}), _BITS, 16))
    tiles = getattr(image, "tile", None)
    raw = str(tiles[0][3]) if tiles else ""  # how the bytes are unpacked
    if image.mode.startswith("I") or ";16" in raw:
        return f"{bits} bits a channel", f"scaled to 8 (value >> {bits - 8})"
    return None


def _numbers(tags: Any, tag: int, default: int) -> tuple[int, ...]:
    found = tags.get(tag, default)
    return found if isinstance(found, tuple) else (found,)


def _refused(what: str) -> DataError:
    return DataError(
        f"expected pixels of 8 or 16 bits, or floats in [0, 1]; got {what}", "convert them to 8 bits"
    )
