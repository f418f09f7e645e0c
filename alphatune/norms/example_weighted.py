"""Norm layers whose inference weighs the example in (paper section 3.1).

Each class is a subclass of the layer it stands for and differs from it in eval
mode only, and only away from the α that the layer without it amounts to, its
``unpatched_alpha``: 0, but 1 for GroupNorm and its kin, which normalise by the
example alone. Constructor, parameters, buffers and state-dict keys are the same. α
lives in a buffer that is not saved with the weights.

    training, or α = unpatched_alpha   the layer's own forward, bit for bit
    eval and any other α               moments.example_weighted_norm in the
                                       fastest form there is (kernels/dispatch.py), then
                                       the drop and activation that timm fuses
                                       into its layers

Because nothing but ``forward`` differs, an existing layer becomes one of these
by changing its class (surgery.py), which keeps hooks, sharing and identity. The
classes are derived from those they stand for: from the known ones (``STOCK``)
here, from a subclass that inherits its forward when it is first met.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from timm.layers.norm_act import (
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    GroupNorm1Act,
    GroupNormAct,
    LayerNormAct2d,
    SyncBatchNormAct,
)
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torchvision.ops.misc import FrozenBatchNorm2d

from alphatune.core.errors import ConfigurationError
from alphatune.kernels.dispatch import activate, example_weighted_norm
from alphatune.kernels.moments import example_weighted_layer_norm
from alphatune.norms.batch_group import (
    BatchGroup,
    BatchGroupNorm1d,
    BatchGroupNorm2d,
    BatchGroupNorm3d,
    BatchGroupNormAct2d,
)
from alphatune.norms.calibrated import CALIBRATED, Calibrated, beside
from alphatune.norms.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, GhostBatchNormAct2d
from alphatune.norms.group import Group, GroupNorm1d, GroupNorm2d, GroupNorm3d, GroupNormAct2d
from alphatune.norms.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, BatchRenormAct2d
from alphatune.norms.training_norm import drop_and_act, fused_activation, only_argument

if TYPE_CHECKING:
    from typing_extensions import Self


class ExampleWeighted(nn.Module):
    """What all example-weighted layers share: α and the forward that uses it.

    ``alpha`` is a float32 tensor of shape () or, for one weight a channel,
    (C,). Writing a new value into it in place does not recompile a compiled
    model; only going to or from exactly ``unpatched_alpha`` changes the code
    that runs.
    """

    stock: ClassVar[type[nn.Module]]  # the class that this one stands for
    unpatched_alpha: ClassVar[float] = 0.0
    num_groups: Any = None  # an int in layers with channel groups
    norm_in_graph: Callable[..., Tensor] | None = None  # of kernels/graph.py, while the layer is exported
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
            alpha_buffer = beside(torch.zeros((), device="cpu"), self.running_mean)
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
        # A device of its own: within torch.device("meta") it would get that one.
        device = alpha.device if isinstance(alpha, Tensor) else "cpu"
        try:
            value = torch.as_tensor(alpha, dtype=torch.float32, device=device).detach()
        except (TypeError, ValueError, RuntimeError):
            raise ConfigurationError(f"alpha must be a number or a tensor, got {alpha!r}") from None
        if value.is_meta:
            raise ConfigurationError(
                "alpha must be a number or a tensor with values, got one on the meta device"
            )
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

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.training or not self.weighs_example:
            return super().forward(*args, **kwargs)  # type: ignore[no-any-return]
        x = only_argument(args, kwargs)
        if isinstance(self, nn.modules.batchnorm._NormBase):
            self._check_input_dim(x)  # type: ignore[no-untyped-call]
        act = fused_activation(self)
        y = self.weigh(x, act)
        return y if act else drop_and_act(self, y)

    def weigh(self, x: Tensor, act: str | None) -> Tensor:
        """Normalise (N, C, *) by the mixed moments, then apply an activation of ``kernels.activate``."""
        numbers = (
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.alpha_beside(x),
            self.eps,
        )
        if self.norm_in_graph is not None and x.ndim > 2 and x.dtype == torch.float32:
            return activate(self.norm_in_graph(x, *numbers), act)
        return example_weighted_norm(x, *numbers, self.num_groups, act)

    def alpha_beside(self, x: Tensor) -> Tensor:
        """α on the device of ``x``, where it is but for an input on the meta device."""
        return self.alpha if self.alpha.device == x.device else self.alpha.to(x.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # model.half() must not round α, nor to_empty lose it: follow the device, not the dtype.
        alpha = self.alpha
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.alpha = beside(alpha, self.running_mean)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.alpha = beside(self.alpha, self.running_mean)  # which may have come with assign=True

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle a layer of a class that was derived for it by the class it stands for."""
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        kind = type(self)
        if globals().get(kind.__name__) is kind or "stock" not in vars(kind) or reduced[1][:1] != (kind,):
            return reduced
        return (_new, (kind.stock,), *reduced[2:])

    def extra_repr(self) -> str:
        inherited = super().extra_repr()
        alpha = f"{self.alpha.item():g}" if self.alpha.ndim == 0 else "per channel"
        return f"{inherited}, alpha={alpha}" if inherited else f"alpha={alpha}"


class _ExampleWeightedGroupNorm(ExampleWeighted):
    unpatched_alpha = 1.0


class _ExampleWeightedInstanceNorm(ExampleWeighted):
    unpatched_alpha = 1.0

    def weigh(self, x: Tensor, act: str | None) -> Tensor:
        if x.ndim == self._get_no_batch_dim():  # type: ignore[operator]
            return super().weigh(x[None], act)[0]
        return super().weigh(x, act)


