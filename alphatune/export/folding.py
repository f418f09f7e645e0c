"""Fold BatchNorms into the convolutions before them, as deployment does with a plain model.

    γ·(w∗x + b − m)/sqrt(v + ε) + β  =  (s·w)∗x + s·(b − m) + β,   s = γ/sqrt(v + ε)

Which norm follows which convolution is read from a torch.fx trace. What cannot
be traced as a whole is traced part by part. The model still runs its own
forward: the convolutions get other weights, and the norm layers change class
to do nothing but the drop and activation that timm holds inside them.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from alphatune.models.copying import stock_copy
from alphatune.norms.example_weighted import weighted_class
from alphatune.norms.survey import survey
from alphatune.norms.training_norm import drop_and_act, fused_modules

#: convolutions whose forward is known; others are tried out
_STOCK_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_UNREACHED = "no call of it was seen"


@dataclass(frozen=True)
class Folding:
    """A folded copy of a model, and what became of each norm layer with moving averages."""

    model: nn.Module
    folded: tuple[str, ...]
    kept: Mapping[str, str]  # why by name

    @property
    def norms(self) -> int:
        return len(self.folded) + len(self.kept)


class FoldedNorm(nn.Module):
    """What remains of a norm layer whose arithmetic went into the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        return drop_and_act(self, x)


def fold(model: nn.Module, *, keep: Collection[str] = ()) -> Folding:
    """Fold what can be folded, in a copy in eval mode.

    A norm layer is folded if it is of a kind that ``patch_`` knows, without
    channel groups, and normalises by moving averages what one convolution, used
    nowhere else, has put out. α is left out: the folded model is the unpatched
    one. The copy shares all other tensors with the original.

    Args:
        keep: names of norm layers to leave alone.

    Raises:
        UnsupportedModelError: the model cannot be copied.
    """
    twin = stock_copy(model)
    modules = dict(twin.named_modules())
    norms = {
        modules[layer.name]: layer.name
        for layer in survey(twin)
        if layer.status in ("patchable", "unsupported")
    }
    graphs = list(_trace(twin, norms, set()))
    calls = Counter(module for graph in graphs for module in graph.calls.values())
    kept = dict.fromkeys(norms.values(), _UNREACHED)
    pairs = []
    for graph in graphs:
        for node, norm in graph.calls.items():
            if norm in norms:
                conv = graph.calls.get(_input_of(node))
                reason = (
                    "kept on request" if norms[norm] in keep else _obstacle(graph, node, norm, conv, calls)
                )
                kept[norms[norm]] = reason
                if isinstance(conv, _ConvNd) and not reason:
                    pairs.append((conv, norm))
    for conv, norm in pairs:
        if _fold_pair_(conv, norm):
            del kept[norms[norm]]
        else:
            kept[norms[norm]] = f"its convolution ({type(conv).__name__}) computes its weights anew"
    return Folding(twin, tuple(name for name in norms.values() if name not in kept), kept)


@dataclass(frozen=True)
class _Graph:
    """One trace: the module behind each call, and modules whose tensors the forward takes directly."""

    calls: Mapping[fx.Node | None, nn.Module]
    opened: frozenset[nn.Module]


class _Tracer(fx.Tracer):
    """Looks into everything but convolutions, norm layers and what timm says cannot be traced."""

    def __init__(self, norms: Mapping[nn.Module, str]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = (_ConvNd, *get_notrace_modules())
        self.norms = norms

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, self.leaves) or m in self.norms or super().is_leaf_module(m, module_qualified_name)
        )


