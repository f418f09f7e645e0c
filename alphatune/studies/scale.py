"""How large the experiments of a study are: seconds, hours of two cores, or the paper's own size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ScaleName = Literal["smoke", "cpu", "paper"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Data, network and length of training.

    Args:
        dataset: the data where none are named.
        size: pixels of a side that images are trained at.
        images: to train on; None takes all.
        choosing: images that only choose α.
        epochs: of a batch size of 128; smaller batches take as many steps as ``steps`` allows.
        small_batch_steps: steps of training where a batch has fewer than 16 examples.
        depths, channels: blocks and channels of each stage of the residual network.
        seeds: how many.
        few_images: images of the classes that are new in fine-tuning.
    """

    dataset: str
    size: int
    images: int | None
    choosing: int
    epochs: int
    small_batch_steps: int
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    seeds: int
    few_images: int


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(
        dataset="digits", size=8, images=640, choosing=200, epochs=2, small_batch_steps=20, depths=(1, 1),
        channels=(8, 16), seeds=2, few_images=200,
    ),
    "cpu": Scale(
        dataset="cifar10", size=16, images=40_000, choosing=2_000, epochs=30, small_batch_steps=20_000,
        depths=(1, 1, 1), channels=(16, 32, 64), seeds=5, few_images=2_000,
    ),
    "paper": Scale(
        dataset="cifar10", size=32, images=None, choosing=10_000, epochs=200, small_batch_steps=400_000,
        depths=(2, 2, 2, 2), channels=(64, 128, 256, 512), seeds=5, few_images=2_000,
    ),
}  # fmt: skip
#: the α that each network is evaluated at
ALPHAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