class _ExampleWeightedLayerNorm(ExampleWeighted):
    unpatched_alpha = 1.0
    num_groups = 1

    def weigh(self, x: Tensor, act: str | None) -> Tensor:
        y = example_weighted_layer_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.alpha_beside(x), self.eps
        )
        return activate(y, act)


class ExampleWeightedBatchNorm1d(ExampleWeighted, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` on (N, C) or (N, C, L)."""

    stock = nn.BatchNorm1d


class ExampleWeightedBatchNorm2d(ExampleWeighted, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` on (N, C, H, W)."""

    stock = nn.BatchNorm2d


class ExampleWeightedBatchNorm3d(ExampleWeighted, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` on (N, C, D, H, W)."""

    stock = nn.BatchNorm3d


def _derive(stock: type[nn.Module]) -> type[ExampleWeighted]:
    """The class that stands for a norm layer's: ``ExampleWeighted`` and its name."""
    base: type[ExampleWeighted] = ExampleWeighted
    if issubclass(stock, nn.LayerNorm):
        base = _ExampleWeightedLayerNorm
    elif issubclass(stock, _InstanceNorm):
        base = _ExampleWeightedInstanceNorm
    elif issubclass(stock, (Group, Calibrated)):
        base = _ExampleWeightedGroupNorm
    name = f"ExampleWeighted{stock.__name__}"
    says = f"``{stock.__name__}``; α = {base.unpatched_alpha:g} is its own forward."
    return type(name, (base, stock), {"__module__": __name__, "__doc__": says, "stock": stock})


#: The known layers, whose forward is known, and the class that stands for each.
EXAMPLE_WEIGHTED: dict[type[nn.Module], type[ExampleWeighted]] = {
    cls.stock: cls for cls in (ExampleWeightedBatchNorm1d, ExampleWeightedBatchNorm2d, ExampleWeightedBatchNorm3d)
}  # fmt: skip
EXAMPLE_WEIGHTED |= {
    stock: _derive(stock)
    for stock in (
        nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct, SplitBatchNorm2d, FrozenBatchNorm2d, FrozenBatchNormAct2d,
        GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, GhostBatchNormAct2d,
        BatchGroupNorm1d, BatchGroupNorm2d, BatchGroupNorm3d, BatchGroupNormAct2d,
        BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, BatchRenormAct2d,
        GroupNorm1d, GroupNorm2d, GroupNorm3d, GroupNormAct2d,
        *CALIBRATED.values(),
    )
}  # fmt: skip
globals().update({cls.__name__: cls for cls in EXAMPLE_WEIGHTED.values()})  # where pickle looks for them


#: classes that were met, and what stands for them; one each, whatever is patched how often
_MET: dict[type[nn.Module], type[ExampleWeighted] | None] = {}


def weighted_class(kind: type[nn.Module]) -> type[ExampleWeighted] | None:
    """The class that stands for a norm layer's, None where there is none.

    There is one for the known layers, and for a subclass that has its forward from
    one of them and defines nothing else anew that its inference uses.
    """
    if kind in EXAMPLE_WEIGHTED:
        return EXAMPLE_WEIGHTED[kind]
    if kind not in _MET:
        _MET[kind] = _derive(kind) if _inherits(kind) else None
    return _MET[kind]


def _inherits(kind: type[nn.Module]) -> bool:
    """Whether a class infers as a known layer does."""
    # BatchNorm1d, 2d and 3d have their forward from _BatchNorm.
    stock = next((cls for cls in kind.__mro__ if cls in EXAMPLE_WEIGHTED or cls is _BatchNorm), None)
    if (
        stock is None
        or getattr(kind, "forward", None) is not stock.forward
        or issubclass(kind, ExampleWeighted)
    ):
        return False
    between = [name for cls in kind.__mro__ if cls not in stock.__mro__ for name in vars(cls)]
    known = {name for cls in stock.__mro__ if cls not in nn.Module.__mro__ for name in vars(cls)}
    calls = {name for name in known if not name.startswith("__")} - _HARMLESS
    return (calls | _CALLS).isdisjoint(between)


#: what decides how a module is called and read, beside what a layer itself defines
_CALLS = {
    "__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__", "__init_subclass__",
}  # fmt: skip
#: what a subclass may define anew: it is called as before, or has no part in inference
_HARMLESS = {
    "_check_input_dim", "reset_parameters", "reset_running_stats", "extra_repr", "_version", "_load_from_state_dict",
}  # fmt: skip
#: layers that run the modules ``drop`` and ``act`` in them, and those with groups of channels
_FUSED = (
    BatchNormAct2d, SyncBatchNormAct, SplitBatchNorm2d, FrozenBatchNormAct2d, GroupNormAct, GroupNorm1Act,
    LayerNormAct2d,
)  # fmt: skip
_GROUPED = (BatchGroup, nn.GroupNorm)


def clashes(module: nn.Module) -> tuple[str, ...]:
    """Attributes of a layer's own that mean something else to its example-weighted class."""
    ours = {name for name in vars(ExampleWeighted) if name[:1] != "_"} - {"forward", "extra_repr"}
    ours |= {"alpha", "weighs_example", "stock"}
    if isinstance(module, _GROUPED):
        ours.discard("num_groups")
    if not isinstance(module, _FUSED):
        ours |= {"act", "drop"} & module._modules.keys()
    return tuple(sorted(name for name in ours if hasattr(module, name)))


def _new(stock: type[nn.Module]) -> Any:
    """An empty layer of the class that stands for another, as pickle asks for it."""
    kind = weighted_class(stock)
    if kind is None:
        raise ConfigurationError(
            f"no example-weighted layer stands for {stock.__module__}.{stock.__qualname__}"
        )
    return kind.__new__(kind)
