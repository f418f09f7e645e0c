"""How an image becomes the model's input: resize, crop, normalise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import timm.data
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
#: a mean or std beyond this is of values up to 255. Of value / 255 no std is above 0.5; 1 leaves pixels as they
#: are, and the inverse of a usual std is 4 to 5. Of values up to 255, images with a std of 5 are nearly black.
LARGEST = 5
CROP_MODES = ("center", "squash", "border")
#: of a ``Preprocessing``, as people read them
PARTS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Preprocessing:
    """The deterministic evaluation transform, in timm's terms.

    The shorter side is resized to ``size / crop_pct``, the centre cropped to
    ``input_size`` (C, H, W), and pixels become (value / 255 − mean) / std.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if len(self.input_size) != 3 or min(self.input_size) < 1:
            raise ConfigurationError(f"input size must be C,H,W of positive numbers, got {self.input_size}")
        if channels not in (1, 3):
            raise ConfigurationError(f"images have 1 or 3 channels, the input size asks for {channels}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not all(math.isfinite(v) for v in values):
                raise ConfigurationError(
                    f"{name} must be {channels} numbers, one per channel, got {list(values)}"
                )
        if min(self.std) <= 0:
            raise ConfigurationError(f"std must be positive, got {list(self.std)}")
        self._check_units()
        if not 0 < self.crop_pct <= 1:
            raise ConfigurationError(f"crop-pct must lie in (0, 1], got {self.crop_pct}")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigurationError(
                f"unknown interpolation {self.interpolation!r}", f"one of: {', '.join(INTERPOLATIONS)}"
            )
        if self.crop_mode not in CROP_MODES:
            raise ConfigurationError(
                f"unknown crop mode {self.crop_mode!r}", f"one of: {', '.join(CROP_MODES)}"
            )

    def _check_units(self) -> None:
        """Refuse numbers of pixels that count to 255: divided by such a std, all images look the same."""
        given = {"mean": self.mean, "std": self.std}
        wrong = [name for name, values in given.items() if max(map(abs, values)) > LARGEST]
        if not wrong:
            return
        if wrong == ["mean"] and min(self.std) >= 1:  # (value - 123.68) / 1, which is of the same scale
            wrong.append("std")
        got, divided = (
            " and ".join(f"{name} {[float(f'{v / by:.4g}') for v in given[name]]}" for name in wrong)
            for by in (1, 255)
        )
        verb = "are" if len(wrong) > 1 else "is"
        raise ConfigurationError(
            f"{' and '.join(wrong)} {verb} in units of value / 255, got {got}", f"divide by 255: {divided}"
        )

    def override(self, **parts: Any) -> Preprocessing:
        """A copy with the given parts changed; None means "keep".

        One mean or std is repeated over the channels; an ``input_size`` of
        (S,) or (H, W) keeps the channels.
        """
        parts = {name: value for name, value in parts.items() if value is not None}
        if "input_size" in parts:
            if not all(math.isfinite(v) and v == int(v) for v in parts["input_size"]):
                raise ConfigurationError(f"input size must be whole numbers, got {parts['input_size']}")
            size = tuple(int(v) for v in parts["input_size"])
            if len(size) == 1:
                size = (self.input_size[0], size[0], size[0])
            elif len(size) == 2:
                size = (self.input_size[0], *size)
            parts["input_size"] = size
        channels = parts.get("input_size", self.input_size)[0]
        for name in ("mean", "std"):
            values = tuple(float(v) for v in parts.get(name, getattr(self, name)))
            if len(values) == 1 or (name not in parts and len(set(values)) == 1):
                values = (values[0],) * channels
            parts[name] = values
        return replace(self, **parts)

    def enlargement(self, height: int, width: int) -> float:
        """How many times as large the resize makes an image along each side; below 1 it makes it smaller."""
        by_height, by_width = (
            math.floor(wanted / self.crop_pct) / side
            for wanted, side in zip(self.input_size[1:], (height, width), strict=True)
        )
        if self.crop_mode == "squash":
            return math.sqrt(by_height * by_width)
        return min(by_height, by_width) if self.crop_mode == "border" else max(by_height, by_width)

    @property
    def image_mode(self) -> str:
        """The PIL mode that matches the number of channels."""
        return "L" if self.input_size[0] == 1 else "RGB"

    def transform(self) -> Any:
        """PIL image -> uint8 tensor (C, H, W): the part done by worker processes."""
        return create_transform(
            input_size=self.input_size,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=self.mean,
            normalize=False,
        )

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 on the same device, as torchvision computes it."""
        return self.normaliser(images.device)(images)

    def normaliser(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """``normalise`` for many batches, with its constants on the device once."""
        mean = torch.tensor(self.mean, device=device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=device).view(1, -1, 1, 1)
        return lambda images: images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read back what ``to_dict`` wrote; raises ConfigurationError on anything else."""
        try:
            parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**parts)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"not a preprocessing description: {error}") from None


def _small_images(mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    return Preprocessing((3, 32, 32), mean, std, crop_pct=1.0)


#: datasets by name whose images are 32×32, with the mean and std of their training images;
#: a network that is trained on them from scratch takes them as they are
SMALL_IMAGES = {
    "cifar10": _small_images((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _small_images((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": _small_images((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


def preprocessing_of_timm(model: nn.Module) -> Preprocessing:
    """What a timm model's ``pretrained_cfg`` says about its weights."""
    if hasattr(timm.data, "resolve_input_data_config"):  # from timm 1.0.31
        return _from_timm_config(timm.data.resolve_input_data_config(model))
    config = resolve_data_config(model=model)
    known: Any = model.pretrained_cfg
    first = known.get("first_conv") or ""
    conv = dict(model.named_modules()).get(first if isinstance(first, str) else first[0])
    channels = getattr(conv, "in_channels", config["input_size"][0])  # after in_chans=1, say
    return _from_timm_config(config | {"input_size": (channels, *config["input_size"][1:])})


def undeclared_by_timm(model: nn.Module) -> tuple[str, ...]:
    """The parts of which a ``pretrained_cfg`` says nothing, and timm's defaults are taken."""
    config: Any = model.pretrained_cfg
    return tuple(part for part in PARTS if not config.get(part))


def preprocessing_of_torchvision(preset: Any) -> Preprocessing:
    """What torchvision's ``weights.transforms()`` does, in timm's terms.

    torchvision names the size before the crop; timm derives it as
    ``floor(size / crop_pct)``, so the percentage is chosen to give that size.
    """
    size, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    crop_pct = size / resize
    if math.floor(size / crop_pct) != resize:
        crop_pct = math.nextafter(crop_pct, 0)
    return Preprocessing(
        input_size=(3, size, size),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_pct=crop_pct,
    )


def _from_timm_config(config: Mapping[str, Any]) -> Preprocessing:
    channels, height, width = (int(v) for v in config["input_size"])
    interpolation = config["interpolation"]
    return Preprocessing(
        input_size=(channels, height, width),
        mean=_per_channel(config["mean"], channels),
        std=_per_channel(config["std"], channels),
        interpolation="bicubic" if interpolation == "random" else interpolation,
        crop_pct=float(config["crop_pct"]),
        crop_mode=config["crop_mode"] or "center",
    )


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) == channels:
        return numbers
    return (sum(numbers) / len(numbers),) * channels  # as timm adapts them to in_chans


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """``"0.5,0.5,0.5"`` -> (0.5, 0.5, 0.5); raises ConfigurationError naming the option."""
    try:
        return tuple(float(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ConfigurationError(f"{option} takes numbers separated by commas, got {text!r}") from None
