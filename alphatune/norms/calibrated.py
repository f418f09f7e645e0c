"""Norms that normalise by the example alone, with the moments of a data set beside them (paper Fig. 2).

GroupNorm, InstanceNorm and LayerNorm over the channels of a map keep no moving
averages, so there is nothing to weigh the example against. What calibration
(models/calibration.py) measures for them is kept here, in two buffers (C,):

    running_mean, running_var    float32 whatever the model's dtype, on the
                                 model's device, and in no state dict

Forward is the stock layer's, bit for bit, which is α = 1; example weighting
mixes with the buffers at α < 1. Keys of a state dict are the stock layer's: a
tuned folder has the moments in a file of their own (models/bundle.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers.norm import GroupNorm as TimmGroupNorm
from timm.layers.norm import GroupNorm1 as TimmGroupNorm1
from timm.layers.norm import LayerNorm2d as TimmLayerNorm2d
from timm.layers.norm_act import GroupNorm1Act, GroupNormAct, LayerNormAct2d
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torchvision.models.convnext import LayerNorm2d

if TYPE_CHECKING:
    from typing_extensions import Self


class Calibrated(nn.Module):
    """What all calibrated layers share: the moments."""

    running_mean: Any
    running_var: Any

    def keep_moments(self, mean: Tensor, variance: Tensor) -> None:
        """Keep copies of moments (C,), in place of older ones."""
        with torch.inference_mode(False):  # a tensor made in inference mode could not be changed after it
            for name, value in (("running_mean", mean), ("running_var", variance)):
                kept = value.detach().to(torch.float32, copy=True)
                self.register_buffer(name, kept, persistent=False)

    def forget_moments(self) -> None:
        """Remove what ``keep_moments`` added."""
        for name in ("running_mean", "running_var"):
            self._non_persistent_buffers_set.discard(name)
            if isinstance(self, _InstanceNorm):
                self._buffers[name] = None  # as its constructor leaves it
            else:
                del self._buffers[name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # model.half() must not round them: follow the device, not the dtype.
        before = {name: self._buffers[name] for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, kept in before.items():
            moved = self._buffers[name]
            if kept is not None and moved is not None:
                self._buffers[name] = beside(kept, moved)
        return self


def beside(kept: Tensor, other: Tensor) -> Tensor:
    """A tensor on the device of another; it stays where it is while that is on meta, which would lose its values."""
    return kept if other.is_meta else kept.to(other.device)


class _CalibratedInstanceNorm(Calibrated):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        # The stock layer's call without its buffers: those it is given it moves, in eval mode, too.
        layer: Any = self
        return F.instance_norm(
            input, None, None, layer.weight, layer.bias, True, layer.momentum or 0.0, layer.eps
        )


class CalibratedGroupNorm(Calibrated, nn.GroupNorm):
    """``nn.GroupNorm`` on (N, C, *)."""


class CalibratedTimmGroupNorm(Calibrated, TimmGroupNorm):
    """timm's ``GroupNorm``, which takes the channels first."""


class CalibratedTimmGroupNorm1(Calibrated, TimmGroupNorm1):
    """timm's ``GroupNorm1``: one group."""


class CalibratedGroupNormAct(Calibrated, GroupNormAct):
    """timm's ``GroupNormAct``: norm, drop and activation in one layer."""


class CalibratedGroupNorm1Act(Calibrated, GroupNorm1Act):
    """timm's ``GroupNorm1Act``: one group, drop and activation."""


class CalibratedInstanceNorm1d(_CalibratedInstanceNorm, nn.InstanceNorm1d):
    """``nn.InstanceNorm1d`` without moving averages of its own, on (N, C, L)."""


class CalibratedInstanceNorm2d(_CalibratedInstanceNorm, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` without moving averages of its own, on (N, C, H, W)."""


class CalibratedInstanceNorm3d(_CalibratedInstanceNorm, nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` without moving averages of its own, on (N, C, D, H, W)."""


class CalibratedLayerNorm2d(Calibrated, LayerNorm2d):
    """torchvision's ``LayerNorm2d``: each position of (N, C, H, W) by its channels."""


class CalibratedTimmLayerNorm2d(Calibrated, TimmLayerNorm2d):
    """timm's ``LayerNorm2d``: each position of (N, C, H, W) by its channels."""


class CalibratedLayerNormAct2d(Calibrated, LayerNormAct2d):
    """timm's ``LayerNormAct2d``: ``LayerNorm2d``, drop and activation."""


#: What calibration makes of each stock layer. Only these exact classes are
#: calibrated: a subclass may normalise differently.
CALIBRATED: dict[type[nn.Module], type[Calibrated]] = {
    nn.GroupNorm: CalibratedGroupNorm,
    TimmGroupNorm: CalibratedTimmGroupNorm,
    TimmGroupNorm1: CalibratedTimmGroupNorm1,
    GroupNormAct: CalibratedGroupNormAct,
    GroupNorm1Act: CalibratedGroupNorm1Act,
    nn.InstanceNorm1d: CalibratedInstanceNorm1d,
    nn.InstanceNorm2d: CalibratedInstanceNorm2d,
    nn.InstanceNorm3d: CalibratedInstanceNorm3d,
    LayerNorm2d: CalibratedLayerNorm2d,
    TimmLayerNorm2d: CalibratedTimmLayerNorm2d,
    LayerNormAct2d: CalibratedLayerNormAct2d,
}
UNCALIBRATED: dict[type[nn.Module], type[nn.Module]] = {v: k for k, v in CALIBRATED.items()}


def can_be_calibrated(module: nn.Module) -> bool:
    """Whether it is a layer of a class in ``CALIBRATED``, used in the way that class stands for."""
    if type(module) not in CALIBRATED or "forward" in module.__dict__:
        return False
    if isinstance(module, _InstanceNorm):
        return module.running_mean is None and not module.track_running_stats
    return not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1


def channel_groups(module: nn.Module) -> int | None:
    """Groups of channels that a norm layer takes moments over; None keeps channels apart."""
    if isinstance(module, nn.LayerNorm):
        return 1
    groups = getattr(module, "num_groups", None)
    return groups if isinstance(groups, int) else None
