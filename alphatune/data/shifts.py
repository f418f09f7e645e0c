"""Shifts: corruptions at some severities, as text names them, and images with them.

    contrast:3                   one severity
    gaussian-noise:2-4           severities 2 to 4, in equal parts
    jpeg                         all five severities, in equal parts
    common, imagenet-c, all      lists of several shifts; common:3 is each of them at severity 3

``common`` are those that cameras and pipelines bring along: noise, lenses out of focus, motion, exposure, haze or
scanners, and compression.

An image with a shift depends on the image, the shift, its severity, the seed and the image's id alone: not on batch,
order, worker or process.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import ConfigurationError
from alphatune.core.suggestions import did_you_mean
from alphatune.data.corrupted_pixels import Pixels
from alphatune.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

#: lists of shifts that one name stands for
LISTS: dict[str, tuple[str, ...]] = {
    "common": ("gaussian-noise", "defocus-blur", "motion-blur", "brightness", "contrast", "jpeg"),
    "imagenet-c": tuple(CORRUPTIONS)[:12],
    "all": tuple(CORRUPTIONS),
}


@dataclass(frozen=True)
class Shift:
    """A corruption at some severities, of which equal parts of the images have one each.

    Raises:
        ConfigurationError: no such corruption, or severities that are not from 1 to 5, each once.
    """

    name: str
    severities: tuple[int, ...] = SEVERITIES

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            known = [*CORRUPTIONS, *LISTS]
            raise ConfigurationError(
                f"unknown shift {self.name!r}", did_you_mean(self.name, known, f"one of: {', '.join(known)}")
            )
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise ConfigurationError(f"severities of {self.name} are from 1 to 5, got {[*self.severities]}")
        if len(set(self.severities)) < len(self.severities):
            raise ConfigurationError(f"severities of {self.name} come once each, got {[*self.severities]}")

    @property
    def needs_colour(self) -> bool:
        """Whether images of one channel stay as they are."""
        return CORRUPTIONS[self.name].needs_colour

    def severity_of(self, n: int, seed: int) -> NDArray[np.int64]:
        """The severity of each of n images (n,): equal parts up to one image, in random order."""
        return _random(seed, self.name, 0).permutation(np.resize(np.array(self.severities, np.int64), n))

    def apply(
        self, images: Pixels, severities: NDArray[np.int64], ids: NDArray[np.int64], seed: int
    ) -> Pixels:
        """Images (N, C, H, W) with the shift, each at its severity (N,); ids (N,) are those of the images."""
        shifted = np.empty_like(images)
        for severity in np.unique(severities):
            rows = np.flatnonzero(severities == severity)
            randoms = [_random(seed, self.name, 1 + number) for number in ids[rows].tolist()]
            shifted[rows] = corrupt(images[rows], self.name, int(severity), randoms)
        return shifted


def shift_image(image: Pixels, name: str, severity: int, seed: int = 0, image_id: int = 0) -> Pixels:
    """An image, uint8 (C, H, W) with 1 or 3 channels, with a shift at a severity from 1 to 5.

    Raises:
        ConfigurationError: another image, name or severity.
    """
    shift = Shift(name, (severity,))
    if image.dtype != np.uint8 or image.ndim != 3 or len(image) not in (1, 3):
        raise ConfigurationError(
            f"expected an image of uint8 (C, H, W) with 1 or 3 channels, got {image.dtype} {image.shape}"
        )
    (shifted,) = shift.apply(image[None], np.array([severity]), np.array([image_id]), seed)
    return shifted  # type: ignore[no-any-return]


def parse_shifts(texts: str | Iterable[str]) -> tuple[Shift, ...]:
    """``"contrast:3,gaussian-noise:2-4"``, or several such texts, as shifts in their order.

    Raises:
        ConfigurationError: an unknown name, severities that are not from 1 to 5, or a shift that comes twice.
    """
    parts = [part for text in ([texts] if isinstance(texts, str) else texts) for part in text.split(",")]
    shifts = tuple(shift for part in parts for shift in _parse(part.strip()))
    names = [shift.name for shift in shifts]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"the shift {name} was given twice", f"{name}:1-5 has several severities in equal parts"
            )
    return shifts


def _parse(text: str) -> tuple[Shift, ...]:
    name, colon, levels = text.partition(":")
    severities = SEVERITIES
    if colon:
        found = re.fullmatch(r"([1-5])(?:-([1-5]))?", levels)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise ConfigurationError(
                f"severities are from 1 to 5, got {text!r}", f"for example {name or 'contrast'}:3 or :2-4"
            )
        severities = tuple(range(first, last + 1))
    return tuple(Shift(each, severities) for each in LISTS.get(name, (name,)))


def _random(seed: int, name: str, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(name.encode()), number))
