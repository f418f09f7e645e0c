"""What a tune or an evaluation found, as its result: what stdout, result.json and every report show.

The layout is versioned by ``schema`` and documented in docs/result.md. Numbers
are plain: accuracies are fractions, losses nats, and NaN never appears.
"""

from __future__ import annotations

import platform
from typing import Any, cast

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor

from alphatune.core.version import VERSION
from alphatune.norms.patching import Alpha
from alphatune.reports.measured_power import tune_power
from alphatune.results.alpha import ModelAlpha
from alphatune.results.averages import Calibration, Recalibration
from alphatune.results.data import Data
from alphatune.results.environment import Environment, TuneEnvironment
from alphatune.results.gain import Decision
from alphatune.results.metrics import Best
from alphatune.results.model import Model
from alphatune.results.shift import Shift
from alphatune.results.tune import (
    BatchStatistics,
    Chosen,
    Point,
    Refinement,
    Search,
    TuneDocument,
)
from alphatune.results.values import Dtype
from alphatune.statistics.gain import change_intervals
from alphatune.tuning.batch_stats_baseline import BatchStatistics as ComparedStatistics
from alphatune.tuning.curve import CurvePoint
from alphatune.tuning.refinement import Refinement as Refined
from alphatune.tuning.selection import Decision as Decided
from alphatune.tuning.tune import TuneResult


def tune_document(
    result: TuneResult,
    *,
    command_line: str,
    model: Model,
    data: Data,
    env: TuneEnvironment,
    calibration: Calibration | None,
    recalibration: Recalibration | None,
    shift: Shift | None = None,
    warnings: tuple[str, ...],
) -> TuneDocument:
    """The result of a tune, less its cost, gates and artifacts, which are known only later."""
    decision = result.decision
    return TuneDocument(
        alphatune=VERSION,
        command_line=command_line,
        model=model,
        data=data,
        env=env,
        metric=result.metric,
        baseline_alpha=result.baseline_alpha,
        accept=result.accept,
        curve=tuple(_point(point) for point in result.curve),
        baseline=result.baseline,
        best=Best(**{str(metric): alpha for metric, alpha in decision.best.items()}),
        chosen=_chosen(result),
        refinement=None if result.refinement is None else _refinement(result.refinement),
        search=_search(result),
        passes=result.passes,
        seconds=result.seconds,
        gain=decision.gain,
        power=tune_power(result),
        batch_statistics=_batch_statistics(result.batch_statistics),
        shift=shift,
        repairs=result.refinement.repairs if result.refinement else None,
        label_curve=result.refinement.label_curve if result.refinement else None,
        decision=describe_decision(decision, not result.changes_layers),
        calibration=calibration,
        recalibration=recalibration,
        artifacts=(),
        warnings=warnings,
    )


def describe_decision(decision: Decided, keep_baseline: bool) -> Decision:
    """Whether the unpatched model is kept, and why."""
    significant = decision.gain is not None and decision.gain.significant
    return Decision(keep_baseline=keep_baseline, significant=significant, reason=decision.reason)


def environment(device: torch.device, dtype: torch.dtype) -> Environment:
    """Versions and settings that a number can depend on."""
    return Environment(
        python=platform.python_version(),
        torch=str(torch.__version__),
        torchvision=torchvision.__version__,
        timm=timm.__version__,
        numpy=np.__version__,
        platform=platform.platform(),
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        dtype=cast("Dtype", str(dtype).removeprefix("torch.")),
        threads=torch.get_num_threads(),
    )


def _chosen(result: TuneResult) -> Chosen:
    """What is deployed, with intervals where it is not the unpatched model and there are examples to tell."""
    before, after = result.sweep.baseline, result.chosen_scores
    ci: Any = {}
    if result.changes_model and len(before) > 1:
        ci = change_intervals(after, before, seed=result.seed)
    return Chosen(alpha=_alpha(result.alpha), temperature=result.temperature, metrics=result.chosen, ci=ci)


def _point(point: CurvePoint) -> Point:
    ci: Any = point.ci
    return point.metrics.extended(Point, alpha=point.alpha, measured=point.measured, ci=ci)


def _batch_statistics(compared: ComparedStatistics | None) -> BatchStatistics | None:
    """Metrics and intervals as those of a point of the curve, and how far they depend on companions."""
    if compared is None:
        return None
    return compared.metrics.extended(
        BatchStatistics,
        pseudo_count=compared.pseudo_count,
        batch_size=compared.batch_size,
        ci=compared.ci,
        changed=compared.changed,
    )


def _search(result: TuneResult) -> Search | None:
    """How α was looked for: interpolation nodes, and which examples chose."""
    found, base = result.search, result.baseline_alpha
    if found is None:
        return None
    return Search(
        nodes=tuple(round(abs(base - t), 12) for t in found.nodes),
        range=(base, round(abs(base - found.grid[-1]), 12)),
        choosing=len(found.choosing),
        confirming=len(found.confirming),
        estimated_error=found.estimated_error,
    )


def _alpha(alpha: float | dict[str, Alpha]) -> ModelAlpha:
    """α as plain numbers: one, or for each layer one or one a channel."""
    if not isinstance(alpha, dict):
        return alpha
    return {
        name: [round(v, 6) for v in value.tolist()] if isinstance(value, Tensor) else value
        for name, value in alpha.items()
    }


def _refinement(refined: Refined) -> Refinement:
    """What finer α and temperature are worth, out of fold."""
    return Refinement(
        granularity=refined.levels[-1].name,
        chosen=refined.chosen,
        with_temperature=refined.joint,
        temperature_gain=refined.temperature_gain,
        levels=refined.levels,
        front=refined.front,
    )
