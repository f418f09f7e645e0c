"""Ghost BatchNorm: training statistics over small groups of the batch (paper section 3.2, Eq. 4).

    y = γ · (x − mean_g) / sqrt(variance_g + ε) + β

with moments over each group g of ``ghost_batch_size`` *consecutive* examples.
A ragged last group has statistics of its own. The moving averages move once a
step (moving_averages.py), so inference is BatchNorm's and the state dict an
ordinary one.

A group with a single value per channel (a lone last example on 1×1 maps) has
no variance: it is normalised by the moving averages as they were before the
step (grouping.py).
"""

from __future__ import annotations

from typing import Any, ClassVar

from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from alphatune.norms.grouping import batch_group_norm
from alphatune.norms.moving_averages import Averages, count_batch_
from alphatune.norms.training_norm import TrainingNorm, only_argument


class Ghost(TrainingNorm):
    """What the Ghost BatchNorm layers share.

    Args:
        num_features: C of an input (N, C, *).
        ghost_batch_size: examples that share statistics.
        averages: what the moving averages hold (moving_averages.py). With
            ``group`` a batch of one group is left to the stock layer.
        *args, **kwargs: as the stock layer's: eps, momentum, affine, ...
    """

    settings: ClassVar[tuple[str, ...]] = ("ghost_batch_size", "averages")
    ghost_batch_size: int
    averages: Averages = "group"  # of layers pickled before there was a choice

    def __init__(
        self,
        num_features: int,
        ghost_batch_size: int,
        *args: Any,
        averages: Averages = "paper",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.configure({"ghost_batch_size": ghost_batch_size, "averages": averages})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = only_argument(args, kwargs)
        one_group = len(x) <= self.ghost_batch_size and x.numel() > self.num_features
        if one_group and self.averages == "group":
            return super(TrainingNorm, self).forward(x)  # type: ignore[no-any-return]
        return super().forward(x)

    def normalise(self, x: Tensor) -> Tensor:
        y, moments = batch_group_norm(
            x,
            self.weight,
            self.bias,
            self.num_features,
            self.ghost_batch_size,
            self.eps,
            self.running_mean,
            self.running_var,
        )
        count_batch_(self, x, moments)
        return y


class GhostBatchNorm1d(Ghost, nn.BatchNorm1d):
    """Ghost BatchNorm on (N, C) or (N, C, L)."""


class GhostBatchNorm2d(Ghost, nn.BatchNorm2d):
    """Ghost BatchNorm on (N, C, H, W)."""


class GhostBatchNorm3d(Ghost, nn.BatchNorm3d):
    """Ghost BatchNorm on (N, C, D, H, W)."""


class GhostBatchNormAct2d(Ghost, BatchNormAct2d):  # type: ignore[misc]
    """Ghost BatchNorm in timm's layer of norm, drop and activation."""
