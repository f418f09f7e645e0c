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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alphatune.kernels.grouped import group_norm_ops, grouped_norm


class GroupMoments(NamedTuple):
    """Moments of G groups of consecutive examples × K of contiguous channels, in order.

    Args:
        mean, variance: (G, K), the variance biased.
        size, last: examples of each group, and of the last one.
        values: of an example in a group of channels.
    """

    mean: Tensor
    variance: Tensor
    size: int
    last: int
    values: int

    @property
    def examples(self) -> int:
        """How many examples all groups have."""
        return self.size * (len(self.mean) - 1) + self.last

    def average(self, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and *unbiased* variance (C,), averaged over the groups of examples by their size and repeated over the
        channels of a group."""
        values = self._examples() * self.values
        unbiased = self.variance * (values / (values - 1))
        repeats = channels // self.mean.shape[1]
        share = self._share()
        return tuple((share * each).sum(0).repeat_interleave(repeats) for each in (self.mean, unbiased))  # type: ignore[return-value]

    def of_batch(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (K,) of all values of the batch: within the groups and between them."""
        share = self._share()
        mean = (share * self.mean).sum(0)
        return mean, (share * (self.variance + (self.mean - mean).square())).sum(0)

    def _examples(self) -> Tensor:
        counts = self.mean.new_full((len(self.mean), 1), self.size)
        counts[-1] = self.last
        return counts

    def _share(self) -> Tensor:
        return self._examples() / self.examples


def batch_group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    examples_per_group: int,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
) -> tuple[Tensor, GroupMoments | None]:
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
        ``(y, moments)``: y like x in shape, dtype and memory format; moments of
        the groups that have a variance, None if none has.
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
    mean, variance = (torch.cat(pair) for pair in zip(moments[:2], last_moments[:2], strict=True))
    return y, GroupMoments(mean, variance, moments.size, last_moments.last, moments.values)


@torch.no_grad()
def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of each channel of (N, C, *) over batch and space."""
    mean, variance = group_norm_ops(x, len(x)).moments(x.shape[1])
    return mean[0], variance[0]


@torch.no_grad()
def group_moments(x: Tensor, num_groups: int) -> GroupMoments | None:
    """What ``batch_group_norm`` returns as moments with one example per group, without normalising."""
    values = x[:1].numel() // num_groups
    if len(x) == 0 or values < 2:
        return None
    return GroupMoments(*group_norm_ops(x, 1).moments(num_groups), 1, 1, values)


def _equal_groups(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    size: int,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> tuple[Tensor, GroupMoments | None]:
    """``batch_group_norm`` of a batch that ``size`` divides."""
    channels = x.shape[1]
    values = (channels // num_groups) * math.prod(x.shape[2:])
    if size * values < 2 or len(x) == 0:
        return _single_values(x, weight, bias, eps, running_mean, running_var), None
    y, mean, variance = grouped_norm(x, weight, bias, num_groups, size, eps)
    return y, GroupMoments(mean, variance, size, size, values)


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
