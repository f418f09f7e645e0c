"""Make a trained BatchNorm network better without retraining it.

    import alphatune
    result = alphatune.tune(model, loader)          # sweep α, decide honestly
    alphatune.patch_(model, result.alpha)           # take effect, in place
    alphatune.save(model, "tuned")                  # stock keys, loads anywhere

A trailing ``_`` means "in place". Names are imported on first use, so that
``import alphatune`` does not pay for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alphatune.core.version import VERSION

if TYPE_CHECKING:
    from alphatune.models.bundle import load, save
    from alphatune.models.calibration import calibrate_, recalibrate_, uncalibrate_
    from alphatune.models.temperature import fold_temperature_, get_temperature, set_temperature_
    from alphatune.norms.batch_group import BatchGroupNorm2d
    from alphatune.norms.conversion import Norm, convert_
    from alphatune.norms.example_weighted import (
        ExampleWeightedBatchNorm1d,
        ExampleWeightedBatchNorm2d,
        ExampleWeightedBatchNorm3d,
    )
    from alphatune.norms.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
    from alphatune.norms.group import GroupNorm2d
    from alphatune.norms.patching import patch_, set_alpha_, unpatch_
    from alphatune.norms.renorm import BatchRenorm2d
    from alphatune.reports.notebook import to_html, to_text
    from alphatune.tuning.custom_score import tune_score
    from alphatune.tuning.latency import LatencyBudget
    from alphatune.tuning.set_score import SetScore, mean_average_precision, mean_iou
    from alphatune.tuning.tune import tune

__version__ = VERSION
__all__ = [
    "BatchGroupNorm2d",
    "BatchRenorm2d",
    "ExampleWeightedBatchNorm1d",
    "ExampleWeightedBatchNorm2d",
    "ExampleWeightedBatchNorm3d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GroupNorm2d",
    "LatencyBudget",
    "Norm",
    "SetScore",
    "calibrate_",
    "convert_",
    "fold_temperature_",
    "get_temperature",
    "load",
    "mean_average_precision",
    "mean_iou",
    "patch_",
    "recalibrate_",
    "save",
    "set_alpha_",
    "set_temperature_",
    "to_html",
    "to_text",
    "tune",
    "tune_score",
    "uncalibrate_",
    "unpatch_",
]

_HOME = {
    "load": "alphatune.models.bundle",
    "save": "alphatune.models.bundle",
    "fold_temperature_": "alphatune.models.temperature",
    "get_temperature": "alphatune.models.temperature",
    "set_temperature_": "alphatune.models.temperature",
    "patch_": "alphatune.norms.patching",
    "unpatch_": "alphatune.norms.patching",
    "set_alpha_": "alphatune.norms.patching",
    "LatencyBudget": "alphatune.tuning.latency",
    "SetScore": "alphatune.tuning.set_score",
    "mean_average_precision": "alphatune.tuning.set_score",
    "mean_iou": "alphatune.tuning.set_score",
    "tune": "alphatune.tuning.tune",
    "tune_score": "alphatune.tuning.custom_score",
    "calibrate_": "alphatune.models.calibration",
    "recalibrate_": "alphatune.models.calibration",
    "uncalibrate_": "alphatune.models.calibration",
    "to_html": "alphatune.reports.notebook",
    "to_text": "alphatune.reports.notebook",
    "Norm": "alphatune.norms.conversion",
    "convert_": "alphatune.norms.conversion",
    "BatchGroupNorm2d": "alphatune.norms.batch_group",
    "BatchRenorm2d": "alphatune.norms.renorm",
    "GhostBatchNorm1d": "alphatune.norms.ghost",
    "GhostBatchNorm2d": "alphatune.norms.ghost",
    "GhostBatchNorm3d": "alphatune.norms.ghost",
    "GroupNorm2d": "alphatune.norms.group",
    "ExampleWeightedBatchNorm1d": "alphatune.norms.example_weighted",
    "ExampleWeightedBatchNorm2d": "alphatune.norms.example_weighted",
    "ExampleWeightedBatchNorm3d": "alphatune.norms.example_weighted",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alphatune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
