"""The curve over α: metrics at each point, measured or interpolated, with paired intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphatune.core.metrics import MEANS, Metric
from alphatune.results.metrics import Metrics
from alphatune.statistics.conditions import by_image, conditions_of, mean_over_conditions
from alphatune.statistics.gain import paired_difference, paired_interval
from alphatune.statistics.scores import Scores, expected_calibration_error, summarise
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
    ci: dict[str, Interval]


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
    baseline = summarise(measured.baseline)
    points = []
    for index, t in enumerate(search.grid):
        alpha = round(abs(baseline_alpha - t), 12)
        if alpha in exact:
            points.append(_measured(alpha, exact[alpha], measured.baseline))
            continue
        rows = [part for part in search.curve if part.points > index]

        def at(name: str, point: int, rows: list = rows) -> NDArray[np.float64]:  # type: ignore[type-arg]
            return np.concatenate([part.values(name)[point] for part in rows]).astype(np.float64)

        ids = np.concatenate([part.ids for part in rows])
        ece = [
            expected_calibration_error(at("confidence", i).astype(np.float32), at("top1", i) > 0)
            for i in (0, index)
        ]
        seen = sum(map(len, rows))
        whole = seen == len(measured.baseline)  # nothing to estimate: these are the examples
        values = {"ece": ece[1] if whole else max(0.0, baseline.ece + ece[1] - ece[0])}
        ci: dict[str, Interval] = {}
        for metric in MEANS:
            here = at(metric, index)
            difference = here - at(metric, 0)
            ci[metric] = paired_interval(by_image(difference, ids))
            change = float(mean_over_conditions(difference, ids))
            estimate = _within(metric, getattr(baseline, metric) + change)
            values[metric] = float(mean_over_conditions(here, ids)) if whole else estimate
        points.append(CurvePoint(alpha, whole and t in search.nodes, Metrics(n=seen, **values), ci))
    return tuple(points)


def values_by_condition(
    search: Search | None, measured: Sweep, metric: Metric
) -> dict[int, tuple[tuple[float, float, bool], ...]]:
    """The curve of a metric under each condition, by its number: α, value, and whether it was measured on all images.

    Where logits were interpolated for some images, it is the exact baseline plus the paired difference.
    """
    base, exact = measured.baseline, dict(zip(measured.alphas, measured.scores, strict=True))
    number = conditions_of(base.ids)
    grid = (
        {}
        if search is None
        else {round(abs(measured.baseline_alpha - t), 12): i for i, t in enumerate(search.grid)}
    )
    parts = () if search is None else search.curve
    curves = {}
    for k in np.unique(number):
        own = number == k
        before = float(getattr(base, metric)[own].mean())
        rows = []
        for alpha in sorted({*exact, *grid}):
            if alpha in exact:
                rows.append((alpha, float(getattr(exact[alpha], metric)[own].mean()), True))
                continue
            point = grid[alpha]
            changes = [
                part.values(metric)[point, mine].astype(np.float64) - part.values(metric)[0, mine]
                for part in parts
                if part.points > point
                for mine in [conditions_of(part.ids) == k]
            ]
            if sum(map(len, changes)):
                change = float(np.concatenate(changes).mean())
                rows.append((alpha, _within(metric, before + change), False))
        curves[int(k)] = tuple(rows)
    return curves


def _measured(alpha: float, scores: Scores, baseline: Scores) -> CurvePoint:
    ci: dict[str, Interval] = {}
    if len(scores) > 1:
        ci = {m: paired_difference(scores, baseline, m) for m in MEANS}
    return CurvePoint(alpha, True, summarise(scores), ci)


def _within(metric: str, value: float) -> float:
    """An estimate that adds up differences stays a fraction, or a loss."""
    return max(0.0, value) if metric == "loss" else min(1.0, max(0.0, value))
