"""The standard training augmentations, as a function of a seed.

    crop      pad by an eighth of the side (4 at 32×32), crop back at random
    cifar     the same, and a horizontal flip of every second image
    imagenet  a random crop of 8 to 100 % of the area and 3/4 to 4/3 aspect,
              resized to the input size, and a horizontal flip

Images are uint8 throughout; normalisation follows on the device.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from alphatune.core.errors import ConfigurationError
from alphatune.data.preprocessing import Preprocessing

Augmentation = Literal["none", "crop", "cifar", "imagenet"]


def resolve_augmentation(name: str, preprocessing: Preprocessing) -> Augmentation:
    """``auto`` is cifar for inputs of up to 64 pixels, imagenet above."""
    if name == "auto":
        return "cifar" if max(preprocessing.input_size[1:]) <= 64 else "imagenet"
    if name not in get_args(Augmentation):
        raise ConfigurationError(
            f"unknown augmentation {name!r}", f"auto, {', '.join(get_args(Augmentation))}"
        )
    return name  # type: ignore[return-value]


def training_transform(augmentation: Augmentation, preprocessing: Preprocessing) -> Any:
    """PIL image -> uint8 tensor (C, H, W), drawing from torch's global generator."""
    _, height, width = preprocessing.input_size
    flip = [v2.RandomHorizontalFlip()] if augmentation in ("cifar", "imagenet") else []
    if augmentation == "imagenet":
        return v2.Compose([v2.PILToTensor(), _random_area(preprocessing), *flip])
    crop = [v2.RandomCrop((height, width), padding=_padding(height, width))] if augmentation != "none" else []
    return v2.Compose([preprocessing.transform(), *crop, *flip])


def stored_preprocessing(augmentation: Augmentation, preprocessing: Preprocessing) -> Preprocessing:
    """How images are kept for ``augment_batch``: at the input size, or where an area is
    still to be cropped from them, uncropped and squeezed to the size before the crop.
    """
    if augmentation != "imagenet":
        return preprocessing
    channels, height, width = preprocessing.input_size
    larger = (channels, round(height / preprocessing.crop_pct), round(width / preprocessing.crop_pct))
    return preprocessing.override(input_size=larger, crop_pct=1.0, crop_mode="squash")


def augment_batch(
    images: Tensor, augmentation: Augmentation, preprocessing: Preprocessing, seed: int
) -> Tensor:
    """Augment uint8 images (N, C, H, W) where they are, each in its own way.

    The random numbers are drawn on the CPU, so they are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    if augmentation == "none":
        return images
    if augmentation == "imagenet":
        crop = v2.Compose([_random_area(preprocessing), v2.RandomHorizontalFlip()])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.stack([crop(image) for image in images])
    n, _, height, width = images.shape
    padding = _padding(height, width)
    top = torch.randint(2 * padding + 1, (n, 1), generator=generator)
    left = torch.randint(2 * padding + 1, (n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if augmentation == "cifar":
        flipped = torch.rand((n, 1), generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    padded = F.pad(images, (padding,) * 4)
    index = torch.arange(n, device=images.device)[:, None, None]
    # Advanced indices come first in the result: (N, H, W, C).
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def derived_seed(*parts: int) -> int:
    """A seed for one example, batch or step from the numbers that identify it."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _random_area(preprocessing: Preprocessing) -> Any:
    modes = {mode.value: mode for mode in InterpolationMode}
    return v2.RandomResizedCrop(
        preprocessing.input_size[1:],
        interpolation=modes[preprocessing.interpolation]
        if preprocessing.interpolation in ("nearest", "bilinear", "bicubic")
        else InterpolationMode.BICUBIC,  # what torchvision can do on tensors
        antialias=True,
    )


def _padding(height: int, width: int) -> int:
    return max(1, min(height, width) // 8)
