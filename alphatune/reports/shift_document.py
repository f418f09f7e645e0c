"""What a tune over several conditions found, as its part of the result."""

from __future__ import annotations

import numpy as np

from alphatune.core.metrics import INFO, Metric
from alphatune.data.conditions import Conditions
from alphatune.results.intervals import Intervals
from alphatune.results.metrics import Metrics
from alphatune.results.shift import Condition, ConditionPoint, Guard, Shift
from alphatune.statistics.conditions import conditions_of
from alphatune.statistics.gain import change_intervals
from alphatune.statistics.scores import Scores, plain_scores, summarise
from alphatune.tuning.curve import values_by_condition
from alphatune.tuning.tune import TuneResult


def describe_shift(result: TuneResult, data: Conditions) -> Shift:
    """The conditions before and after, the guards, and what is known of shifts that were not tuned on."""
    before, after = result.sweep.baseline, result.chosen_scores
    metric = result.metric
    curves = values_by_condition(result.search, result.sweep, metric)
    conditions = tuple(
        _condition(number, name, data, before, after, curves.get(number, ()), result)
        for number, name in enumerate(data.names, 1)
    )
    return Shift(
        over=result.objective.over,
        conditions=conditions,
        guards=tuple(
            Guard(
                condition=data.names[guard.condition - 1],
                metric=guard.metric,
                margin=guard.margin,
                cost=cost,
                bound=bound,
                passed=passed,
                reason=guard.says(cost, bound, data.names) if not passed else guard.kept(cost, data.names),
            )
            for guard, cost, bound, passed in result.objective.judge(after, before, "deploy")
        ),
        worst=(
            _worst(tuple(c.baseline for c in conditions), metric),
            _worst(tuple(c.chosen for c in conditions), metric),
        ),
        unseen=result.unseen.each,
        unseen_mean=result.unseen.mean,
    )


def _condition(
    number: int,
    name: str,
    data: Conditions,
    before: Scores,
    after: Scores,
    curve: tuple[tuple[float, float, bool], ...],
    result: TuneResult,
) -> Condition:
    rows = np.flatnonzero(conditions_of(before.ids) == number)
    pair = plain_scores(after.take(rows)), plain_scores(before.take(rows))
    shift = data.shifts[number - 1]
    ci: Intervals = {}
    if result.changes_model and len(rows) > 1:
        ci.update(change_intervals(*pair, seed=result.seed).items())
    return Condition(
        name=name,
        made=shift is not None,
        severities=() if shift is None else shift.severities,
        source=data.batches_of(number).examples.source,
        baseline=summarise(pair[1]),
        chosen=summarise(pair[0]),
        ci=ci,
        curve=tuple(ConditionPoint(alpha=a, value=v, measured=m) for a, v, m in curve),
    )


def _worst(metrics: tuple[Metrics, ...], metric: Metric) -> float:
    """The metric in the worst of some conditions."""
    sign = INFO[metric].sign
    return float(sign * min(sign * each[metric] for each in metrics))
