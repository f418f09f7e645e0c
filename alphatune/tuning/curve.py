"""The curve over α: metrics at each point, measured or interpolated, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alphatune.core.metrics import Metric
from alphatune.results.metrics import Metrics
from alphatune.statistics.conditions import conditions_of
from alphatune.statistics.gain import paired_differences
from alphatune.statistics.scores import Scores, summarise
from alphatune.tuning.search import Search
from alphatune.tuning.sweep import Sweep

Interval = tuple[float, float]


@dataclass(frozen=True)
class CurvePoint:
    """Metrics at one α, with the paired interval of each mean's difference to the unpatched model.

    ``metrics.n`` is the number of examples that were seen. Where ``measured`` is
    false logits were interpolated, for those examples, and the metrics are an
    estimate for all: the exact baseline plus the paired difference to it.
    """

    alpha: float
    measured: bool
    metrics: Metrics
    ci: Mapping[Metric, Interval]


def measured_curve(sweep: Sweep) -> tuple[CurvePoint, ...]:
    """The curve of an exact sweep."""
    return tuple(
        _measured(alpha, scores, sweep.baseline)
        for alpha, scores in zip(sweep.alphas, sweep.scores, strict=True)
    )


def interpolated_curve(search: Search, measured: Sweep, baseline_alpha: float) -> tuple[CurvePoint, ...]:
    """The curve of a search: interpolated, but for what was measured on all examples.

    Args:
        measured: exact scores of all examples, at the unpatched model's α first.
    """
    exact = dict(zip(measured.alphas, measured.scores, strict=True))
    baseline, curve = summarise(measured.baseline), search.curve
    whole = len(curve) == len(measured.baseline)  # nothing to estimate: these are the examples
    first = curve.at(0)
    plain, points = summarise(first), list[CurvePoint]()
    for index, t in enumerate(search.grid):
        alpha = round(abs(baseline_alpha - t), 12)
        if alpha in exact:
            points.append(_measured(alpha, exact[alpha], measured.baseline))
            continue
        scores = curve.at(index)
        here = summarise(scores)
        values = {
            name: here[name] if whole else _within(name, value + here[name] - plain[name])
            for name, value in baseline.items()
            if name != "n" and here.has(name)
        }
        ci = paired_differences(scores, first)
        points.append(CurvePoint(alpha, whole and t in search.nodes, Metrics(n=len(curve), **values), ci))
    return tuple(points)


def values_by_condition(
    search: Search | None, measured: Sweep, metric: Metric
) -> dict[int, tuple[tuple[float, float, bool], ...]]:
    """The curve of a metric under each condition, by its number: α, value, and whether it was measured on all images.

    Where logits were interpolated for some images, it is the exact baseline plus the paired difference.
    """
    base = measured.baseline
    number, curves = conditions_of(base.ids), {}
    for k in np.unique(number):
        own = number == k
        before = float(getattr(base, metric)[own].mean())
        rows = {
            alpha: (float(getattr(scores, metric)[own].mean()), True)
            for alpha, scores in zip(measured.alphas, measured.scores, strict=True)
        }
        if search is not None:
            part = search.curve.take(conditions_of(search.curve.ids) == k).values(metric).astype(np.float64)
            changes = (part - part[0]).mean(axis=1) if part.size else []
            for t, change in zip(search.grid, changes, strict=False):
                alpha = round(abs(measured.baseline_alpha - t), 12)
                rows.setdefault(alpha, (_within(metric, before + float(change)), False))
        curves[int(k)] = tuple((alpha, *rows[alpha]) for alpha in sorted(rows))
    return curves


def _measured(alpha: float, scores: Scores, baseline: Scores) -> CurvePoint:
    ci = paired_differences(scores, baseline) if len(scores) > 1 else {}
    return CurvePoint(alpha, True, summarise(scores), ci)


def _within(metric: str, value: float) -> float:
    """An estimate that adds up differences stays a fraction, or a loss."""
    return max(0.0, value) if metric == "loss" else min(1.0, max(0.0, value))
