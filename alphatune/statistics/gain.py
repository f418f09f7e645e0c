"""What one set of scores is worth over another of the same examples: the gain, its interval and its p.

    top1, top5   the score interval of paired proportions, McNemar's exact test on the examples that changed sides
    loss         an interval that allows for skewness, a paired t-test
    ece          a paired basic bootstrap of the whole statistic
    any other    as the loss, by each example's share (set_statistics.py)

The intervals are in intervals.py. Where α was chosen fold by fold, ``Limits``
(selection_bias.py) allow for the choosing.

scipy.stats takes half a second to import, and is imported where something is tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from alphatune.core.metrics import INFO, MEANS, SCORE, Measure, Metric
from alphatune.results.gain import Gain
from alphatune.statistics.calibration_error import expected_calibration_error
from alphatune.statistics.conditions import by_image, count_images, has_conditions
from alphatune.statistics.intervals import mean_interval, proportion_interval
from alphatune.statistics.scores import Scores
from alphatune.statistics.selection_bias import Limits
from alphatune.statistics.set_statistics import STATISTICS, statistics_of

RESAMPLES = 2000
CONFIDENCE = 0.95
#: with fewer examples no interval means anything, and the unpatched model is kept
FEWEST_EXAMPLES = 20
#: fewer examples cannot tell finer α, or a temperature, from luck
FEWEST_TO_REFINE = 100

FloatArray = NDArray[np.float64]
#: confidence (n,) and whether the prediction is right (n,)
Calibration = tuple[NDArray[np.float32], NDArray[np.bool_]]
#: gain, interval, p and method
Measured = tuple[float, tuple[float, float], float, str]


def paired_gain(
    scores: Scores,
    baseline: Scores,
    metric: Metric,
    *,
    seed: int = 0,
    comparisons: int = 1,
    folds: int = 0,
    limits: Limits | None = None,
    parts: NDArray[np.int64] | None = None,
) -> Gain:
    """Gain of the same examples' scores over others.

    Args:
        scores: of examples that each had no part in choosing how they are scored; what is paired is the
            image, whose value is the mean over its conditions (conditions.py).
        baseline: of the same examples.
        comparisons: gains that are looked at before one is believed; the interval and
            what counts as significant allow for them all (Bonferroni).
        folds: for the record.
        limits: where choosing has to be allowed for.
        parts: of the examples (n,), each scored at an α of its own: a statistic that ranks them is taken within each,
            as logits at different α have no common scale.
    """
    rng = np.random.default_rng(seed)
    confidence = 1 - (1 - CONFIDENCE) / comparisons
    if metric == "ece":
        measured = calibration_gain(
            (scores.confidence, scores.top1), (baseline.confidence, baseline.top1), rng, confidence, limits
        )
    else:
        changed = not np.array_equal(scores.loss, baseline.loss)
        difference = _differences(scores, baseline, metric, parts)
        measured = mean_gain(difference, metric, limits or Limits.without_choice(confidence), changed)
    return make_gain(metric, measured, count_images(scores.ids), folds, (), confidence)


def make_gain(
    metric: Measure,
    measured: Measured,
    examples: int,
    folds: int,
    alphas: tuple[float, ...],
    confidence: float = CONFIDENCE,
) -> Gain:
    """The gain that was measured, and whether it is significant."""
    delta, ci, p, method = measured
    significant = ci[0] > 0 and p <= 1 - confidence
    return Gain(
        metric=metric,
        delta=delta,
        ci=ci,
        p=p,
        method=method,
        confidence=confidence,
        scheme="cross-fitted",
        examples=examples,
        folds=folds,
        fold_alphas=alphas,
        significant=significant,
    )


def paired_difference(scores: Scores, baseline: Scores, metric: Metric) -> tuple[float, float]:
    """Interval of metric(scores) − metric(baseline) over the same examples.

    For the band of a curve; it is not corrected for looking at many α.
    """
    return paired_interval(INFO[metric].sign * _differences(scores, baseline, metric))


def change_intervals(scores: Scores, baseline: Scores, *, seed: int = 0) -> dict[Metric, tuple[float, float]]:
    """95 % interval of every metric's change over the same examples, in the metric's own direction.

    Statistics of the set have none over several conditions.
    """
    ci = paired_differences(scores, baseline)
    if not has_conditions(scores.ids):
        low, high = paired_gain(scores, baseline, "ece", seed=seed).ci
        ci["ece"] = (-high, -low)
    return ci


def paired_differences(scores: Scores, baseline: Scores) -> dict[Metric, tuple[float, float]]:
    """``paired_difference`` of every metric that has one."""
    names = list(MEANS)
    if not has_conditions(scores.ids):
        names += [name for name in statistics_of(baseline) if STATISTICS[name].linearised]
    return {name: paired_difference(scores, baseline, name) for name in names}


def paired_interval(difference: FloatArray) -> tuple[float, float]:
    """Interval of the mean of paired differences: Tango's score interval of right and wrong, else the normal one."""
    if difference.any() and np.isin(difference, (-1, 0, 1)).all():
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        limits = Limits.without_choice(CONFIDENCE)
        return proportion_interval(better, worse, len(difference), limits.low, limits.high)
    half = ndtri(0.5 + CONFIDENCE / 2) * difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean() - half), float(difference.mean() + half)


