"""BatchNorm layers whose inference weighs the example in (paper section 3.1).

Each class is a subclass of the layer it stands for and differs from it in eval
mode only, and only when α > 0: same constructor, parameters, buffers and
state-dict keys. α lives in a buffer that is not saved with the weights.

    training, or α = 0     the stock layer's own forward, bit for bit
    eval and α > 0         moments.example_weighted_norm, then the drop and
                           activation that timm fuses into its layers

Because nothing but ``forward`` differs, an existing layer becomes one of these
by changing its class (surgery.py), which keeps hooks, sharing and identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from alphatune.errors import ConfigurationError
from alphatune.norms.moments import example_weighted_norm


class ExampleWeighted(nn.Module):
    """What all example-weighted layers share: α and the forward that uses it.

    ``alpha`` is a float32 tensor of shape () or, for one weight a channel,
    (C,). Writing a new value into it in place does not recompile a compiled
    model; only going to or from exactly 0 changes the code that runs.
    """

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
        self.weighs_example = bool(value.any())

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
                "0 is plain BatchNorm, 1 is InstanceNorm",
            )
        return value

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.weighs_example:
            return super().forward(x)  # type: ignore[no-any-return]
        if isinstance(self, nn.modules.batchnorm._BatchNorm):
            self._check_input_dim(x)  # type: ignore[no-untyped-call]
        y = example_weighted_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.alpha, self.eps
        )
        for name in ("drop", "act"):  # timm holds them inside its norm layers
            layer = self._modules.get(name)
            if layer is not None:
                y = layer(y)
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExampleWeighted:
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


#: The stock layer each example-weighted class stands for. Only these exact
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
}
STOCK: dict[type[nn.Module], type[nn.Module]] = {v: k for k, v in EXAMPLE_WEIGHTED.items()}
