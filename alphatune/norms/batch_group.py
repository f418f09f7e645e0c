"""Batch-group normalisation: groups of channels and examples share statistics (paper section 3.4).

    y = γ · (x − mean_g) / sqrt(variance_g + ε) + β

with moments over ``examples_per_group`` consecutive examples × one of
``num_groups`` groups of contiguous channels × space. One example per group is
GroupNorm; one channel per group is Ghost BatchNorm.

The moving averages (C,) are those of each channel (moving_averages.py); in
eval mode they are averaged over the group:

    mean_g = avg m,   variance_g = avg(v + (m − mean_g)²)

which is the average of x and of x² over the group. With ``averages="group"``
the layer keeps the group's moments, repeated over its channels, where this
changes nothing. A layer without moving averages uses the groups of the test
batch, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError
from alphatune.kernels.moments import average_over_groups
from alphatune.norms.grouping import batch_group_norm
from alphatune.norms.moving_averages import Averages, count_batch_
from alphatune.norms.training_norm import TrainingNorm, drop_and_act, only_argument


class BatchGroup(TrainingNorm):
    """What the batch-group layers share.

    Args:
        num_groups: channel groups, a divisor of ``num_channels``.
        num_channels: C of an input (N, C, *).
        examples_per_group: consecutive examples that share statistics.
        averages: what the moving averages hold (moving_averages.py).
        *args, **kwargs: as the stock layer's: eps, momentum, affine, ...

    Raises:
        ConfigurationError: ``num_groups`` does not divide ``num_channels``.
    """

    settings: ClassVar[tuple[str, ...]] = ("num_groups", "examples_per_group", "averages")
    num_groups: int
    examples_per_group: int
    averages: Averages = "group"  # of layers pickled before there was a choice

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        examples_per_group: int,
        *args: Any,
        averages: Averages = "paper",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_channels, *args, **kwargs)
        self.configure(
            {"num_groups": num_groups, "examples_per_group": examples_per_group, "averages": averages}
        )

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        super().check_settings(settings)
        if self.num_features % settings["num_groups"]:
            raise ConfigurationError(
                f"num_groups must divide the number of channels, got {settings['num_groups']} groups "
                f"for {self.num_features} channels"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = only_argument(args, kwargs)
        if self.training:
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[operator]
        return drop_and_act(self, self.infer(x))

    def normalise(self, x: Tensor) -> Tensor:
        y, moments = batch_group_norm(
            x,
            self.weight,
            self.bias,
            self.num_groups,
            self.examples_per_group,
            self.eps,
            self.running_mean,
            self.running_var,
        )
        if self.training:
            count_batch_(self, x, moments)
        return y

    def infer(self, x: Tensor) -> Tensor:
        """The eval forward, without drop and activation."""
        if self.running_mean is None:
            return self.normalise(x)
        mean, variance = average_over_groups(self.running_mean, self.running_var, self.num_groups)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


class BatchGroupNorm1d(BatchGroup, nn.BatchNorm1d):
    """Batch-group normalisation on (N, C) or (N, C, L)."""


class BatchGroupNorm2d(BatchGroup, nn.BatchNorm2d):
    """Batch-group normalisation on (N, C, H, W)."""


class BatchGroupNorm3d(BatchGroup, nn.BatchNorm3d):
    """Batch-group normalisation on (N, C, D, H, W)."""


class BatchGroupNormAct2d(BatchGroup, BatchNormAct2d):  # type: ignore[misc]
    """Batch-group normalisation in timm's layer of norm, drop and activation."""
