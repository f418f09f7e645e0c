"""A small network of one's own, as a user's file would define it."""

from __future__ import annotations

import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.head(x.mean((2, 3)))


def tiny(num_classes: int = 4, width: int = 8) -> Tiny:
    return Tiny(num_classes, width)


def no_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 4))


class OddNorm(nn.BatchNorm2d):
    """A relative of BatchNorm that alphatune cannot know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def odd() -> nn.Module:
    model = tiny()
    model.bn2 = OddNorm(8)
    return model


def not_a_model() -> int:
    return 3


def grouped() -> Tiny:
    """The same network with GroupNorm, which keeps no moving averages."""
    model = Tiny()
    model.bn1, model.bn2 = nn.GroupNorm(4, 8, eps=1e-3), nn.GroupNorm(2, 8)
    return model


def mixed() -> Tiny:
    model = Tiny()
    model.bn2 = nn.InstanceNorm2d(8, affine=True)
    return model
