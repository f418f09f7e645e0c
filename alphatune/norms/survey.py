"""Which norm layers a model has, and which of them can be example-weighted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from timm.layers.evo_norm import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2
from timm.layers.inplace_abn import InplaceAbn
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from alphatune.norms.calibrated import UNCALIBRATED, Calibrated, can_be_calibrated
from alphatune.norms.example_weighted import EXAMPLE_WEIGHTED, STOCK

#: ``patchable``    keeps moving averages, its own or calibrated ones, and is of a known kind
#: ``patched``      already example-weighted
#: ``calibratable`` keeps no moving averages, but they can be measured for it
#: ``skipped``      nothing to do: the layer never normalises by moving averages
#: ``unsupported``  normalises by moving averages or by the batch, in a way
#:                  alphatune does not know; tuning around it needs consent
Status = Literal["patchable", "patched", "calibratable", "skipped", "unsupported"]


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
    ``running_mean`` or ``running_var`` appears, so that an unknown relative of
    BatchNorm is reported rather than passed over.
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
    return "running_mean" in module._buffers or "running_var" in module._buffers


def _kind(module: nn.Module) -> str:
    """The name of the stock layer."""
    kind = STOCK.get(type(module), type(module))
    return UNCALIBRATED.get(kind, kind).__name__


def _judge(module: nn.Module, auxiliary: bool) -> tuple[Status, str]:
    kind = type(module).__name__
    if auxiliary:
        return "skipped", "auxiliary norm of a SplitBatchNorm2d, used in training only"
    if type(module) in STOCK:
        return "patched", ""
    if can_be_calibrated(module):
        return "calibratable", "keeps no moving averages to mix with: --calibrate (calibrate_) measures them"
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
    if type(module) not in EXAMPLE_WEIGHTED:
        if isinstance(module, _BatchNorm):
            return "unsupported", f"{kind} is a subclass of BatchNorm that may normalise differently"
        return "unsupported", f"{kind} holds moving averages but is of no known kind"
    if "forward" in module.__dict__:
        return "unsupported", "its forward was replaced on the instance, by a hook library perhaps"
    if module._buffers.get("running_mean") is None or module._buffers.get("running_var") is None:
        return (
            "unsupported",
            "keeps no moving averages (track_running_stats=False): it normalises by the test batch",
        )
    return "patchable", ""


def _num_features(module: nn.Module) -> int | None:
    for attribute in ("num_features", "num_channels"):
        if isinstance(value := getattr(module, attribute, None), int):
            return value
    for tensor in (module._buffers.get("running_mean"), getattr(module, "weight", None)):
        if tensor is not None:
            return int(tensor.shape[0])
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[0])
    return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
