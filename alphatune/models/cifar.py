"""ResNets for 32×32 images (He et al. 2016, section 4.2, and the paper's ResNet-18).

``resnet20`` to ``resnet110`` have three stages of n blocks with 16, 32 and 64
channels (depth = 6n + 2) and parameter-free shortcuts: every second pixel, and
zeros for the new channels. Keys are those of the widely used checkpoints:
``conv1, bn1, layer1..3.i.{conv1,bn1,conv2,bn2}, linear``.

``resnet18`` is the wide one the paper trains on CIFAR: the ImageNet ResNet-18
with a 3×3 stem and no max pooling, 64-128-256-512 channels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """(N, C, H, W) -> (N, C', H/s, W/s): subsample, zeros on both sides of the channels."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - in_channels) // 2
        self.after = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            if projection:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
                )
            else:
                self.shortcut = PadShortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """A stem, stages of basic blocks, global average pooling, a linear head."""

    #: how images are prepared for the widely used checkpoints, in timm's terms
    pretrained_cfg: ClassVar[dict[str, object]] = {
        "input_size": (3, 32, 32), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 1.0,
        "interpolation": "bicubic", "crop_mode": "center", "first_conv": "conv1",
    }  # fmt: skip

    def __init__(
        self, blocks: tuple[int, ...], channels: tuple[int, ...], projection: bool, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        width = channels[0]
        self.stages: list[str] = []
        for number, (depth, stage_channels) in enumerate(zip(blocks, channels, strict=True), start=1):
            stage = nn.Sequential()
            for i in range(depth):
                stride = 2 if i == 0 and number > 1 else 1
                stage.append(BasicBlock(width, stage_channels, stride, projection))
                width = stage_channels
            self.add_module(f"layer{number}", stage)
            self.stages.append(f"layer{number}")
        self.linear = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def _thin(n: int, num_classes: int) -> CifarResNet:
    return CifarResNet((n, n, n), (16, 32, 64), projection=False, num_classes=num_classes)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20: 0.27 M parameters."""
    return _thin(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """ResNet-32: 0.46 M parameters."""
    return _thin(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """ResNet-44: 0.66 M parameters."""
    return _thin(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56: 0.85 M parameters."""
    return _thin(9, num_classes)


def resnet110(num_classes: int = 10) -> CifarResNet:
    """ResNet-110: 1.7 M parameters."""
    return _thin(18, num_classes)


def resnet18(num_classes: int = 10) -> CifarResNet:
    """The paper's ResNet-18 for CIFAR: 11.2 M parameters."""
    return CifarResNet((2, 2, 2, 2), (64, 128, 256, 512), projection=True, num_classes=num_classes)
