"""Choose α, and tell a gain from luck.

Scores are per example and all comparisons are paired: the same examples with
α and without. Choosing α and measuring its gain on the same examples flatters
it, so the gain is cross-fitted: α is chosen on k − 1 folds and scored on the
fold left out, for each fold in turn. The gain reported is the mean over all
left-out examples.

It estimates what choosing in this way is worth on unseen examples:

    worth = Σ_k n_k/n · E[score(α_k) − score(0)]

with α_k the choice without fold k and n_k its examples. Its interval and its p (gain.py) are
those of the worth of the choices made, and allow for the choosing (selection_bias.py). The α that is
returned is the optimum over all examples.

A search (search.py) chooses on a part of the examples, in lots. Its gain is
measured on each lot at the α that the lots before it chose, and on the examples
that chose none at the last one: exactly, and in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alphatune.core.metrics import INFO, METRICS, SCORE, Measure, Metric
from alphatune.norms.patching import Alpha
from alphatune.results.gain import Gain
from alphatune.statistics.conditions import count_images, first_of_image, has_conditions, images_of
from alphatune.statistics.gain import (
    CONFIDENCE,
    FEWEST_EXAMPLES,
    FloatArray,
    Measured,
    calibration_gain,
    make_gain,
    mean_gain,
)
from alphatune.statistics.scores import Scores, calibration_shares, concatenate, expected_calibration_error
from alphatune.statistics.selection_bias import Limits, limits_of_choosing
from alphatune.tuning.objective import Objective
from alphatune.tuning.sweep import Sweep

Accept = Literal["significant", "best"]
FOLDS = 10


@dataclass(frozen=True)
class Decision:
    """Which α to deploy, and why."""

    alpha: float | dict[str, Alpha]  # one for all layers, or each layer's
    reason: str
    candidate: float  # the best α for all layers, as those examples have it that chose
    best: dict[Any, float]  # optimum of each metric, where it is known
    gain: Gain | None  # None with fewer than FEWEST_EXAMPLES examples


def select(
    sweep: Sweep,
    objective: Objective | Metric,
    *,
    accept: Accept = "significant",
    seed: int = 0,
    folds: int = FOLDS,
) -> Decision:
    """Choose α for a metric and decide whether it helps.

    With ``accept="significant"`` an α other than the baseline's needs a cross-fitted gain whose interval
    lies above 0 and a p-value within 1 − confidence.
    With ``accept="best"`` the optimum is taken whatever its gain.
    """
    objective = Objective(objective) if isinstance(objective, str) else objective
    metric, n = objective.metric, count_images(sweep.baseline.ids)
    best = {m: sweep.alphas[best_index(sweep, Objective(m))] for m in METRICS}
    best[metric] = sweep.alphas[best_index(sweep, objective)]
    gain = None
    if n >= FEWEST_EXAMPLES:
        gain = cross_fitted_gain(sweep, objective, seed=seed, folds=folds)
    return decide(metric, best[metric], best, sweep.baseline_alpha, gain, n, accept)


def select_by_score(
    values: FloatArray,
    alphas: Sequence[float],
    strata: NDArray[np.int64],
    *,
    accept: Accept = "significant",
    seed: int = 0,
    folds: int = FOLDS,
) -> Decision:
    """Choose α by scores of one's own and decide whether it helps, as ``select`` does by a metric.

    Args:
        values: scores (alphas, n), larger is better.
        alphas: the unpatched model's first.
        strata: what is spread evenly over the folds (n,), such as classes.
    """
    n = values.shape[1]
    best = alphas[_best_row(values)]
    gain = None
    if n >= FEWEST_EXAMPLES:
        folds = max(2, min(folds, n // 2))
        rng = np.random.default_rng(seed)
        chosen, measured = _cross_fitted_mean(values, _stratified_folds(strata, folds, rng), SCORE, rng)
        gain = make_gain(SCORE, measured, "cross-fitted", n, folds, tuple(alphas[i] for i in chosen))
    return decide(SCORE, best, {SCORE: best}, alphas[0], gain, n, accept)


def _best_row(values: FloatArray) -> int:
    return int(np.argmax([row.mean() for row in values]))


def decide(
    metric: Measure,
    alpha: float,
    best: dict[Any, float],
    baseline: float,
    gain: Gain | None,
    examples: int,
    accept: Accept,
    objection: str = "",
) -> Decision:
    """Deploy α, the best by the metric, if its gain is significant, or if ``accept`` is "best".

    Args:
        objection: what a guard has against α.
    """
    name, chosen = INFO[metric].name, baseline
    if gain is None:
        reason = f"{examples} examples are too few to tell a gain from luck"
        chosen = alpha if accept == "best" else baseline
    elif alpha == baseline:
        reason = f"no α > 0 has a better {name} than plain BatchNorm"
        if baseline != 0:
            reason = f"no other α has a better {name} than {baseline:g}"
    elif objection:
        reason = objection
    elif gain.significant:
        reason, chosen = f"the gain in {name} is significant", alpha
    elif accept == "best":
        reason, chosen = f"the gain in {name} is not significant, but `accept=best` was asked for", alpha
    else:
        reason = f"the gain in {name} is not significant"
    return Decision(chosen, reason, alpha, best, gain)


def best_index(
    sweep: Sweep, objective: Objective | Metric, rows: NDArray[np.int64] | NDArray[np.bool_] | None = None
) -> int:
    """Index of the best α on some examples; among equals the nearest to the unpatched model wins."""
    objective = Objective(objective) if isinstance(objective, str) else objective
    scores = sweep.scores if rows is None else [s.take(rows) for s in sweep.scores]
    if not INFO[objective.metric].is_mean:
        return int(np.argmax([-expected_calibration_error(s.confidence, s.top1) for s in scores]))
    return objective.best(lambda metric: np.stack([getattr(s, metric) for s in scores]), scores[0].ids)


def cross_fitted_gain(
    sweep: Sweep, objective: Objective | Metric, *, seed: int = 0, folds: int = FOLDS
) -> Gain:
    """Choose on k − 1 folds, score on the other; see the module's text."""
    objective = Objective(objective) if isinstance(objective, str) else objective
    metric, ids = objective.metric, sweep.baseline.ids
    n = count_images(ids)
    folds = max(2, min(folds, n // 2))
    rng = np.random.default_rng(seed)
    targets = sweep.baseline.targets
    fold = _stratified_folds(targets[first_of_image(ids)] if has_conditions(ids) else targets, folds, rng)
    if not INFO[metric].is_mean:
        chosen = np.array([best_index(sweep, metric, np.flatnonzero(fold != k)) for k in range(folds)])
        shares = np.stack([calibration_shares(s.confidence, s.top1) for s in sweep.scores])
        limits = _limits(shares[0] - shares, fold, chosen, rng)
        rows = np.arange(n)
        confidence = np.stack([s.confidence for s in sweep.scores])[chosen[fold], rows]
        correct = np.stack([s.top1 for s in sweep.scores])[chosen[fold], rows]
        measured = calibration_gain(confidence, correct, sweep.baseline, rng, limits=limits)
    else:
        values = objective.per_image(np.stack([getattr(s, metric) for s in sweep.scores]), ids)
        given = None
        if not objective.is_plain_mean:
            of_image = fold[np.unique(images_of(ids), return_inverse=True)[1]]
            given = np.array([best_index(sweep, objective, of_image != k) for k in range(folds)])
        chosen, measured = _cross_fitted_mean(values, fold, metric, rng, given)
    return make_gain(metric, measured, "cross-fitted", n, folds, tuple(sweep.alphas[i] for i in chosen))


def _cross_fitted_mean(
    values: FloatArray,
    fold: NDArray[np.int64],
    metric: Measure,
    rng: np.random.Generator,
    chosen: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], Measured]:
    """The best row of scores (alphas, n) without each fold, or the one that was chosen, and its gain on the fold."""
    # Row by row, so that equal rows have equal sums and the first of them wins.
    sums = np.stack([np.bincount(fold, weights=row) for row in values])
    others = (sums.sum(axis=1, keepdims=True) - sums) / (len(fold) - np.bincount(fold))
    chosen = others.argmax(axis=0) if chosen is None else chosen
    differences = values - values[0]
    limits = _limits(differences, fold, chosen, rng)
    difference = differences[chosen[fold], np.arange(len(fold))]
    return chosen, mean_gain(difference, metric, limits, changed=bool(chosen.any()))


def _limits(
    differences: FloatArray, fold: NDArray[np.int64], chosen: NDArray[np.int64], rng: np.random.Generator
) -> Limits:
    """Those that allow for choosing, where any fold chose something."""
    if not chosen.any():
        return Limits.without_choice(CONFIDENCE)
    return limits_of_choosing(differences, fold, chosen, CONFIDENCE, rng)


def progressive_gain(
    scored: Sequence[Scores],
    baseline: Scores,
    alphas: tuple[float, ...],
    objective: Objective | Metric,
    *,
    seed: int = 0,
) -> Gain:
    """Gain on examples that each had no part in choosing the α at which they are scored.

    Args:
        scored: scores of disjoint lots of examples, each at its own α.
        baseline: scores of all examples at the unpatched model's α.
        alphas: the α of each lot, the last one being the choice.
    """
    chosen = concatenate(list(scored))
    before = baseline.take(np.searchsorted(baseline.ids, chosen.ids))
    objective = Objective(objective) if isinstance(objective, str) else objective
    gain = objective.gain(chosen, before, seed=seed, scheme="progressive")
    return msgspec.structs.replace(gain, fold_alphas=alphas)


def _stratified_folds(targets: NDArray[Any], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each example: random, with each class spread evenly over the folds."""
    shuffled = rng.permutation(len(targets))
    by_class = shuffled[np.argsort(targets[shuffled], kind="stable")]
    fold = np.empty(len(targets), dtype=np.int64)
    fold[by_class] = np.arange(len(targets)) % folds
    return fold
