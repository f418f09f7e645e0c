"""Versions and settings that a number can depend on."""

from __future__ import annotations

from typing import Literal

from alphatune.results.document import Part
from alphatune.results.values import Count, Dtype, Kernel, NonNegative, Positive, Runtime, Size


class Environment(Part, frozen=True, kw_only=True):
    """Versions, device and precision."""

    python: str
    torch: str
    torchvision: str
    timm: str
    numpy: str
    platform: str
    device: str
    device_name: str
    dtype: Dtype
    threads: Size
    tf32: bool = False
    cudnn_benchmark: bool = False


class SeededEnvironment(Environment, frozen=True, kw_only=True):
    """With the seed of what is random."""

    seed: Count


class RunEnvironment(Environment, frozen=True, kw_only=True):
    """With how images were read."""

    batch_size: Size
    workers: Count
    cache: Literal["none", "ram", "disk"] = "none"
    seed: Count


class TuneEnvironment(RunEnvironment, frozen=True, kw_only=True):
    """With how α was applied."""

    kernel: Kernel = "eager"
    kernel_build_seconds: NonNegative = 0.0
    processes: Size = 1


class ScoreEnvironment(Environment, frozen=True, kw_only=True):
    """Of a tune by a score of the user's own, whose loader reads the data."""

    batch_size: Size
    kernel: Kernel
    kernel_build_seconds: NonNegative
    processes: Size
    seed: Count


class BenchEnvironment(Environment, frozen=True, kw_only=True):
    """With what was timed."""

    input_size: tuple[Size, Size, Size]
    channels_last: bool
    seconds: Positive
    seed: Count
    runtime: Runtime = "torch"


class TrainEnvironment(Environment, frozen=True, kw_only=True):
    """With how batches were made, and the weight decay of each group of parameters."""

    batch_size: Size
    steps_per_epoch: Size
    processes: Size
    workers: Count
    seed: Count
    decay: dict[str, NonNegative]
