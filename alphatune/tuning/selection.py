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

After a search (search.py) only a part of the examples chose. The others confirm: they are one fold
more, scored at the α that all of that part chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alphatune.core.metrics import INFO, SCORE, Measure, Metric
from alphatune.norms.patching import Alpha
from alphatune.results.gain import Gain
from alphatune.statistics.conditions import count_images, first_of_image, has_conditions, images_of
from alphatune.statistics.gain import (
    CONFIDENCE,
    FEWEST_EXAMPLES,
    FloatArray,
    make_gain,
    mean_gain,
)
from alphatune.statistics.scores import Scores, concatenate
from alphatune.statistics.selection_bias import Limits, limits_of_choosing
from alphatune.statistics.set_statistics import STATISTICS, metrics_of
from alphatune.tuning.choosing import Choices, best_point, larger_is_better
from alphatune.tuning.objective import Objective, Purpose
from alphatune.tuning.set_score import SetScore, groups_of
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
    choices = sweep.choices()
    best = {m: choices.best(Objective(m)) for m in metrics_of(sweep.baseline)}
    best[metric] = choices.best(objective)
    gain = None
    if n >= FEWEST_EXAMPLES:
        gain = cross_fitted_gain(choices, objective, seed=seed, folds=folds)
    return decide(metric, best[metric], best, sweep.baseline_alpha, gain, n, accept)


def select_by_score(
    values: FloatArray,
    alphas: Sequence[float],
    strata: NDArray[np.int64],
    whole: SetScore | None = None,
    *,
    accept: Accept = "significant",
    seed: int = 0,
    folds: int = FOLDS,
) -> tuple[Decision, FloatArray]:
    """Choose α by scores of one's own and decide whether it helps, as ``select`` does by a metric.

    Args:
        values: scores (alphas, n), larger is better; of a ``SetScore`` the rows (alphas, n, k).
        alphas: the unpatched model's first.
        strata: what is spread evenly over the folds (n,), such as classes.
        whole: what makes one score of all rows.

    Returns:
        The decision, and the values that were compared: the scores, or the shares of groups of examples (alphas, G).
    """
    n, rng = values.shape[1], np.random.default_rng(seed)
    folds = max(2, min(folds, n // 2))
    fold = _stratified_folds(strata, folds, rng)
    shares, place = values, fold  # of what is compared, and the fold of each
    if whole is None:
        best = int(np.argmax([row.mean() for row in values]))
    else:
        group, place = groups_of(fold if n >= FEWEST_EXAMPLES else np.zeros_like(fold), rng)
        shares = np.stack([whole.shares(rows, group) for rows in values])
        best = int(np.argmax([whole.value(rows) for rows in values]))
    gain = None
    if n >= FEWEST_EXAMPLES:
        if whole is None:
            chosen = _best_without_each(values, fold)
            difference = shares[chosen[fold], np.arange(n)] - shares[0]
        else:
            others = [fold != k for k in range(folds)]
            chosen = np.array([np.argmax([whole.value(rows[some]) for rows in values]) for some in others])
            difference = np.empty(len(place))
            for point in np.unique(chosen):  # rows at different α may have no common scale
                rows, own = chosen[fold] == point, np.flatnonzero(chosen[place] == point)
                part = np.searchsorted(own, group[rows])
                after, before = (whole.shares(values[i][rows], part) for i in (point, 0))
                difference[own] = after - before
        limits = Limits.without_choice(CONFIDENCE)
        if chosen.any():
            limits = limits_of_choosing(shares - shares[0], place, chosen, CONFIDENCE, rng)
        measured = mean_gain(difference, SCORE, limits, changed=bool(chosen.any()))
        gain = make_gain(SCORE, measured, n, folds, tuple(alphas[i] for i in chosen))
    return decide(SCORE, alphas[best], {SCORE: alphas[best]}, alphas[0], gain, n, accept), shares


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


@dataclass(frozen=True)
class Confirmed:
    """Exact scores at the α that was chosen, where a part of the examples chose by interpolated ones."""

    alpha: float
    chosen: Scores  # of those that chose
    before: Scores  # of all others, which had no say, at the unpatched model's α; there may be none
    after: Scores  # and at the chosen one
    share: float = 1.0  # of the way to what was best, that guards allowed


def cross_fitted_gain(
    choices: Choices,
    objective: Objective | Metric,
    *,
    confirmed: Confirmed | None = None,
    seed: int = 0,
    folds: int = FOLDS,
) -> Gain:
    """Choose on k − 1 folds, score on the other; see the module's text.

    Args:
        choices: what can be chosen; classes are spread evenly over the folds.
        confirmed: after a search.
    """
    objective = Objective(objective) if isinstance(objective, str) else objective
    scores, before = choices.scores, choices.baseline
    ids, n = scores.ids, count_images(scores.ids)
    folds = max(2, min(folds, n // 2))
    statistic = STATISTICS.get(objective.metric)
    if statistic is not None and statistic.two_classes:  # two of each class in every fold
        folds = max(2, min(folds, int(np.unique(before.targets, return_counts=True)[1].min()) // 2))
    rng = np.random.default_rng(seed)
    targets = before.targets[first_of_image(ids)] if has_conditions(ids) else before.targets
    fold = _stratified_folds(targets, folds, rng)
    own = fold[np.unique(images_of(ids), return_inverse=True)[1]] if has_conditions(ids) else fold
    values = larger_is_better(scores, objective)
    if objective.is_plain_mean:
        chosen = _best_without_each(values, fold)
    else:
        purpose: Purpose = "deploy" if confirmed is None else "choose"
        chosen = np.array([best_point(scores, objective, purpose, own != k) for k in range(folds)])
    exact, alpha, confirming = None, choices.alphas[0], 0
    if confirmed is not None:
        exact, alpha = confirmed.chosen, confirmed.alpha
        way = np.array(choices.alphas)[chosen] - choices.alphas[0]
        chosen = np.array([choices.nearest(choices.alphas[0] + confirmed.share * step) for step in way])
    after, parts = choices.at(chosen[own], exact, alpha), chosen[own]
    if confirmed is not None:
        confirming = count_images(confirmed.before.ids)
        more = np.full(len(confirmed.before), choices.nearest(confirmed.alpha))
        parts = np.concatenate([parts, more])[np.argsort(np.concatenate([ids, confirmed.before.ids]))]
        before, after = concatenate([before, confirmed.before]), concatenate([after, confirmed.after])
    limits = None
    if chosen.any():
        limits = limits_of_choosing(values - values[0], fold, chosen, CONFIDENCE, rng, confirming)
    gain = objective.gain(after, before, seed=seed, folds=folds, limits=limits, parts=parts)
    return msgspec.structs.replace(gain, fold_alphas=tuple(choices.alphas[i] for i in chosen))


def _best_without_each(values: FloatArray, fold: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of scores (alphas, n) that is best without each fold."""
    # Row by row, so that equal rows have equal sums and the first of them wins.
    sums = np.stack([np.bincount(fold, weights=row) for row in values])
    others = (sums.sum(axis=1, keepdims=True) - sums) / (len(fold) - np.bincount(fold))
    best: NDArray[np.int64] = others.argmax(axis=0)
    return best


def _stratified_folds(targets: NDArray[Any], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each example: random, with each class spread evenly over the folds."""
    shuffled = rng.permutation(len(targets))
    by_class = shuffled[np.argsort(targets[shuffled], kind="stable")]
    fold = np.empty(len(targets), dtype=np.int64)
    fold[by_class] = np.arange(len(targets)) % folds
    return fold
