"""GroupNorm that also keeps moving moments, so that it can be example-weighted (paper section 3.1).

Forward is ``nn.GroupNorm``'s in training and in eval mode: every example by its
own moments, which is α = 1 of example weighting. In training the moving
averages move (moving_averages.py) as those of batch-group normalisation with
one example per group; inference at α < 1 mixes with them. As in
``nn.GroupNorm`` a group of a single value comes out as β.

The state dict has BatchNorm's keys, but stock BatchNorm that loads it
normalises by the moving averages, which is α = 0 and another model.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from alphatune.norms.batch_group import BatchGroup
from alphatune.norms.grouping import group_moments
from alphatune.norms.moving_averages import Averages, count_batch_


class Group(BatchGroup):
    """What the GroupNorm layers share.

    Args:
        num_groups: channel groups, a divisor of ``num_channels``.
        num_channels: C of an input (N, C, *).
        eps: ε.
        affine: with γ and β.
        momentum: of the moving averages; None is a cumulative average.
        averages: what they hold (moving_averages.py).
        *args, **kwargs: as the stock layer's, from track_running_stats on.

    Raises:
        ConfigurationError: ``num_groups`` does not divide ``num_channels``.
    """

    settings: ClassVar[tuple[str, ...]] = ("num_groups", "averages")
    examples_per_group = 1

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        momentum: float | None = 0.1,
        *args: Any,
        averages: Averages = "paper",
        **kwargs: Any,
    ) -> None:
        super(BatchGroup, self).__init__(num_channels, eps, momentum, affine, *args, **kwargs)
        self.configure({"num_groups": num_groups, "averages": averages})

    def normalise(self, x: Tensor) -> Tensor:
        count_batch_(self, x, group_moments(x, self.num_groups) if self.averages == "group" else None)
        return self.infer(x)

    def infer(self, x: Tensor) -> Tensor:
        # Not F.group_norm, which refuses a batch of one single value per group.
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class GroupNorm1d(Group, nn.BatchNorm1d):
    """GroupNorm with moving moments on (N, C) or (N, C, L)."""


class GroupNorm2d(Group, nn.BatchNorm2d):
    """GroupNorm with moving moments on (N, C, H, W)."""


class GroupNorm3d(Group, nn.BatchNorm3d):
    """GroupNorm with moving moments on (N, C, D, H, W)."""


class GroupNormAct2d(Group, BatchNormAct2d):  # type: ignore[misc]
    """GroupNorm with moving moments in timm's layer of norm, drop and activation."""
