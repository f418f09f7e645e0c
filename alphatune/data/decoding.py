"""From the bytes of an image to its pixels: by PIL, or by torchcodec.

Two decoders need not agree on every pixel, and do not turn the same images
upright: one run has one decoder, which its result names.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from alphatune.core.errors import ConfigurationError, one_line
from alphatune.core.extras import install_line
from alphatune.data.bit_depth import to_eight_bits
from alphatune.data.pixel_limit import check_encoded, check_size, open_header, pil_limit, usual_limit

DECODERS = ("pil", "torchcodec")

_TORCHCODEC_MODES = {"RGB": "RGB", "L": "GRAY"}


def decoder_version(decoder: str) -> str:
    """The decoder as a result names it; raises ConfigurationError if there is none of that name here."""
    if decoder not in DECODERS:
        raise ConfigurationError(f"unknown decoder {decoder!r}", f"one of: {', '.join(DECODERS)}")
    if decoder == "pil":
        return f"PIL {PIL.__version__}"
    _decode_image()
    import torchcodec

    return f"torchcodec {torchcodec.__version__}"


def read_image(
    source: Any, image_mode: str, decoder: str = "pil", max_pixels: int | None = None
) -> Image.Image:
    """Decode fully and convert, more than 8 bits to 8; raises OSError and its kin on a broken file.

    Args:
        max_pixels: of an image that is read; None: PIL's own limit.

    Raises:
        TooLargeError: it has more; nothing was decoded.
    """
    most = usual_limit() if max_pixels is None else max_pixels
    if isinstance(source, Image.Image):
        check_size(source, most)
        return to_eight_bits(source).convert(image_mode)
    try:
        if decoder == "torchcodec":
            encoded = _bytes_of(source)
            check_encoded(encoded, most)
            return _by_torchcodec(encoded, image_mode)
        if isinstance(source, (bytes, bytearray)):
            source = io.BytesIO(source)
        with open_header(source) as image, pil_limit(most):
            check_size(image, most)
            return to_eight_bits(image).convert(image_mode)
    finally:
        if hasattr(source, "close"):
            source.close()


def _by_torchcodec(encoded: bytes, image_mode: str) -> Image.Image:
    """A PIL image again, because timm resizes those and tensors in different ways."""
    if not encoded:
        raise OSError("the file is empty")
    pixels = _decode_image()(encoded, mode=_TORCHCODEC_MODES[image_mode])
    if pixels.ndim == 4:  # an animation: its first frame, as PIL opens it
        pixels = pixels[0]
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if image_mode == "L" else array)


def _bytes_of(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    if hasattr(source, "read"):
        return bytes(source.read())
    return Path(source).read_bytes()


def _decode_image() -> Any:
    try:
        from torchcodec.decoders import decode_image
    except ImportError:  # also a version before 0.16, which has no such function
        raise ConfigurationError(
            "`decoder=torchcodec` needs the package torchcodec, 0.16 or newer",
            install_line("torchcodec"),
        ) from None
    except (OSError, RuntimeError) as error:  # built for another torch
        raise ConfigurationError(
            f"torchcodec does not load: {one_line(error)}", "`decoder=pil`, or a torchcodec for this torch"
        ) from None
    return decode_image
