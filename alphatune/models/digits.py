"""A small network for 8×8 images of one channel, such as scikit-learn's digits; ``alphatune demo`` trains it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class DigitsNet(nn.Module):
    """Three 3×3 convolutions with BatchNorm and ReLU (32, 64 and 64 channels), average pooling, a linear head.

    The second convolution halves the map: an 8×8 image is normalised at 8×8, 4×4 and 4×4.
    """

    #: how its images are prepared, in timm's terms
    pretrained_cfg: ClassVar[dict[str, object]] = {
        "input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0, "interpolation": "bicubic",
        "crop_mode": "center", "first_conv": "conv1",
    }  # fmt: skip

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) -> logits (N, num_classes)."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def convnet(num_classes: int = 10) -> DigitsNet:
    """Three convolutions: 0.06 M parameters."""
    return DigitsNet(num_classes)
