"""Turn the BatchNorm layers of a model into another kind for training, and back.

Classes change, modules do not (as in surgery.py): parameters, buffers, hooks,
eps, momentum, drop and activation stay, and so does every reference to a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.norms.batch_group import (
    BatchGroupNorm1d,
    BatchGroupNorm2d,
    BatchGroupNorm3d,
    BatchGroupNormAct2d,
)
from alphatune.norms.calibrated import Calibrated
from alphatune.norms.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, GhostBatchNormAct2d
from alphatune.norms.group import GroupNorm1d, GroupNorm2d, GroupNorm3d, GroupNormAct2d
from alphatune.norms.moving_averages import Averages, check_averages
from alphatune.norms.renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BatchRenormAct2d,
    check_schedule,
)
from alphatune.norms.survey import survey
from alphatune.norms.training_norm import TrainingNorm, check_count

NormKind = Literal["batch", "ghost", "batch-group", "group", "renorm"]

#: the class that stands for each stock layer, by kind
CLASSES: dict[NormKind, dict[type[nn.Module], type[nn.Module]]] = {
    "batch": {k: k for k in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)},
    "ghost": {
        nn.BatchNorm1d: GhostBatchNorm1d,
        nn.BatchNorm2d: GhostBatchNorm2d,
        nn.BatchNorm3d: GhostBatchNorm3d,
        BatchNormAct2d: GhostBatchNormAct2d,
    },
    "batch-group": {
        nn.BatchNorm1d: BatchGroupNorm1d,
        nn.BatchNorm2d: BatchGroupNorm2d,
        nn.BatchNorm3d: BatchGroupNorm3d,
        BatchNormAct2d: BatchGroupNormAct2d,
    },
    "group": {
        nn.BatchNorm1d: GroupNorm1d,
        nn.BatchNorm2d: GroupNorm2d,
        nn.BatchNorm3d: GroupNorm3d,
        BatchNormAct2d: GroupNormAct2d,
    },
    "renorm": {
        nn.BatchNorm1d: BatchRenorm1d,
        nn.BatchNorm2d: BatchRenorm2d,
        nn.BatchNorm3d: BatchRenorm3d,
        BatchNormAct2d: BatchRenormAct2d,
    },
}
STOCK_OF = {cls: stock for classes in CLASSES.values() for stock, cls in classes.items()}
KIND_OF: dict[type[nn.Module], NormKind] = {
    cls: kind for kind, classes in CLASSES.items() for cls in classes.values()
}


@dataclass(frozen=True)
class Norm:
    """Which normalisation a model trains with, and its parameters.

    Args:
        kind: ``batch``; ``ghost`` (paper section 3.2); ``batch-group`` and
            ``group`` (section 3.4); ``renorm`` (Ioffe 2017).
        ghost_batch_size: examples that share statistics, for ``ghost``.
        num_groups: channel groups, for ``batch-group`` and ``group``; a layer
            gets ``groups_for(channels, num_groups)`` of them.
        examples_per_group: examples that share statistics, for ``batch-group``.
        renorm: ``(start, r_end, d_end)`` of the schedule in steps, for ``renorm``.
        averages: what the moving averages hold, for ``ghost``, ``batch-group`` and ``group``.

    Raises:
        ConfigurationError: a kind that is unknown, or a number that cannot be right.
    """

    kind: NormKind = "batch"
    ghost_batch_size: int = 32
    num_groups: int = 32
    examples_per_group: int = 2
    renorm: tuple[int, int, int] = (5000, 40000, 25000)
    averages: Averages = "paper"

    def __post_init__(self) -> None:
        if self.kind not in get_args(NormKind):
            raise ConfigurationError(
                f"expected a norm of kind {', '.join(get_args(NormKind))}, got {self.kind!r}"
            )
        for name in ("ghost_batch_size", "num_groups", "examples_per_group"):
            check_count(name, getattr(self, name))
        check_averages("averages", self.averages)
        if not isinstance(self.renorm, (tuple, list)) or len(self.renorm) != 3:
            raise ConfigurationError(f"renorm must be (start, r_end, d_end) in steps, got {self.renorm!r}")
        object.__setattr__(self, "renorm", tuple(self.renorm))  # JSON has lists only
        check_schedule(*self.renorm)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "renorm": list(self.renorm)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Norm:
        """From ``to_dict``; what is missing takes its default, what is unknown raises ConfigurationError.

        What was written before there was a choice of averages had those of groups.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise ConfigurationError(f"a norm has {', '.join(known)}, got {unknown[0]!r}")
        return cls(**{"averages": "group", **values})


def groups_for(channels: int, num_groups: int) -> int:
    """How many groups a layer gets: the largest divisor of its channels up to ``num_groups``.

    24 channels and 32 groups give 24; 24 and 16 give 12. Where the groups divide the channels the authors' code has
    the same; elsewhere it takes groups of ⌊channels / groups⌋ channels, of which 24 and 16 give 24.
    """
    return next(groups for groups in range(min(channels, num_groups), 0, -1) if channels % groups == 0)


