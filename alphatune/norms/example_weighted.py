"""Norm layers whose inference weighs the example in (paper section 3.1).

Each class is a subclass of the layer it stands for and differs from it in eval
mode only, and only away from the α that the layer without it amounts to, its
``unpatched_alpha``: 0, but 1 for GroupNorm and its kin, which normalise by the
example alone. Constructor, parameters, buffers and state-dict keys are the same. α
lives in a buffer that is not saved with the weights.

    training, or α = unpatched_alpha   the layer's own forward, bit for bit
    eval and any other α               moments.example_weighted_norm in the
                                       fastest form there is (kernels.py), then
                                       the drop and activation that timm fuses
                                       into its layers

Because nothing but ``forward`` differs, an existing layer becomes one of these
by changing its class (surgery.py), which keeps hooks, sharing and identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from alphatune.errors import ConfigurationError
from alphatune.norms.batch_group import (
    BatchGroupNorm1d,
    BatchGroupNorm2d,
    BatchGroupNorm3d,
    BatchGroupNormAct2d,
)
from alphatune.norms.calibrated import (
    CalibratedGroupNorm,
    CalibratedGroupNorm1Act,
    CalibratedGroupNormAct,
    CalibratedInstanceNorm1d,
    CalibratedInstanceNorm2d,
    CalibratedInstanceNorm3d,
    CalibratedLayerNorm2d,
    CalibratedLayerNormAct2d,
    CalibratedTimmGroupNorm,
    CalibratedTimmGroupNorm1,
    CalibratedTimmLayerNorm2d,
)
from alphatune.norms.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, GhostBatchNormAct2d
from alphatune.norms.group import GroupNorm1d, GroupNorm2d, GroupNorm3d, GroupNormAct2d
from alphatune.norms.kernels import activate, example_weighted_norm
from alphatune.norms.moments import example_weighted_layer_norm
from alphatune.norms.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, BatchRenormAct2d
from alphatune.norms.training_norm import drop_and_act, fused_activation

if TYPE_CHECKING:
    from typing_extensions import Self


class ExampleWeighted(nn.Module):
    """What all example-weighted layers share: α and the forward that uses it.

    ``alpha`` is a float32 tensor of shape () or, for one weight a channel,
    (C,). Writing a new value into it in place does not recompile a compiled
    model; only going to or from exactly ``unpatched_alpha`` changes the code
    that runs.
    """

    unpatched_alpha: ClassVar[float] = 0.0
    num_groups: Any = None  # an int in layers with channel groups
    eps: float
    alpha: Tensor
    weighs_example: bool
    running_mean: Any  # of the stock class; tensors of shape (C,)
    running_var: Any
    weight: Any
    bias: Any

    def __init__(self, *args: Any, alpha: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start_weighing(alpha)

    def start_weighing(self, alpha: float | Tensor) -> None:
        """Add the α buffer beside the layer's own."""
        if self.running_mean is None:
            raise ConfigurationError(
                "example weighting needs moving averages to mix with, got track_running_stats=False"
            )
        with torch.inference_mode(False):  # a tensor made in inference mode could not be changed after it
            alpha_buffer = torch.zeros((), device=self.running_mean.device)
        self.register_buffer("alpha", alpha_buffer, persistent=False)
        self.set_alpha(alpha)

    def stop_weighing(self) -> None:
        """Remove what ``start_weighing`` added."""
        del self.alpha
        del self.weighs_example

    def set_alpha(self, alpha: float | Tensor) -> None:
        """Set α, a number or a tensor () or (C,).

        Raises:
            ConfigurationError: a value outside [0, 1], or a wrong shape.
        """
        value = self.check_alpha(alpha)
        if self.alpha.shape == value.shape:
            self.alpha.copy_(value)
        else:
            self.alpha = value.to(self.alpha.device)
        # A Python flag, so that choosing the path never waits for the device.
        self.weighs_example = bool((value != self.unpatched_alpha).any())

    def check_alpha(self, alpha: float | Tensor) -> Tensor:
        """α as a float32 tensor, or the error that ``set_alpha`` would raise."""
        try:
            value = torch.as_tensor(alpha, dtype=torch.float32).detach()
        except (TypeError, ValueError, RuntimeError):
            raise ConfigurationError(f"alpha must be a number or a tensor, got {alpha!r}") from None
        channels = self.running_mean.shape[0]
        if value.shape not in ((), (channels,)):
            raise ConfigurationError(
                f"alpha must be one number or one per channel ({channels}), got shape {tuple(value.shape)}"
            )
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise ConfigurationError(
                f"alpha must lie in [0, 1], got {value.tolist()}",
                "0 is inference by moving averages alone, 1 by the example alone",
            )
        return value

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.weighs_example:
            return super().forward(x)  # type: ignore[no-any-return]
        if isinstance(self, nn.modules.batchnorm._NormBase):
            self._check_input_dim(x)  # type: ignore[no-untyped-call]
        act = fused_activation(self)
        y = self.weigh(x, act)
        return y if act else drop_and_act(self, y)

    def weigh(self, x: Tensor, act: str | None) -> Tensor:
        """Normalise (N, C, *) by the mixed moments, then apply an activation of ``kernels.activate``."""
        return example_weighted_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.alpha,
            self.eps,
            self.num_groups,
            act,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # model.half() must not round α: follow the device, not the dtype.
        alpha = self.alpha
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.alpha = alpha.to(self.running_mean.device)
        return self

    def extra_repr(self) -> str:
        inherited = super().extra_repr()
        alpha = f"{self.alpha.item():g}" if self.alpha.ndim == 0 else "per channel"
        return f"{inherited}, alpha={alpha}" if inherited else f"alpha={alpha}"


