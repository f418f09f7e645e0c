"""Networks whose norm layers do not all act, and layers that are subclasses: how people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

WIDTH = 8


class Net(nn.Module):
    """A stem whose norm acts, and a block to be looked at."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTH)
        self.block = block
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.bn(self.conv(x)).relu()).relu().mean((2, 3)))


class Through(nn.Module):
    """Calls its norm layer in some way."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH) if norm is None else norm
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.norm, x)


# Subclasses that infer as the class they come from ---------------------------


class Constructor(nn.BatchNorm2d):
    def __init__(self, num_features: int, momentum: float = 0.6, eps: float = 1e-3) -> None:
        super().__init__(num_features, eps=eps, momentum=1 - momentum)


class Grandchild(Constructor):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.weight, 0.5)


class Mixed(nn.Module):
    def named(self) -> str:
        return "a method of its own"


class WithMixin(Mixed, Constructor):
    pass


class AnyShape(_BatchNorm):
    """Straight from ``_BatchNorm``, as in instance-batch norms and libraries for sparse tensors."""

    checked = 0

    def _check_input_dim(self, input: Tensor) -> None:
        self.checked += 1


class Strict(nn.BatchNorm2d):
    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 4 or input.shape[2] < 2:
            raise ValueError("at least two rows")


class Relu(BatchNormAct2d):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, act_layer=nn.ReLU, inplace=False)


class Synced(nn.SyncBatchNorm):
    pass


class PositiveScale(nn.BatchNorm2d):
    """γ is computed from another parameter whenever it is read."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=False)
        self.log_scale = nn.Parameter(torch.zeros(num_features))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.log_scale.exp()


class Frozen(nn.BatchNorm2d):
    """Averages are parameters."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        for name in ("running_mean", "running_var"):
            value = self._buffers.pop(name)
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))


def parametrized() -> nn.Module:
    return register_parametrization(nn.BatchNorm2d(WIDTH), "weight", nn.Softplus())


SUBCLASSES: dict[str, Callable[[], nn.Module]] = {
    cls.__name__: lambda cls=cls: cls(WIDTH)  # type: ignore[misc]
    for cls in (
        Constructor, Grandchild, WithMixin, AnyShape, Strict, Relu, Synced, PositiveScale, Frozen,
    )
}  # fmt: skip
SUBCLASSES["parametrized"] = parametrized


# Subclasses and layers that may do something else -----------------------------


class Twice(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class TwiceByCall(nn.BatchNorm2d):
    def __call__(self, input: Tensor) -> Any:
        return 2 * super().__call__(input)


class TwiceByMixin(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)  # type: ignore[misc, no-any-return]


class MixedIn(TwiceByMixin, nn.BatchNorm2d):
    pass


class Counting(nn.BatchNorm2d):
    made: ClassVar[list[str]] = []

    def __init_subclass__(cls) -> None:
        Counting.made.append(cls.__name__)


class OwnSwitch(nn.BatchNorm2d):
    def set_alpha(self, alpha: float) -> None:
        self.alpha = alpha


def given(**attributes: Any) -> nn.Module:
    layer = nn.BatchNorm2d(WIDTH)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def replaced() -> nn.Module:
    layer = nn.BatchNorm2d(WIDTH)
    layer.forward = lambda x: F.relu(x)  # type: ignore[method-assign]
    return layer


#: with what the reason must say
UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward": (lambda: Twice(WIDTH), "may normalise differently"),
    "__call__": (lambda: TwiceByCall(WIDTH), "may normalise differently"),
    "mixin": (lambda: MixedIn(WIDTH), "may normalise differently"),
    "deriving does something": (lambda: Counting(WIDTH), "may normalise differently"),
    "a method of ours": (lambda: OwnSwitch(WIDTH), "'set_alpha' of its own"),
    "alpha": (lambda: given(alpha=0.5), "'alpha' of its own"),
    "groups": (lambda: given(num_groups=2), "'num_groups' of its own"),
    "an activation that it does not run": (lambda: given(act=nn.ReLU()), "'act' of its own"),
    "forward of the instance": (replaced, "replaced on the instance"),
    "averages computed": (
        lambda: register_parametrization(nn.BatchNorm2d(WIDTH), "running_var", nn.Softplus()),
        "computes its moving averages anew",
    ),
}


# Blocks whose norm layer acts, whatever way it is called ----------------------


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


ACTING: dict[str, Callable[[], nn.Module]] = {
    "position": lambda: Through(lambda norm, x: norm(x)),
    "keyword": lambda: Through(lambda norm, x: norm(input=x)),
    "keyword of timm": lambda: Through(lambda norm, x: norm(x=x), BatchNormAct2d(WIDTH)),
    "forward": lambda: Through(lambda norm, x: norm.forward(x)),
    "checkpoint": lambda: Through(lambda norm, x: checkpoint(norm, x, use_reentrant=False)),
    "reentrant checkpoint": lambda: Through(lambda norm, x: checkpoint(norm, x, use_reentrant=True)),
    "compiled": lambda: Through(lambda norm, x: norm(x), torch.compile(nn.BatchNorm2d(WIDTH), backend="eager")),
    "shared": Shared,
    "other weights for a call": lambda: Through(
        lambda norm, x: torch.func.functional_call(norm, {"weight": torch.ones(WIDTH)}, (x,))
    ),
}  # fmt: skip


# Blocks whose norm layer does not act ------------------------------------------


def _lend(norm: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps)


def _lend_by_keyword(norm: Any, x: Tensor) -> Tensor:
    half = {name: getattr(norm, name)[:WIDTH] for name in ("running_mean", "running_var")}
    return F.batch_norm(input=x, **half, eps=norm.eps)


def _lend_to_torch(norm: Any, x: Tensor) -> Tensor:
    averages = norm.running_mean.double().float(), norm.running_var.double().float()
    return torch.batch_norm(x, norm.weight, norm.bias, *averages, False, 0.1, norm.eps, False)


class Folding(nn.Module):
    """Folds its norm into its convolution at every call in eval mode, as re-parametrised blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.norm(self.conv(x))
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        weight = self.conv.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, self.norm.bias - self.norm.running_mean * scale)


