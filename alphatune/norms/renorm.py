"""Batch Renormalisation (Ioffe 2017; the paper's Table 1 compares with it).

    y = γ · ((x − μ_B) / σ_B · r + d) + β
    r = clip(σ_B / σ, 1/r_max, r_max),   d = clip((μ_B − μ) / σ, −d_max, d_max)

with the batch's μ_B, σ_B = sqrt(variance + ε) and the moving averages'
μ, σ = sqrt(running_var + ε). No gradient flows through r and d. Both limits
widen linearly in steps: r_max from 1 (between ``start`` and ``r_end``) and
d_max from 0 (between ``start`` and ``d_end``); before ``start`` this is
BatchNorm. Steps are ``num_batches_tracked``, those before the present one.

Inference is BatchNorm's; the buffers are its ``running_mean`` and
``running_var`` and move as its do (other implementations keep a running
standard deviation with ε inside). A batch with a single value per channel is
normalised by the moving averages, and does not move them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError
from alphatune.norms.grouping import batch_group_norm, batch_moments
from alphatune.norms.moving_averages import move_averages_
from alphatune.norms.training_norm import TrainingNorm


class Renorm(TrainingNorm):
    """What the Batch Renormalisation layers share.

    Args:
        num_features: C of an input (N, C, *).
        r_max, d_max: limits of r and d at the end of the schedule.
        start, r_end, d_end: the schedule, in training steps.
        *args, **kwargs: as the stock layer's: eps, momentum, affine, ...

    Raises:
        ConfigurationError: limits or schedule that cannot be right, or no
            moving averages to renormalise to (track_running_stats=False).
    """

    settings: ClassVar[tuple[str, ...]] = ("r_max", "d_max", "start", "r_end", "d_end")
    r_max: float
    d_max: float
    start: int
    r_end: int
    d_end: int

    def __init__(
        self,
        num_features: int,
        r_max: float = 3.0,
        d_max: float = 5.0,
        start: int = 5000,
        r_end: int = 40000,
        d_end: int = 25000,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.configure({"r_max": r_max, "d_max": d_max, "start": start, "r_end": r_end, "d_end": d_end})

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        if self.running_mean is None or self.num_batches_tracked is None:
            raise ConfigurationError(
                "batch renormalisation needs moving averages to renormalise to, got track_running_stats=False"
            )
        if not (settings["r_max"] >= 1 and settings["d_max"] >= 0):
            raise ConfigurationError(
                f"renorm limits must be r_max >= 1 and d_max >= 0, got {settings['r_max']} and {settings['d_max']}"
            )
        check_schedule(settings["start"], settings["r_end"], settings["d_end"])

    def limits(self) -> tuple[Tensor, Tensor]:
        """The present r_max and d_max, scalar tensors."""
        steps: Tensor = self.num_batches_tracked.float()

        def ramp(end: int) -> Tensor:
            if end == self.start:
                return (steps >= end).float()
            return ((steps - self.start) / (end - self.start)).clamp(0, 1)

        return 1 + (self.r_max - 1) * ramp(self.r_end), self.d_max * ramp(self.d_end)

    def normalise(self, x: Tensor) -> Tensor:
        values = len(x) * math.prod(x.shape[2:])
        if values < 2:
            y, _ = batch_group_norm(
                x, self.weight, self.bias, self.num_features, 1, self.eps, self.running_mean, self.running_var
            )
            return y
        with torch.no_grad():
            mean, variance = batch_moments(x)
            sigma = torch.sqrt(self.running_var.to(mean.dtype) + self.eps)
            r_max, d_max = self.limits()
            r = (torch.sqrt(variance + self.eps) / sigma).clamp(1 / r_max, r_max)
            d = ((mean - self.running_mean) / sigma).clamp(-d_max, d_max)
            move_averages_(self, mean, variance * (values / (values - 1)))
        # γ·(r·x̂ + d) + β is BatchNorm with other γ and β.
        weight, bias = (r, d) if self.weight is None else (self.weight * r, self.weight * d)
        if self.bias is not None:
            bias = bias + self.bias
        dtype = x.dtype if self.weight is None else self.weight.dtype
        return F.batch_norm(x, None, None, weight.to(dtype), bias.to(dtype), True, 0.0, self.eps)


def check_schedule(start: object, r_end: object, d_end: object) -> None:
    """Raise ConfigurationError unless 0 <= start <= r_end, d_end, in whole steps."""
    for name, value in (("start", start), ("r_end", r_end), ("d_end", d_end)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigurationError(f"renorm {name} must be a whole number of steps >= 0, got {value!r}")
    if not (start <= r_end and start <= d_end):  # type: ignore[operator]
        raise ConfigurationError(
            f"a renorm schedule must start before it ends, got start {start}, r_end {r_end}, d_end {d_end}"
        )


class BatchRenorm1d(Renorm, nn.BatchNorm1d):
    """Batch Renormalisation on (N, C) or (N, C, L)."""


class BatchRenorm2d(Renorm, nn.BatchNorm2d):
    """Batch Renormalisation on (N, C, H, W)."""


class BatchRenorm3d(Renorm, nn.BatchNorm3d):
    """Batch Renormalisation on (N, C, D, H, W)."""


class BatchRenormAct2d(Renorm, BatchNormAct2d):  # type: ignore[misc]
    """Batch Renormalisation in timm's layer of norm, drop and activation."""
