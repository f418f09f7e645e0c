"""Which norm layers a model has, and which of them can be example-weighted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from timm.layers.evo_norm import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2
from timm.layers.inplace_abn import InplaceAbn
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from alphatune.norms.calibrated import UNCALIBRATED, Calibrated, can_be_calibrated
from alphatune.norms.example_weighted import ExampleWeighted, clashes, weighted_class

#: ``patchable``    keeps moving averages, its own or calibrated ones, and is of a known kind
#: ``patched``      already example-weighted
#: ``calibratable`` keeps no moving averages, but they can be measured for it
#: ``skipped``      nothing to do: the layer never normalises by moving averages
#: ``unsupported``  normalises by moving averages or by the batch, in a way
#:                  alphatune does not know; tuning around it needs consent
#: ``inactive``     one of the above that a forward pass in eval mode does not run
#:                  (watching.py finds these): α would change nothing
Status = Literal["patchable", "patched", "calibratable", "skipped", "unsupported", "inactive"]
#: names under which layers keep moving averages
_AVERAGES = {
    "running_mean", "running_var", "running_std", "moving_mean", "moving_var", "moving_variance", "moving_std",
}  # fmt: skip


@dataclass(frozen=True)
class NormLayer:
    """One normalisation layer as the survey found it."""

    name: str
    kind: str
    status: Status
    reason: str
    num_features: int | None
    eps: float | None
    momentum: float | None
    affine: bool
    aliases: tuple[str, ...] = ()  # other names of the same, shared module


def survey(model: nn.Module) -> tuple[NormLayer, ...]:
    """List every normalisation layer of a model, each shared module once.

    Layers are recognised by what they hold, not only by class: anything with a
    ``running_mean``, ``moving_variance`` or the like appears, so that an unknown
    relative of BatchNorm is reported rather than passed over. Whether a layer runs
    in a forward pass only such a pass can tell: ``watching.watched``.
    """
    auxiliary = {
        id(aux) for module in model.modules() if isinstance(module, SplitBatchNorm2d) for aux in module.aux_bn
    }
    layers = []
    for names, module in _norm_modules(model):
        status, reason = _judge(module, id(module) in auxiliary)
        layers.append(
            NormLayer(
                name=names[0],
                kind=_kind(module),
                status=status,
                reason=reason,
                num_features=_num_features(module),
                eps=_number(getattr(module, "eps", None)),
                momentum=_number(getattr(module, "momentum", None)),
                affine=getattr(module, "weight", None) is not None,
                aliases=tuple(names[1:]),
            )
        )
    return tuple(layers)


def _norm_modules(model: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _is_norm(module):
            names.setdefault(module, []).append(name)
    for module, aliases in names.items():
        yield aliases, module


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        return True
    return not _AVERAGES.isdisjoint({*module._buffers.keys(), *module._parameters.keys()})


def _kind(module: nn.Module) -> str:
    """The name of the stock layer."""
    kind: type[nn.Module] = getattr(type(module), "stock", type(module))
    return UNCALIBRATED.get(kind, kind).__name__


def _judge(module: nn.Module, auxiliary: bool) -> tuple[Status, str]:
    kind = type(module).__name__
    if auxiliary:
        return "skipped", "auxiliary norm of a SplitBatchNorm2d, used in training only"
    if isinstance(module, ExampleWeighted):
        return "patched", ""
    if can_be_calibrated(module):
        return "calibratable", "keeps no moving averages to mix with: `calibrate` (calibrate_) measures them"
    calibrated = isinstance(module, Calibrated)
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)) and not calibrated:
        return "skipped", "keeps no moving averages: the example's own moments are all it uses"
    if isinstance(module, _InstanceNorm) and not calibrated:
        if module.running_mean is None:
            return "skipped", "keeps no moving averages: the example's own moments are all it uses"
        return (
            "unsupported",
            f"{kind} with moving averages is InstanceNorm in training and BatchNorm after it",
        )
    if isinstance(module, _LazyNormBase):
        return "unsupported", f"{kind} has not seen an input yet: run one batch first"
    if isinstance(module, (EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2)):
        return "unsupported", f"{kind} keeps a moving variance but no moving mean to mix with"
    if isinstance(module, InplaceAbn):
        return (
            "unsupported",
            "InplaceAbn overwrites its input in a kernel of its own: rebuild the model with BatchNormAct2d",
        )
    if isinstance(module, torch.jit.ScriptModule):
        return "unsupported", "compiled by TorchScript: use the model it was made from"
    if weighted_class(type(module)) is None:
        if isinstance(module, _BatchNorm):
            return "unsupported", f"{kind} is a subclass of BatchNorm that may normalise differently"
        return "unsupported", f"{kind} holds moving averages but is of no known kind"
    if "forward" in module.__dict__:
        return "unsupported", "its forward was replaced on the instance, by a hook library perhaps"
    if moving_averages(module) is None:
        return (
            "unsupported",
            "keeps no moving averages (track_running_stats=False): it normalises by the test batch",
        )
    if module.running_mean is not module.running_mean or module.running_var is not module.running_var:
        return "unsupported", "computes its moving averages anew whenever they are read"
    if names := clashes(module):
        return "unsupported", f"{kind} has an attribute {names[0]!r} of its own, which alphatune cannot add"
    return "patchable", ""


def moving_averages(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """A norm layer's mean and variance (C,), buffers or parameters; None if it does not have both."""
    mean, variance = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return (mean, variance) if isinstance(mean, Tensor) and isinstance(variance, Tensor) else None


def _num_features(module: nn.Module) -> int | None:
    for attribute in ("num_features", "num_channels"):
        if isinstance(value := getattr(module, attribute, None), int):
            return value
    for tensor in (getattr(module, name, None) for name in (*sorted(_AVERAGES), "weight")):
        if isinstance(tensor, Tensor) and tensor.ndim:
            return int(tensor.shape[0])
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[0])
    return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
