"""The table of corruptions: by the names and severities of ImageNet-C.

A name, the function of pixels (corrupted_pixels.py), and its parameters at severities 1 to 5, as published for images
of 224×224 (ImageNet-C) and of 32×32 (CIFAR-10-C). An image whose shorter side has at most 64 pixels is small.
Lengths in pixels scale with the shorter side from the size that they were published for, so that a blur of
severity 3 is as strong on 96×96 as on 224×224; at 224 and 32 pixels they are the published ones. The random numbers do
not depend on the severity.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019, and the code that made their images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from alphatune.data import corrupted_pixels as pixels
from alphatune.data.corrupted_pixels import Parameters, Pixels, Randoms

#: images (N, C, H, W), parameters, and the random numbers of each image
Apply = Callable[[Pixels, Parameters, Randoms], Pixels]

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
#: pixels of the shorter side up to which an image is small
SMALL = 64
#: sides of the images that the parameters were published for
LARGE_SIDE, SMALL_SIDE = 224, 32


@dataclass(frozen=True)
class Corruption:
    """One corruption: what it does to images, and how strongly at each severity."""

    apply: Apply
    large: tuple[Parameters, ...]  # by severity, for images of 224×224
    small: tuple[Parameters, ...]  # for images of 32×32
    powers: tuple[int, ...] = ()  # of the image's side that each parameter grows with; none: of no side
    needs_colour: bool = False  # changes nothing in an image of one channel

    def parameters(self, severity: int, height: int, width: int) -> Parameters:
        """The parameters at a severity for images of a size."""
        side = min(height, width)
        published, of = (self.small, SMALL_SIDE) if side <= SMALL else (self.large, LARGE_SIDE)
        values = published[severity - 1]
        if not self.powers:
            return values
        return tuple(value * (side / of) ** power for value, power in zip(values, self.powers, strict=True))


def corrupt(images: Pixels, name: str, severity: int, randoms: Randoms) -> Pixels:
    """Images (N, C, H, W) with a corruption of the table, at a severity from 1 to 5; they stay as they are."""
    corruption = CORRUPTIONS[name]
    return corruption.apply(images, corruption.parameters(severity, *images.shape[2:]), randoms)


def _each(function: Callable[[Pixels, Parameters, Generator], Pixels]) -> Apply:
    """A function of one image (C, H, W) as one of several."""

    def apply(images: Pixels, parameters: Parameters, randoms: Randoms) -> Pixels:
        pairs = zip(images, randoms, strict=True)
        return np.stack([function(image, parameters, random) for image, random in pairs])

    return apply


def _one(*values: float) -> tuple[Parameters, ...]:
    """The only parameter at each severity."""
    return tuple((value,) for value in values)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": Corruption(
        pixels.gaussian_noise, _one(0.08, 0.12, 0.18, 0.26, 0.38), _one(0.04, 0.06, 0.08, 0.09, 0.1)
    ),
    "shot-noise": Corruption(_each(pixels.shot_noise), _one(60, 25, 12, 5, 3), _one(500, 250, 100, 75, 50)),
    "impulse-noise": Corruption(
        _each(pixels.impulse_noise), _one(0.03, 0.06, 0.09, 0.17, 0.27), _one(0.01, 0.02, 0.03, 0.05, 0.07)
    ),
    "defocus-blur": Corruption(
        pixels.defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        powers=(1, 1),
    ),
    "motion-blur": Corruption(
        _each(pixels.motion_blur),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        powers=(1, 1),
    ),
    "zoom-blur": Corruption(
        pixels.zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "fog": Corruption(
        pixels.fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Corruption(
        pixels.brightness, _one(0.1, 0.2, 0.3, 0.4, 0.5), _one(0.05, 0.1, 0.15, 0.2, 0.3)
    ),
    "contrast": Corruption(pixels.contrast, _one(0.4, 0.3, 0.2, 0.1, 0.05), _one(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": Corruption(
        _each(pixels.elastic),
        (
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
        ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
        powers=(2, 1, 1),  # smoothing over σ pixels makes the noise smaller by σ
    ),
    "pixelate": Corruption(
        _each(pixels.pixelate), _one(0.6, 0.5, 0.4, 0.3, 0.25), _one(0.95, 0.9, 0.85, 0.75, 0.65)
    ),
    "jpeg": Corruption(_each(pixels.jpeg), _one(25, 18, 15, 10, 7), _one(80, 65, 58, 50, 40)),
    "speckle-noise": Corruption(
        pixels.speckle_noise, _one(0.15, 0.2, 0.35, 0.45, 0.6), _one(0.06, 0.1, 0.12, 0.16, 0.2)
    ),
    "gaussian-blur": Corruption(
        pixels.gaussian_blur, _one(1, 2, 3, 4, 6), _one(0.4, 0.6, 0.7, 0.8, 1), powers=(1,)
    ),
    "saturate": Corruption(
        pixels.saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        needs_colour=True,
    ),
}
