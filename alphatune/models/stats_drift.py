"""How far a norm layer's moving averages are from what it sees.

For each channel with stored moments m, v and measured ones m̂, v̂, both variances
with the layer's ε added, half the sum of the Kullback-Leibler divergences of the
two Gaussians from each other:

    d = ¼·(v/v̂ + v̂/v − 2) + ¼·(m − m̂)²·(1/v + 1/v̂)

A layer's distance is the mean over its channels. Means that are a tenth of a
deviation apart make 0.005, variances that differ by 20 % 0.008; 0.1 is 0.45
deviations, or a factor of 1.9. With channel groups the averages over
the groups are compared, which is what the layer normalises by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alphatune.kernels.moments import average_over_groups
from alphatune.norms.calibrated import channel_groups
from alphatune.norms.pooling import Moments
from alphatune.norms.survey import moving_averages

#: a distance from which on a layer's averages are called stale (docs/idea.md has what was measured)
STALE = 0.1
#: networks whose averages are fine have a few such layers: this share of them, or one so far off, is worth a word
STALE_SHARE, FAR_OFF = 0.25, 1.0


def distances(model: nn.Module, measured: Mapping[str, Moments]) -> dict[str, float]:
    """The distance of each measured layer that has moving averages; inf where one of them is impossible."""
    found = {}
    modules = dict(model.named_modules())
    for name, moments in measured.items():
        layer: Any = modules[name]
        averages = moving_averages(layer)
        if averages is not None and moments.count > 1:
            stored = averages[0].detach().cpu().double(), averages[1].detach().cpu().double()
            seen = moments.mean, moments.unbiased_variance
            groups = channel_groups(layer)
            if groups is not None:
                stored = average_over_groups(*stored, groups)
                seen = average_over_groups(*seen, groups)
            value = float(distance(*stored, *seen, layer.eps))
            found[name] = value if value >= 0 else float("inf")  # a comparison with NaN is false
    return found


def look_stale(found: Mapping[str, float]) -> bool:
    """Whether so many layers are stale, or one is so far off, that the averages do not fit the images."""
    stale = sum(value >= STALE for value in found.values())
    return bool(found) and (stale >= STALE_SHARE * len(found) or max(found.values()) >= FAR_OFF)


def distance(
    mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor, eps: float
) -> Tensor:
    """The mean over channels of d as in this module's text; all moments (C,)."""
    v, w = variance + eps, other_variance + eps
    if bool((v <= 0).any()) or bool((w <= 0).any()):
        return torch.tensor(float("nan"))
    by_variance = v / w + w / v - 2
    by_mean = (mean - other_mean).square() * (1 / v + 1 / w)
    return (by_variance + by_mean).mean() / 4
