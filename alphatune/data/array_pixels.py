"""Images that are slices of one array: which axis is what, and how a pixel becomes 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import DataError
from alphatune.data.bit_depth import scale_to_eight_bits
from alphatune.data.examples import ArrayLoad

Scale = Callable[[NDArray[Any]], NDArray[np.uint8]]


class ArrayFileLoad(ArrayLoad):
    """Images out of an array that was read from files.

    Args:
        images: (N, H, W), (N, H, W, 1 | 3 | 4) or (N, 1 | 3, H, W); uint8, or what can be scaled to it.
        files: that it was read from.
        part: which split of theirs it is.

    Raises:
        DataError: another shape, or values that are no pixels.
    """

    def __init__(self, images: NDArray[Any], files: tuple[str, ...], part: str) -> None:
        super().__init__(images)
        self.part = part
        self._files = files
        self._channels_first = _channels_first(images.shape, files[0])
        self._scale, self.note = _scaling(images, files[0])

    def pixels(self, index: int) -> NDArray[Any]:
        image = super().pixels(index)
        if self._channels_first:
            image = np.moveaxis(image, 0, -1)
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        return np.ascontiguousarray(self._scale(image))

    def files(self, _: NDArray[Any]) -> list[str]:
        """The files that hold the images."""
        return list(self._files)


def _channels_first(shape: tuple[int, ...], shown: str) -> bool:
    last = len(shape) == 4 and shape[3] in (1, 3, 4)
    first = len(shape) == 4 and shape[1] in (1, 3)
    if len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and first == last):
        raise DataError(
            f"expected images of shape (N, H, W), (N, H, W, 3) or (N, 3, H, W) in {shown}, got {shape}",
            "reshape the array",
        )
    return first


def _scaling(images: NDArray[Any], shown: str) -> tuple[Scale, str]:
    """How pixels become 8 bits, and what to say of it; one rule for the whole array."""
    kind = images.dtype
    if kind == np.uint8:
        return lambda image: image, ""
    if kind.kind == "b":
        return lambda image: image.astype(np.uint8) * np.uint8(255), ""
    if kind.kind not in "iuf":
        raise DataError(f"expected numbers for pixels in {shown}, got {kind}")
    low, high = images.min(), images.max()
    if kind.kind == "f":
        if low >= 0 and high <= 1:
            return scale_to_eight_bits, f"{kind} pixels are scaled to 8 bits (value × 255)"
    elif low >= 0 and high <= 255:
        return lambda image: image.astype(np.uint8), f"{kind} pixels are taken as 8 bits: none is above 255"
    elif kind == np.uint16:
        return lambda image: (image >> 8).astype(np.uint8), "16-bit pixels are scaled to 8 (value >> 8)"
    raise DataError(
        f"expected pixels in 8 or 16 bits, or floats in [0, 1], in {shown}; got {kind} from {low} to {high}",
        "save them as uint8, before they are normalised",
    )
