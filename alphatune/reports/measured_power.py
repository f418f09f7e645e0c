"""What gains the examples of a tune can tell from luck, by how its scores vary."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import ndtri

from alphatune.core.metrics import INFO, SCORE, Metric
from alphatune.results.gain import Gain
from alphatune.results.power import Choice, Power
from alphatune.statistics.gain import per_example
from alphatune.statistics.gain_table import power_of
from alphatune.statistics.power import Spread, calibration_spread, spread_of
from alphatune.statistics.scores import Scores
from alphatune.tuning.custom_score import ScoreResult
from alphatune.tuning.tune import TuneResult

#: folds of a gain by fits that were each tested on the other half
_HALVES = 2


def tune_power(result: TuneResult) -> Power | None:
    """What the examples of a tune can tell from luck; None with too few of them, or only one α."""
    metric, gain, n = result.metric, result.decision.gain, len(result.sweep.baseline)
    if gain is None or result.conditions:  # images under several conditions do not vary as examples do
        return None
    if gain.folds == _HALVES:  # each half at an α, or many, of its own
        return power_of(metric, n, "halves", "measured", _spread_of_gain(gain), confidence=gain.confidence)
    others = [point for point in result.curve if point.alpha != result.baseline_alpha]
    alpha: object = result.decision.alpha
    if alpha == result.baseline_alpha:
        alpha = result.decision.best[metric]
    point = next((p for p in others if p.alpha == alpha), None)
    if point is None:  # where the largest gain may have gone unseen
        point = max(others, key=lambda p: _possible(metric, p.ci, p.metrics[metric]), default=None)
    if point is None:
        return None
    after, before = _scores_at(result, point.alpha)
    if metric == "ece":
        spread = calibration_spread((after.confidence, after.top1), (before.confidence, before.top1))
    else:
        difference = per_example(after, metric) - per_example(before, metric)
        spread = spread_of(difference, INFO[metric].is_share)
    searched = result.search is not None and len(result.search.confirming) > 0
    choice: Choice = "part" if searched else gain.scheme
    return power_of(metric, n, choice, "measured", spread, alpha=point.alpha)


def score_power(result: ScoreResult) -> Power | None:
    """What the examples of a tune by a score of one's own can tell from luck; None with too few, or only one α."""
    alphas = [point.alpha for point in result.curve]
    if result.gain is None or len(alphas) < 2:
        return None
    differences = result.shares - result.shares[0]
    count = differences.shape[1]
    row = alphas.index(result.decision.best[SCORE])
    if row == 0:
        possible = differences.mean(axis=1) + 2 * differences.std(axis=1) / math.sqrt(count)
        row = 1 + int(possible[1:].argmax())
    spread = spread_of(differences[row], bool(np.isin(differences[row], (-1, 0, 1)).all()))
    if count < len(result):  # shares of groups vary as means of their examples do
        spread = Spread(spread.deviation * math.sqrt(len(result) / count))
    return power_of(SCORE, len(result), result.gain.scheme, "measured", spread, alpha=alphas[row])


def _spread_of_gain(gain: Gain) -> Spread:
    """From the width of its interval."""
    z = float(ndtri(0.5 + gain.confidence / 2))
    deviation = (gain.ci[1] - gain.ci[0]) / 2 / z * math.sqrt(gain.examples)
    return Spread(deviation, deviation**2 + gain.delta**2 if INFO[gain.metric].is_share else None)


def _possible(metric: Metric, ci: Mapping[Metric, tuple[float, float]], value: float) -> float:
    """The largest gain that an interval leaves possible; of the ECE, which has none, the value."""
    sign = INFO[metric].sign
    return max(sign * end for end in ci[metric]) if metric in ci else sign * value


def _scores_at(result: TuneResult, alpha: float) -> tuple[Scores, Scores]:
    """Scores at an α and at the unpatched model's, of the same examples."""
    swept, found = result.sweep, result.search
    if alpha in swept.alphas or found is None:
        return swept.scores[swept.alphas.index(alpha)], swept.baseline
    row = next(i for i, t in enumerate(found.grid) if round(abs(result.baseline_alpha - t), 12) == alpha)
    return found.curve.at(row), found.curve.at(0)