def _trace(root: nn.Module, norms: Mapping[nn.Module, str], seen: set[nn.Module]) -> Iterator[_Graph]:
    """The graph of a module; of its parts where it has none, and of the parts that a trace does not look into."""
    if root in seen or not any(module in norms for module in root.modules()):
        return
    seen.add(root)
    inside = list(root.children())
    if not isinstance(root, (nn.ModuleList, nn.ModuleDict)) and root not in norms:
        try:
            # Proxies are never None: an argument that is left out would seem to be there.
            parameters = inspect.signature(root.forward).parameters.values()
            defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = _Tracer(norms).trace(root, concrete_args=defaults)
        except Exception:  # control flow on values, and whatever else a model does to a proxy
            pass
        else:
            found = {n: root.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"}
            owners = (str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr")
            yield _Graph({**found}, frozenset(root.get_submodule(owner) for owner in owners))
            inside = list(found.values())
    for module in inside:
        yield from _trace(module, norms, seen)


def _input_of(node: fx.Node | None) -> fx.Node | None:
    arguments = [] if node is None else [*node.args, *node.kwargs.values()]
    return arguments[0] if arguments and isinstance(arguments[0], fx.Node) else None


def _obstacle(
    graph: _Graph, node: fx.Node | None, norm: nn.Module, conv: nn.Module | None, calls: Counter[nn.Module]
) -> str:
    """Why a norm layer stays, "" if it need not."""
    source = _input_of(node)
    known = weighted_class(type(norm))
    if known is None or known.unpatched_alpha != 0 or getattr(norm, "num_groups", None) is not None:
        return f"{type(norm).__name__} is no BatchNorm in eval mode"
    if getattr(norm, "running_mean", None) is None or "forward" in norm.__dict__:
        return "it does not normalise by moving averages"
    if not isinstance(conv, _ConvNd) or source is None:
        return "no convolution before it"
    if calls[norm] > 1 or calls[conv] > 1:
        return "used more than once"
    if len(source.users) > 1:
        return "the convolution's output is used elsewhere, too"
    if conv in graph.opened or norm in graph.opened or "weight" not in conv._parameters:
        return "the weights are used in another way, too"
    if any(m._forward_hooks or m._forward_pre_hooks for m in (conv, norm)):
        return "a hook looks at it"
    if isinstance(conv, _ConvTransposeNd) and conv.groups > 1:
        return "a transposed convolution with groups"
    return ""


@torch.no_grad()
def _fold_pair_(conv: _ConvNd, norm: nn.Module) -> bool:
    """Fold a norm layer into its convolution; False, and nothing changed, if that would compute something else."""
    before = conv.weight, conv.bias
    mean, variance, weight, bias, eps = _arithmetic(norm)
    transposed = isinstance(conv, _ConvTransposeNd)
    folded = fuse_conv_bn_weights(*before, mean, variance, eps, weight, bias, transposed)
    known = type(conv) in _STOCK_CONVOLUTIONS and "forward" not in conv.__dict__
    wanted = None if known else _try_out(conv, norm)
    conv.weight, conv.bias = folded
    if not known:
        got = _try_out(conv, None)
        if wanted is None or got is None or not _close(wanted, got):
            conv.weight, conv.bias = before
            return False
    norm._modules.update(zip(("drop", "act"), fused_modules(norm), strict=True))
    norm.__class__ = FoldedNorm
    return True


def _arithmetic(norm: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]:
    """m, v, γ, β and ε; frozen layers keep γ and β in buffers."""
    return norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps


def _try_out(conv: _ConvNd, norm: nn.Module | None) -> Tensor | None:
    """What a convolution, and the arithmetic of a norm layer, make of some noise; None if they fail."""
    extents = zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)
    sizes = [(kernel - 1) * dilation + 1 + 2 * stride for kernel, dilation, stride in extents]
    noise = torch.randn((1, conv.in_channels, *sizes), generator=torch.Generator().manual_seed(0))
    try:
        y: Tensor = conv(noise.to(conv.weight))
        if norm is not None:
            mean, variance, weight, bias, eps = _arithmetic(norm)
            y = nn.functional.batch_norm(y, mean, variance, weight, bias, False, 0.0, eps)
    except Exception:  # a convolution of somebody's own
        return None
    return y


def _close(a: Tensor, b: Tensor) -> bool:
    largest = float(a.abs().max())
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-3 * largest + 1e-6