def _differences(
    scores: Scores, baseline: Scores, metric: Metric, parts: NDArray[np.int64] | None = None
) -> FloatArray:
    """Paired differences, larger is better, whose mean is the gain: one an image, and those of pseudo-examples."""
    statistic = STATISTICS.get(metric)
    if statistic is None or parts is None or not statistic.two_classes:
        difference = by_image(per_example(scores, metric) - per_example(baseline, metric), scores.ids)
    else:
        difference = np.empty(len(scores))
        for part in np.unique(parts):
            rows = parts == part
            difference[rows] = per_example(scores.take(rows), metric) - per_example(
                baseline.take(rows), metric
            )
    if statistic is None or statistic.changes is None or np.array_equal(scores.loss, baseline.loss):
        return difference
    changes = np.concatenate([statistic.changes(each) for each in (baseline, scores)]) / np.sqrt(2)
    n = len(difference)
    # Pseudo-examples cancel in the sum; the factor keeps the mean that of the real ones.
    return np.concatenate([difference, changes, -changes]) * ((n + 2 * len(changes)) / n)


def per_example(scores: Scores, metric: Metric) -> FloatArray:
    """One number an example, larger is better, whose mean is the metric."""
    if not INFO[metric].is_mean:
        return INFO[metric].sign * STATISTICS[metric].shares(scores)
    values: FloatArray = getattr(scores, metric).astype(np.float64)
    return INFO[metric].sign * values


def mean_gain(difference: FloatArray, metric: Measure, limits: Limits, changed: bool) -> Measured:
    """Gain of a mean over examples.

    Args:
        changed: whether any output is another. If so, and none of these examples turned
            from right to wrong or back, others may.
    """
    delta = float(difference.mean())
    # A score of one's own may be a count of right and wrong as well; a mean over conditions is none.
    counts = (INFO[metric].is_share or metric == SCORE) and bool(np.isin(difference, (-1, 0, 1)).all())
    if np.ptp(difference) == 0 and not (counts and changed):  # nothing varies: nothing to test
        return delta, (delta, delta), 1.0 if delta == 0 else 0.0, "no example differs"
    from scipy import stats

    if counts:
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        ci = proportion_interval(better, worse, len(difference), limits.low, limits.high)
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
        method = f"paired score interval, McNemar exact test ({better} better, {worse} worse)"
    else:
        ci = mean_interval(difference, limits.low, limits.high)
        p = float(stats.ttest_1samp(difference, 0.0).pvalue)
        method = "paired t interval that allows for skewness, paired t-test"
    return delta, ci, *_adjusted(p, method, limits)


def _adjusted(p: float, method: str, limits: Limits) -> tuple[float, str]:
    """p with what choosing does to it."""
    if limits.effective_tests == 1:
        return p, method
    return min(
        1.0, p * limits.effective_tests
    ), f"{method}, p times {limits.effective_tests:.2f} for choosing"


def calibration_gain(
    after: Calibration,
    before: Calibration,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    limits: Limits | None = None,
) -> Measured:
    """ECE is no mean over examples: resample the examples and compute it anew.

    Args:
        after, before: confidence (n,) and whether the prediction is right (n,), of the same examples.
    """
    plain = Limits.without_choice(confidence)
    limits = limits or plain
    rows = np.arange(len(after[0]))

    def gain(sample: Any) -> float:
        return expected_calibration_error(before[0][sample], before[1][sample]) - expected_calibration_error(
            after[0][sample], after[1][sample]
        )

    delta = gain(rows)
    if np.array_equal(after[0], before[0]) and np.array_equal(after[1], before[1]):
        return 0.0, (0.0, 0.0), 1.0, "no example differs"
    resampled = np.array([gain(rng.integers(0, len(rows), len(rows))) for _ in range(RESAMPLES)])
    tail = (1 - confidence) / 2
    # Noise adds to an ECE, in the sample and once more in each resample. Reflecting
    # the resamples about the estimate (the basic bootstrap) takes that second
    # dose out; the first makes the interval err on the side of too small a gain.
    reflected = 2 * delta - resampled
    low, high = np.quantile(reflected, [tail, 1 - tail])
    beyond = min((reflected <= 0).sum(), (reflected >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))
    # Of a gain's limits these are the ratio to those of one that had no choice.
    low = delta - (delta - float(low)) * limits.high / plain.high
    high = delta + (float(high) - delta) * limits.low / plain.low
    p, method = _adjusted(float(p), "paired basic bootstrap, conservative", limits)
    return delta, (low, high), p, method
