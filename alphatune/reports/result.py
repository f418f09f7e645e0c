"""The result as one JSON object: what stdout, result.json and every report show.

The layout is versioned by ``schema`` and documented in docs/result.md. Numbers
are plain: accuracies are fractions, losses nats, and NaN never appears.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor

import alphatune
from alphatune.evaluation import Metrics
from alphatune.norms.patching import Alpha
from alphatune.reports.batch_statistics import batch_statistics_summary
from alphatune.tuning.curve import CurvePoint
from alphatune.tuning.gain import Gain
from alphatune.tuning.refinement import Refinement
from alphatune.tuning.tune import TuneResult

SCHEMA = 1


def tune_document(
    result: TuneResult, *, model: dict[str, Any], data: dict[str, Any], env: dict[str, Any]
) -> dict[str, Any]:
    """The result of a tune, less its artifacts, which are known only once written."""
    decision = result.decision
    return {
        "schema": SCHEMA,
        "command": "tune",
        "alphatune": alphatune.__version__,
        "command_line": "",
        "model": model,
        "data": data,
        "env": env,
        "metric": result.metric,
        "baseline_alpha": result.baseline_alpha,
        "accept": result.accept,
        "curve": [_point(point) for point in result.curve],
        "baseline": _metrics(result.baseline),
        "best": dict(decision.best),
        "chosen": {
            "alpha": _alpha(decision.alpha),
            "temperature": result.temperature,
            "metrics": _metrics(result.chosen),
        },
        "refinement": None if result.refinement is None else _refinement(result.refinement),
        "search": None if result.search is None else _search(result),
        "passes": result.passes,
        "seconds": result.seconds,
        "gain": None if decision.gain is None else gain_summary(decision.gain),
        "batch_statistics": batch_statistics_summary(result.batch_statistics),
        "decision": {
            "keep_baseline": decision.alpha == result.baseline_alpha,
            "significant": decision.gain is not None and decision.gain.significant,
            "reason": decision.reason,
        },
        "calibration": None,  # of the averages that the job measured first, if it did (averages.py)
        "recalibration": None,
        "gates": [],
        "cache": None,  # of an earlier run that this result was taken from, if it was
        "artifacts": [],
        "warnings": list(result.warnings),
    }


def evaluate_document(
    metrics: Metrics, *, model: dict[str, Any], data: dict[str, Any], env: dict[str, Any], warnings: list[str]
) -> dict[str, Any]:
    """The result of an evaluation."""
    return {
        "schema": SCHEMA,
        "command": "evaluate",
        "alphatune": alphatune.__version__,
        "model": model,
        "data": data,
        "env": env,
        "metrics": _metrics(metrics),
        "scores": None,  # where those of every example are kept, if they are
        "warnings": warnings,
    }


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Versions and settings that a number can depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tf32": False,
        "cudnn_benchmark": False,
    }


def _metrics(metrics: Metrics) -> dict[str, Any]:
    return asdict(metrics)


def _point(point: CurvePoint) -> dict[str, Any]:
    values = asdict(point.metrics)
    return {
        "alpha": point.alpha,
        "measured": point.measured,
        **values,
        "ci": {metric: list(interval) for metric, interval in point.ci.items()},
    }


def _search(result: TuneResult) -> dict[str, Any]:
    """How α was looked for: interpolation nodes, and which examples chose."""
    found, base = result.search, result.baseline_alpha
    if found is None:
        return {}
    return {
        "nodes": [round(abs(base - t), 12) for t in found.nodes],
        "range": [base, round(abs(base - found.grid[-1]), 12)],
        "choosing": len(found.choosing),
        "confirming": len(found.confirming),
        "estimated_error": found.estimated_error,
    }


def _alpha(alpha: float | dict[str, Alpha]) -> Any:
    """α as plain numbers: one, or for each layer one or one a channel."""
    if not isinstance(alpha, dict):
        return alpha
    return {
        name: [round(v, 6) for v in value.tolist()] if isinstance(value, Tensor) else value
        for name, value in alpha.items()
    }


def _refinement(refinement: Refinement) -> dict[str, Any]:
    """What finer α and temperature are worth, out of fold."""

    def gain(value: Gain | None) -> dict[str, Any] | None:
        return None if value is None else gain_summary(value)

    return {
        "granularity": refinement.levels[-1].name,
        "chosen": refinement.chosen,
        "with_temperature": refinement.joint,
        "temperature_gain": gain(refinement.temperature_gain),
        "levels": [
            {
                "level": level.name,
                "units": level.units,
                "metrics": _metrics(level.metrics),
                "calibrated": _metrics(level.calibrated),
                "temperatures": list(level.temperatures),
                "over_coarser": gain(level.over_coarser),
                "over_plain": gain(level.over_plain),
                "accepted": level.accepted,
                "steps": list(level.steps),
                "seconds": level.seconds,
                "passes": level.passes,
            }
            for level in refinement.levels
        ],
    }


def gain_summary(gain: Gain) -> dict[str, Any]:
    """A gain as plain values."""
    values = asdict(gain)
    values["ci"] = list(gain.ci)
    values["fold_alphas"] = list(gain.fold_alphas)
    return values
