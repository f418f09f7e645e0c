"""What the moving averages of a layer hold whose training statistics are those of groups.

``paper``, the published equations (sections 3.2 and 3.4): averages of x and of
x² of each channel over the whole batch, m and m₂, with v = m₂ − m². With the
momentum η, and μ, s the mean and biased variance of a batch,

    m ← (1 − η)·m + η·μ
    v ← (1 − η)·v + η·s + η·(1 − η)·(μ − m)²        with m as it was before

which is the same without cancellation. So v counts how the means of groups
differ within a batch, and those of batches from step to step.

``group``: the mean and *unbiased* variance of the groups, averaged over the
groups of a batch, move as BatchNorm's do. That leaves out what lies between
groups and between steps: most of the variance in tiny groups on 1×1 maps, and
much where batches are not i.i.d.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from alphatune.core.errors import ConfigurationError
from alphatune.norms.grouping import GroupMoments, batch_moments

Averages = Literal["paper", "group"]


def check_averages(name: str, value: object) -> None:
    """Raise ConfigurationError unless the value names a kind of averages."""
    if value not in get_args(Averages):
        raise ConfigurationError(f"{name} must be one of {', '.join(get_args(Averages))}, got {value!r}")


@torch.no_grad()
def count_batch_(layer: Any, x: Tensor, moments: GroupMoments | None) -> None:
    """Move the averages of a layer by a batch (N, C, *), whose groups have these moments, as the layer is set."""
    if layer.averages == "group":
        if moments is not None:
            move_averages_(layer, *moments.average(x.shape[1]))
        return
    if x.numel() == 0 or (factor := _count_step_(layer)) is None:
        return
    # Those of the groups hold all there is to know, if they are of single channels and of all examples.
    known = moments is not None and moments.mean.shape[1] == x.shape[1] and moments.examples == len(x)
    mean, variance = moments.of_batch() if moments is not None and known else batch_moments(x)
    mean, variance = mean.to(layer.running_mean.dtype), variance.to(layer.running_var.dtype)
    difference = mean - layer.running_mean
    layer.running_mean.lerp_(mean, factor)
    layer.running_var.lerp_(variance, factor).add_(difference.square(), alpha=factor * (1 - factor))


@torch.no_grad()
def move_averages_(layer: Any, mean: Tensor, variance: Tensor) -> None:
    """Count one step and move a layer's averages towards moments (C,), as BatchNorm does.

    running = (1 − η)·running + η·value
    """
    if (factor := _count_step_(layer)) is not None:
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), factor)
        layer.running_var.lerp_(variance.to(layer.running_var.dtype), factor)


def _count_step_(layer: Any) -> float | None:
    """Count a step; η, the layer's momentum, or None where nothing moves.

    Momentum None means a cumulative average, η = 1/steps. With momentum 0 or
    without ``track_running_stats`` nothing moves.
    """
    if not layer.track_running_stats or layer.running_mean is None:
        return None
    factor: float | None = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(layer.num_batches_tracked)
    return factor or None
