"""Normalise by the moments of groups of examples and channels.

An activation (N, C, *) is cut into groups of ``examples_per_group``
*consecutive* examples and, within them, into ``num_groups`` groups of
contiguous channels:

    num_groups = C            Ghost BatchNorm (paper section 3.2, Eq. 4)
    examples_per_group = 1    GroupNorm
    between                   batch-group normalisation (paper section 3.4)

The last group of a ragged batch is smaller and has statistics of its own.
Where a group is one single value it has no variance: it is normalised by the
moving averages, without a gradient through any statistics; where there are
none, by its own mean, which leaves β.

All statistics are in float32 or better, whatever the activation's dtype.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alphatune.kernels.grouped import group_norm_ops, grouped_norm


def batch_group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    examples_per_group: int,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Normalise groups of consecutive examples × contiguous channels × space by their own moments.

        y = γ · (x − mean_g) / sqrt(variance_g + ε) + β

    Args:
        x: activations (N, C, *).
        weight, bias: γ and β (C,), or None.
        num_groups: channel groups, a divisor of C.
        examples_per_group: consecutive examples that share statistics.
        eps: ε.
        running_mean, running_var: (C,), for groups of a single value only.

    Returns:
        ``(y, moments)``: y like x in shape, dtype and memory format; moments
        are the groups' means and *unbiased* variances, averaged over the groups
        of examples (weighted by size) and repeated over the channels of a
        group, ``(mean, variance)`` of shape (C,); None if no group has a variance.
    """
    whole = len(x) - len(x) % examples_per_group
    if whole in (0, len(x)):
        size = examples_per_group if whole else max(len(x), 1)
        return _equal_groups(x, weight, bias, num_groups, size, eps, running_mean, running_var)
    # split, not slices: its gradient keeps the memory format
    parts = [
        _equal_groups(part, weight, bias, num_groups, size, eps, running_mean, running_var)
        for part, size in zip(
            torch.split(x, [whole, len(x) - whole]), (examples_per_group, len(x) - whole), strict=True
        )
    ]
    (first, moments), (last, last_moments) = parts
    y = torch.cat([first, last])
    if moments is None or last_moments is None:
        return y, moments
    share = (len(x) - whole) / len(x)
    return y, (moments[0].lerp(last_moments[0], share), moments[1].lerp(last_moments[1], share))


@torch.no_grad()
def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of each channel of (N, C, *) over batch and space."""
    mean, variance = group_norm_ops(x, len(x)).moments(x.shape[1])
    return mean[0], variance[0]


@torch.no_grad()
def group_moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor] | None:
    """What ``batch_group_norm`` returns as moments with one example per group, without normalising."""
    values = x[:1].numel() // num_groups
    if len(x) == 0 or values < 2:
        return None
    return _step_moments(*group_norm_ops(x, 1).moments(num_groups), values, x.shape[1])


def _equal_groups(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    size: int,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """``batch_group_norm`` of a batch that ``size`` divides."""
    channels = x.shape[1]
    values = size * (channels // num_groups) * math.prod(x.shape[2:])
    if values < 2 or len(x) == 0:
        return _single_values(x, weight, bias, eps, running_mean, running_var), None
    y, mean, variance = grouped_norm(x, weight, bias, num_groups, size, eps)
    return y, _step_moments(mean, variance, values, channels)


def _step_moments(mean: Tensor, variance: Tensor, values: int, channels: int) -> tuple[Tensor, Tensor]:
    """Moments (G, K), biased, as mean and unbiased variance (C,) averaged over the groups of examples."""
    repeats = channels // mean.shape[1]
    mean, variance = mean.mean(0), variance.mean(0) * (values / (values - 1))
    if repeats > 1:
        mean, variance = mean.repeat_interleave(repeats), variance.repeat_interleave(repeats)
    return mean, variance


def _single_values(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> Tensor:
    if running_mean is None or running_var is None:
        y = torch.zeros_like(x)
        return y if bias is None else y + bias.to(x.dtype).view((1, -1) + (1,) * (x.ndim - 2))
    # Copies: autograd keeps them, and the originals may move before the backward pass.
    mean, variance = running_mean.to(x.device, copy=True), running_var.to(x.device, copy=True)
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