def convert_(model: nn.Module, norm: Norm) -> tuple[str, ...]:
    """Make every BatchNorm of a model normalise in another way in training, in place.

    Takes ``nn.BatchNorm1d/2d/3d``, timm's ``BatchNormAct2d`` and what an
    earlier conversion made of them, each shared module once. State-dict keys
    never change. A model of kind ``ghost`` or ``renorm`` infers as BatchNorm
    does, bit for bit.

    Args:
        model: any module.
        norm: which; kind ``batch`` is ``restore_stock_``.

    Returns:
        The names of all layers of that kind, in model order.

    Raises:
        UnsupportedModelError: no such layer, a patched one, or a relative of
            BatchNorm that this does not know; the model is unchanged.
    """
    if norm.kind == "batch":
        return restore_stock_(model)
    modules = dict(model.named_modules())
    chosen, unknown = [], []
    for layer in survey(model):
        module = modules[layer.name]
        if layer.status == "patched":
            raise UnsupportedModelError(
                f"layer {layer.name or '(root)'} is patched for example weighting",
                "call unpatch_(model) first",
            )
        if type(module) in STOCK_OF and "forward" not in module.__dict__:
            chosen.append(layer.name)
        elif layer.status not in ("skipped", "calibratable") and not isinstance(module, Calibrated):
            unknown.append(f"{layer.name or '(root)'} ({layer.kind})")
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UnsupportedModelError(
            f"cannot convert {', '.join(unknown[:3])}{more}: expected BatchNorm1d, 2d, 3d or BatchNormAct2d",
            "replace them by one of these, or train with the norm the model has",
        )
    if not chosen:
        raise UnsupportedModelError(
            "expected a model with BatchNorm layers to convert, found none", "train it with `norm=batch`"
        )
    if norm.kind == "renorm":
        for name in chosen:
            if modules[name].running_mean is None:
                raise UnsupportedModelError(
                    f"layer {name or '(root)'} has no moving averages to renormalise to (track_running_stats=False)"
                )
    for name in chosen:
        module = modules[name]
        become_(module, norm.kind, _settings(norm, cast("int", module.num_features)))
    return tuple(chosen)


def restore_stock_(model: nn.Module) -> tuple[str, ...]:
    """Turn converted layers back into stock BatchNorm, in place; returns their names.

    Raises:
        UnsupportedModelError: a converted layer is patched.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, TrainingNorm)]
    for name, module in layers:
        if type(module) not in STOCK_OF:
            raise UnsupportedModelError(
                f"layer {name or '(root)'} is a {type(module).__name__}", "call unpatch_(model) first"
            )
    for _, module in layers:
        become_(module, "batch", {})
    return tuple(name for name, _ in layers)


def become_(module: nn.Module, kind: NormKind, settings: Mapping[str, Any]) -> None:
    """Change one layer, of a class in ``STOCK_OF``, into another kind."""
    before: type[nn.Module] = type(module)
    after = CLASSES[kind][STOCK_OF[before]]
    removed = {name: module.__dict__.pop(name) for name in getattr(before, "settings", ())}
    module.__class__ = after
    if isinstance(module, TrainingNorm):
        try:
            module.configure(settings)
        except BaseException:
            cast("nn.Module", module).__class__ = before
            module.__dict__.update(removed)
            raise


def layer_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Layers whose inference is not BatchNorm's, as ``{name: {"kind": ..., setting: ...}}``.

    What a weights file does not say about a converted model. Ghost BatchNorm
    and batch renormalisation infer as BatchNorm does and are not listed.
    """
    found = {}
    for name, module in model.named_modules():
        for cls in type(module).__mro__:  # a patched layer is a subclass of the converted one
            if (kind := KIND_OF.get(cls)) in ("batch-group", "group"):
                layer = cast("TrainingNorm", module)
                found[name] = {"kind": kind, **{key: getattr(layer, key) for key in layer.settings}}
    return found


def apply_layer_settings_(model: nn.Module, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Undo ``layer_settings``: make the named layers those, and all others stock.

    Raises:
        UnsupportedModelError: a layer is missing or is no BatchNorm.
        ConfigurationError: settings that no layer of that kind can have.
    """
    modules = dict(model.named_modules())
    for name, values in settings.items():
        kind = values.get("kind")
        if kind not in ("batch-group", "group"):
            raise ConfigurationError(f"layer {name!r} is recorded with an unknown norm {kind!r}")
        if name not in modules or type(modules[name]) not in STOCK_OF:
            raise UnsupportedModelError(f"the model has no BatchNorm layer {name!r} to make a {kind} norm of")
        missing = [key for key in _settings(Norm(kind), 1) if key not in values and key != "averages"]
        if missing:
            raise ConfigurationError(f"layer {name!r} is recorded without {missing[0]}")
    restore_stock_(model)
    for name, values in settings.items():
        # Layers recorded before there was a choice had the averages of groups.
        become_(modules[name], values["kind"], {"averages": "group", **values})


def _settings(norm: Norm, channels: int) -> dict[str, Any]:
    groups = groups_for(channels, norm.num_groups)
    match norm.kind:
        case "ghost":
            return {"ghost_batch_size": norm.ghost_batch_size, "averages": norm.averages}
        case "batch-group":
            return {
                "num_groups": groups,
                "examples_per_group": norm.examples_per_group,
                "averages": norm.averages,
            }
        case "group":
            return {"num_groups": groups, "averages": norm.averages}
        case "renorm":
            start, r_end, d_end = norm.renorm
            return {"r_max": 3.0, "d_max": 5.0, "start": start, "r_end": r_end, "d_end": d_end}
        case "batch":
            return {}