class FoldedOnce(Folding):
    """Keeps the folded convolution from the moment it goes to eval mode."""

    def train(self, mode: bool = True) -> FoldedOnce:
        super().train(mode)
        if not mode:
            self.__dict__["folded"] = fuse_conv_bn_eval(self.conv, self.norm)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if self.training else self.folded(x)  # type: ignore[operator]


class Auxiliary(nn.Module):
    """A head for training only, in a ModuleDict."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"auxiliary": nn.BatchNorm2d(WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 0 * self.heads["auxiliary"](x)
        return x


class Training(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Training:
        return super().train(True)


#: with what the reason must say
INACTIVE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "F.batch_norm": (lambda: Through(_lend), "block passes its tensors to F.batch_norm"),
    "F.batch_norm by keyword": (lambda: Through(_lend_by_keyword), "block passes its tensors to F.batch_norm"),
    "torch.batch_norm": (lambda: Through(_lend_to_torch), "block passes its tensors to F.batch_norm"),
    "forward of the class": (
        lambda: Through(lambda norm, x: nn.BatchNorm2d.forward(norm, x)), "not reached by the forward pass",
    ),
    "folds at every call": (Folding, "block computes with its moving averages itself"),
    "folded once": (FoldedOnce, "not reached by the forward pass"),
    "for training only": (Auxiliary, "not reached by the forward pass"),
    "unknown, for training only": (
        lambda: Through(lambda norm, x: x, Twice(WIDTH)), "not reached by the forward pass",
    ),
    "stays in training mode": (lambda: Training(WIDTH), "stays in training mode"),
}  # fmt: skip


# Norms that are no layer, or a layer of somebody else's --------------------------


class Function(nn.Module):
    """Normalises by averages under names of its own."""

    def __init__(self, operator: Callable[..., Tensor] = F.batch_norm) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("variance", torch.ones(WIDTH))
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        if self.operator is F.batch_norm:
            return F.batch_norm(x, self.mean, self.variance)
        return self.operator(x, None, None, self.mean, self.variance, False, 0.1, 1e-5, False)


class ByHand(nn.Module):
    def __init__(self, mean: str, variance: str, parameters: bool = False) -> None:
        super().__init__()
        for name, value in ((mean, torch.zeros(WIDTH)), (variance, torch.ones(WIDTH))):
            if parameters:
                setattr(self, name, nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(name, value)
        self.names = mean, variance

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = (getattr(self, name)[:, None, None] for name in self.names)
        return (x - mean) / torch.sqrt(variance + 1e-5)


FOREIGN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "F.batch_norm": (Function, "calls F.batch_norm with moving averages of its own"),
    "torch.batch_norm": (
        lambda: Function(torch.batch_norm), "calls F.batch_norm with moving averages of its own",
    ),
    "aten": (
        lambda: Function(torch.ops.aten.batch_norm), "calls F.batch_norm with moving averages of its own",
    ),
    "moving_mean, moving_variance": (
        lambda: ByHand("moving_mean", "moving_variance"), "of no known kind",
    ),
    "running_mean, running_std": (
        lambda: ByHand("running_mean", "running_std"), "of no known kind",
    ),
    "parameters": (
        lambda: ByHand("running_mean", "running_var", parameters=True),
        "of no known kind",
    ),
    "TorchScript": (lambda: torch.jit.script(nn.BatchNorm2d(WIDTH)), "TorchScript"),
}  # fmt: skip


def with_statistics_(model: nn.Module) -> nn.Module:
    """Averages and affine parameters that are not those of a new layer, and eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in (*model.named_buffers(), *model.named_parameters()):
            if value.is_floating_point() and value.ndim == 1:
                low = 0.5 if "var" in name or "std" in name else -0.5
                value.uniform_(low, low + 1, generator=generator)
    model.train()
    return model.eval()


# What the command line builds ------------------------------------------------------


def bypassed() -> nn.Module:
    return with_statistics_(Net(Through(_lend)))


def all_bypassed() -> nn.Module:
    net = bypassed()
    net.bn = Through(_lend)
    return net


def unknown_for_training() -> nn.Module:
    return with_statistics_(Net(INACTIVE["unknown, for training only"][0]()))


def function() -> nn.Module:
    return with_statistics_(Net(Function()))


def subclassed() -> nn.Module:
    return with_statistics_(Net(Grandchild(WIDTH)))


def lazy() -> nn.Module:
    return Net(nn.Sequential(nn.LazyConv2d(WIDTH, 3), nn.LazyBatchNorm2d()))
