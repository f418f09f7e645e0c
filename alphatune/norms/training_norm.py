"""What the layers of training share: their settings, and when their own forward runs.

Each is a subclass of the stock layer it stands for, with the same parameters,
buffers and state-dict keys, and a few plain settings of its own. An existing
layer becomes one by changing its class and setting those
(conversion.py), as with example weighting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError
from alphatune.core.versions import is_at_least
from alphatune.kernels.moments import check_input
from alphatune.norms.moving_averages import check_averages

#: that before timm 1.0.31 keep drop and activation of the layer they were converted from, and run neither
_RUN_NEITHER = () if is_at_least("timm", "1.0.31") else (SplitBatchNorm2d,)
#: activations that kernels can apply while they write
_KERNEL_ACTIVATIONS: dict[type, str] = {nn.ReLU: "relu", nn.SiLU: "silu"}


class TrainingNorm(nn.Module):
    """A BatchNorm that normalises in its own way in training mode.

    In eval mode, and for all that a subclass does not say otherwise, the stock
    layer's own forward runs, bit for bit.
    """

    #: names of what makes a layer of this kind
    settings: ClassVar[tuple[str, ...]] = ()

    num_features: int
    eps: float
    momentum: float | None
    track_running_stats: bool
    running_mean: Any  # of the stock class; tensors of shape (C,) or None
    running_var: Any
    num_batches_tracked: Any
    weight: Any
    bias: Any

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Set what makes a layer of this kind; raises ConfigurationError if it cannot be right."""
        self.check_settings(settings)
        for name in self.settings:
            setattr(self, name, settings[name])

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigurationError unless the settings fit this layer."""
        for name in self.settings:
            check = check_averages if name == "averages" else check_count
            check(name, settings[name])

    def normalise(self, x: Tensor) -> Tensor:
        """The training forward, without drop and activation."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self.training:
            return super().forward(*args, **kwargs)  # type: ignore[no-any-return]
        x = only_argument(args, kwargs)
        self._check_input_dim(x)  # type: ignore[operator]
        check_input(x, self.num_features, self.weight, self.bias, self.running_mean, self.running_var)
        return drop_and_act(self, self.normalise(x))

    def extra_repr(self) -> str:
        own = ", ".join(f"{name}={getattr(self, name)}" for name in self.settings)
        return f"{super().extra_repr()}, {own}"


def check_count(name: str, value: object) -> None:
    """Raise ConfigurationError unless the value is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number of at least 1, got {value!r}")


def only_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of a norm layer, which has one, under whatever name: torch says ``input``, timm ``x``."""
    if len(args) + len(kwargs) != 1:
        raise TypeError(f"a norm layer takes one input, got {len(args) + len(kwargs)} arguments")
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


def drop_and_act(layer: nn.Module, y: Tensor) -> Tensor:
    """Apply the drop and the activation that timm holds inside its norm layers."""
    for fused in fused_modules(layer):
        if fused is not None:
            y = fused(y)
    return y


def fused_modules(layer: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The drop and the activation that a layer's stock forward runs, None for each that it does not."""
    if isinstance(layer, _RUN_NEITHER):
        return None, None
    return layer._modules.get("drop"), layer._modules.get("act")


def fused_activation(layer: nn.Module) -> str | None:
    """The activation of ``drop_and_act`` by name, if it is all that happens there and a kernel can do it."""
    drop, act = fused_modules(layer)
    name = _KERNEL_ACTIVATIONS.get(type(act))
    if name is None or not (drop is None or type(drop) is nn.Identity):
        return None
    hooked = any(m is not None and (m._forward_hooks or m._forward_pre_hooks) for m in (act, drop))
    return None if hooked else name