class ExampleWeightedBatchNorm1d(ExampleWeighted, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` on (N, C) or (N, C, L)."""


class ExampleWeightedBatchNorm2d(ExampleWeighted, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` on (N, C, H, W)."""


class ExampleWeightedBatchNorm3d(ExampleWeighted, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` on (N, C, D, H, W)."""


class ExampleWeightedSyncBatchNorm(ExampleWeighted, nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` on (N, C, *); inference never communicates."""


class ExampleWeightedBatchNormAct2d(ExampleWeighted, BatchNormAct2d):
    """timm's ``BatchNormAct2d``: norm, drop and activation in one layer."""


class ExampleWeightedSyncBatchNormAct(ExampleWeighted, SyncBatchNormAct):
    """timm's ``SyncBatchNormAct``, made by its ``convert_sync_batchnorm``."""


class ExampleWeightedSplitBatchNorm2d(ExampleWeighted, SplitBatchNorm2d):
    """timm's ``SplitBatchNorm2d``; its auxiliary norms act in training only."""


class ExampleWeightedFrozenBatchNorm2d(ExampleWeighted, FrozenBatchNorm2d):
    """torchvision's ``FrozenBatchNorm2d``, whose weights are buffers."""


class ExampleWeightedFrozenBatchNormAct2d(ExampleWeighted, FrozenBatchNormAct2d):
    """timm's ``FrozenBatchNormAct2d``, whose weights are buffers."""


class ExampleWeightedGhostBatchNorm1d(ExampleWeighted, GhostBatchNorm1d):
    """``GhostBatchNorm1d`` of training."""


class ExampleWeightedGhostBatchNorm2d(ExampleWeighted, GhostBatchNorm2d):
    """``GhostBatchNorm2d`` of training."""


class ExampleWeightedGhostBatchNorm3d(ExampleWeighted, GhostBatchNorm3d):
    """``GhostBatchNorm3d`` of training."""


class ExampleWeightedGhostBatchNormAct2d(ExampleWeighted, GhostBatchNormAct2d):
    """``GhostBatchNormAct2d`` of training."""


class ExampleWeightedBatchGroupNorm1d(ExampleWeighted, BatchGroupNorm1d):
    """``BatchGroupNorm1d`` of training."""


class ExampleWeightedBatchGroupNorm2d(ExampleWeighted, BatchGroupNorm2d):
    """``BatchGroupNorm2d`` of training."""


class ExampleWeightedBatchGroupNorm3d(ExampleWeighted, BatchGroupNorm3d):
    """``BatchGroupNorm3d`` of training."""


class ExampleWeightedBatchGroupNormAct2d(ExampleWeighted, BatchGroupNormAct2d):
    """``BatchGroupNormAct2d`` of training."""


class ExampleWeightedBatchRenorm1d(ExampleWeighted, BatchRenorm1d):
    """``BatchRenorm1d`` of training."""


class ExampleWeightedBatchRenorm2d(ExampleWeighted, BatchRenorm2d):
    """``BatchRenorm2d`` of training."""


class ExampleWeightedBatchRenorm3d(ExampleWeighted, BatchRenorm3d):
    """``BatchRenorm3d`` of training."""


class ExampleWeightedBatchRenormAct2d(ExampleWeighted, BatchRenormAct2d):
    """``BatchRenormAct2d`` of training."""


class ExampleWeightedGroupNorm1d(ExampleWeighted, GroupNorm1d):
    """``GroupNorm1d``; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class ExampleWeightedGroupNorm2d(ExampleWeighted, GroupNorm2d):
    """``GroupNorm2d``; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class ExampleWeightedGroupNorm3d(ExampleWeighted, GroupNorm3d):
    """``GroupNorm3d``; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class ExampleWeightedGroupNormAct2d(ExampleWeighted, GroupNormAct2d):
    """``GroupNormAct2d``; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class ExampleWeightedCalibratedGroupNorm(ExampleWeighted, CalibratedGroupNorm):
    """``nn.GroupNorm`` with calibrated moments; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class ExampleWeightedCalibratedTimmGroupNorm(ExampleWeighted, CalibratedTimmGroupNorm):
    """timm's ``GroupNorm`` with calibrated moments; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class ExampleWeightedCalibratedTimmGroupNorm1(ExampleWeighted, CalibratedTimmGroupNorm1):
    """timm's ``GroupNorm1`` with calibrated moments; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class ExampleWeightedCalibratedGroupNormAct(ExampleWeighted, CalibratedGroupNormAct):
    """timm's ``GroupNormAct`` with calibrated moments; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class ExampleWeightedCalibratedGroupNorm1Act(ExampleWeighted, CalibratedGroupNorm1Act):
    """timm's ``GroupNorm1Act`` with calibrated moments; α = 1 is its own forward."""

    unpatched_alpha = 1.0


class _ExampleWeightedInstanceNorm(ExampleWeighted):
    unpatched_alpha = 1.0

    def weigh(self, x: Tensor, act: str | None) -> Tensor:
        if x.ndim == self._get_no_batch_dim():  # type: ignore[operator]
            return super().weigh(x[None], act)[0]
        return super().weigh(x, act)


class ExampleWeightedCalibratedInstanceNorm1d(_ExampleWeightedInstanceNorm, CalibratedInstanceNorm1d):
    """``nn.InstanceNorm1d`` with calibrated moments; α = 1 is its own forward."""


class ExampleWeightedCalibratedInstanceNorm2d(_ExampleWeightedInstanceNorm, CalibratedInstanceNorm2d):
    """``nn.InstanceNorm2d`` with calibrated moments; α = 1 is its own forward."""


class ExampleWeightedCalibratedInstanceNorm3d(_ExampleWeightedInstanceNorm, CalibratedInstanceNorm3d):
    """``nn.InstanceNorm3d`` with calibrated moments; α = 1 is its own forward."""


class _ExampleWeightedLayerNorm(ExampleWeighted):
    unpatched_alpha = 1.0
    num_groups = 1

    def weigh(self, x: Tensor, act: str | None) -> Tensor:
        y = example_weighted_layer_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.alpha, self.eps
        )
        return activate(y, act)


class ExampleWeightedCalibratedLayerNorm2d(_ExampleWeightedLayerNorm, CalibratedLayerNorm2d):
    """torchvision's ``LayerNorm2d`` with calibrated moments; α = 1 is its own forward."""


class ExampleWeightedCalibratedTimmLayerNorm2d(_ExampleWeightedLayerNorm, CalibratedTimmLayerNorm2d):
    """timm's ``LayerNorm2d`` with calibrated moments; α = 1 is its own forward."""


class ExampleWeightedCalibratedLayerNormAct2d(_ExampleWeightedLayerNorm, CalibratedLayerNormAct2d):
    """timm's ``LayerNormAct2d`` with calibrated moments; α = 1 is its own forward."""


#: The layer each example-weighted class stands for. Only these exact
#: classes are patched: a subclass may normalise differently.
EXAMPLE_WEIGHTED: dict[type[nn.Module], type[ExampleWeighted]] = {
    nn.BatchNorm1d: ExampleWeightedBatchNorm1d,
    nn.BatchNorm2d: ExampleWeightedBatchNorm2d,
    nn.BatchNorm3d: ExampleWeightedBatchNorm3d,
    nn.SyncBatchNorm: ExampleWeightedSyncBatchNorm,
    BatchNormAct2d: ExampleWeightedBatchNormAct2d,
    SyncBatchNormAct: ExampleWeightedSyncBatchNormAct,
    SplitBatchNorm2d: ExampleWeightedSplitBatchNorm2d,
    FrozenBatchNorm2d: ExampleWeightedFrozenBatchNorm2d,
    FrozenBatchNormAct2d: ExampleWeightedFrozenBatchNormAct2d,
    GhostBatchNorm1d: ExampleWeightedGhostBatchNorm1d,
    GhostBatchNorm2d: ExampleWeightedGhostBatchNorm2d,
    GhostBatchNorm3d: ExampleWeightedGhostBatchNorm3d,
    GhostBatchNormAct2d: ExampleWeightedGhostBatchNormAct2d,
    BatchGroupNorm1d: ExampleWeightedBatchGroupNorm1d,
    BatchGroupNorm2d: ExampleWeightedBatchGroupNorm2d,
    BatchGroupNorm3d: ExampleWeightedBatchGroupNorm3d,
    BatchGroupNormAct2d: ExampleWeightedBatchGroupNormAct2d,
    BatchRenorm1d: ExampleWeightedBatchRenorm1d,
    BatchRenorm2d: ExampleWeightedBatchRenorm2d,
    BatchRenorm3d: ExampleWeightedBatchRenorm3d,
    BatchRenormAct2d: ExampleWeightedBatchRenormAct2d,
    GroupNorm1d: ExampleWeightedGroupNorm1d,
    GroupNorm2d: ExampleWeightedGroupNorm2d,
    GroupNorm3d: ExampleWeightedGroupNorm3d,
    GroupNormAct2d: ExampleWeightedGroupNormAct2d,
    CalibratedGroupNorm: ExampleWeightedCalibratedGroupNorm,
    CalibratedTimmGroupNorm: ExampleWeightedCalibratedTimmGroupNorm,
    CalibratedTimmGroupNorm1: ExampleWeightedCalibratedTimmGroupNorm1,
    CalibratedGroupNormAct: ExampleWeightedCalibratedGroupNormAct,
    CalibratedGroupNorm1Act: ExampleWeightedCalibratedGroupNorm1Act,
    CalibratedInstanceNorm1d: ExampleWeightedCalibratedInstanceNorm1d,
    CalibratedInstanceNorm2d: ExampleWeightedCalibratedInstanceNorm2d,
    CalibratedInstanceNorm3d: ExampleWeightedCalibratedInstanceNorm3d,
    CalibratedLayerNorm2d: ExampleWeightedCalibratedLayerNorm2d,
    CalibratedTimmLayerNorm2d: ExampleWeightedCalibratedTimmLayerNorm2d,
    CalibratedLayerNormAct2d: ExampleWeightedCalibratedLayerNormAct2d,
}
STOCK: dict[type[nn.Module], type[nn.Module]] = {v: k for k, v in EXAMPLE_WEIGHTED.items()}
