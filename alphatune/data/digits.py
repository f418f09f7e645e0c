"""Handwritten digits that scikit-learn ships, and the same as another scanner might have seen them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from alphatune.core.errors import ConfigurationError, ResourceError
from alphatune.core.extras import install_line

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scanner:
    """A simulated scanner; ``background`` and ``noise`` are fractions of white, ``blur`` is σ in pixels."""

    contrast: float = 1.0
    background: float = 0.0
    blur: float = 0.0
    noise: float = 0.0


def read_digits() -> tuple[Pixels, NDArray[np.int64]]:
    """The 1 797 images of UCI's optical digits test set: pixels (N, 8, 8), white ink on black, and labels (N,).

    Raises:
        ConfigurationError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(
            "the demo's images come with scikit-learn, which is not installed",
            install_line("demo"),
        ) from None
    values, targets = load_digits(return_X_y=True)
    pixels = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 to 16
    return pixels, targets.astype(np.int64)


def rescan(images: Pixels, scanner: Scanner, seed: int) -> Pixels:
    """What a scanner makes of images (N, H, W): contrast · blur(x) + background + noise · ε, ε ~ N(0, 1)."""
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    blur = ImageFilter.GaussianBlur(scanner.blur)
    blurred = np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in images])
    seen = scanner.contrast * blurred + 255 * (scanner.background + scanner.noise * noise)
    return np.clip(np.round(seen), 0, 255).astype(np.uint8)


def write_class_folders(root: Path, images: Pixels, targets: NDArray[np.int64]) -> None:
    """Write images as ROOT/LABEL/0000.png, numbered in order; raises ResourceError if the disk refuses."""
    try:
        for label in np.unique(targets):
            (root / str(label)).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(images, targets, strict=True)):
            Image.fromarray(image).save(root / str(label) / f"{number:04}.png")
    except OSError as error:
        raise ResourceError(f"cannot write images to {root}: {error}", "is the disk full?") from None
