"""What α is chosen by: a metric, its mean over the conditions or the worst of them, within guards.

A *guard* is a limit to what one condition may lose. Its cost at α is the mean of
the paired difference to the unpatched model over that condition's images,
positive where α is worse, with one-sided 95 % intervals (statistics/intervals.py).
What passes depends on what for:

                 no margin                                    margin
    choose       not significantly worse                      not significantly more than the margin
    test         not significantly worse                      surely at most the margin
    deploy       … and likely at most 0.005 worse             surely at most the margin

*Likely* is half a standard error: two to one. Without it the largest α that an
estimate lets pass costs more than that estimate; with a whole one few images
would deploy nothing (docs/benchmarks/shift.md).

α are chosen on part of the images, and what is chosen steps back towards the
unpatched model until it may be deployed, on all images (step_back.py).

With a margin α are deployed in a fixed sequence from the unpatched model outwards:
the first that fails rules out itself and all beyond it. So every test keeps the
full level: an α that is truly worse than the margin passes in at most 5 % of
cases, however many α there are (Maurer, Hothorn & Lehmacher 1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from alphatune.core.errors import ConfigurationError, one_line
from alphatune.core.metrics import INFO, MEANS, Metric
from alphatune.core.suggestions import did_you_mean
from alphatune.results.gain import Gain
from alphatune.results.shift import Over
from alphatune.statistics.conditions import (
    Ids,
    by_image,
    conditions_of,
    count_images,
    has_conditions,
    mean_over_conditions,
)
from alphatune.statistics.gain import CONFIDENCE, make_gain, mean_gain, paired_gain
from alphatune.statistics.intervals import Interval, mean_interval, proportion_interval
from alphatune.statistics.scores import Scores
from alphatune.statistics.selection_bias import Limits

#: of the one-sided intervals that guards are held against
GUARD_CONFIDENCE = 0.95
#: a guard without a margin lets be deployed what costs at most this, by so many standard errors
MOST_COST, LIKELY = 0.005, 0.5

#: what a guard is asked for
Purpose = Literal["choose", "test", "deploy"]
#: a metric's values (points, n), as they are measured
Values = Callable[[Metric], NDArray[Any]]


@dataclass(frozen=True)
class Guard:
    """A limit to what a condition may lose; ``margin`` None: not significantly worse."""

    condition: int  # counted from 1
    metric: Metric
    margin: float | None = None

    def judge(self, worse: NDArray[np.float64], purpose: Purpose) -> Judged:
        """Hold the paired differences (n,) of the condition's images, positive where α is worse, against the margin."""
        cost, is_share = float(worse.mean()), INFO[self.metric].is_share
        low, high = _interval(worse, is_share, float(ndtri(GUARD_CONFIDENCE)))
        if purpose == "choose" or self.margin is None:
            slight = purpose != "deploy" or _interval(worse, is_share, LIKELY)[1] <= MOST_COST
            return Judged(self, cost, low, low <= (self.margin or 0) and slight)
        return Judged(self, cost, high, high <= self.margin)

    def says(self, cost: float, bound: float, names: Sequence[str]) -> str:
        """A sentence that says why this guard fails."""
        lost = f"{names[self.condition - 1]} would lose {self._text(cost)} of {INFO[self.metric].name}"
        if self.margin is not None:
            return f"{lost}, and it is not certain that it loses no more than {self._text(self.margin)}"
        if bound > 0 or cost > MOST_COST:
            return f"{lost}, which is {'significant' if bound > 0 else f'more than {self._text(MOST_COST)}'}"
        return f"{lost}, and by so few images it may well be more than {self._text(MOST_COST)}"

    def kept(self, cost: float, names: Sequence[str]) -> str:
        """A sentence that says this guard passes, and what the condition loses or gains."""
        name = names[self.condition - 1]
        verb = "loses" if cost > 0 else "gains"
        limit = "" if self.margin is None else f", surely no more than {self._text(self.margin)}"
        return f"{name} {verb} {self._text(abs(cost))} of {INFO[self.metric].name}{limit}"

    def _text(self, value: float) -> str:
        return f"{100 * value:.2f} points" if INFO[self.metric].is_share else f"{value:.4f} nats"

    def worse(self, values: Values, ids: Ids) -> NDArray[np.float64]:
        """Those differences at every point, against the first (points, n)."""
        rows = conditions_of(ids) == self.condition
        worse = -INFO[self.metric].sign * values(self.metric)[:, rows].astype(np.float64)
        difference: NDArray[np.float64] = worse - worse[0]
        return difference


class Judged(NamedTuple):
    """What a guard says of an α."""

    guard: Guard
    cost: float
    bound: float  # the end of its one-sided interval that was looked at
    passed: bool


def _interval(worse: NDArray[np.float64], is_share: bool, z: float) -> Interval:
    """The mean, z standard errors to either side."""
    if is_share:
        return proportion_interval(int((worse > 0).sum()), int((worse < 0).sum()), len(worse), -z, z)
    if len(worse) < 2:
        return -np.inf, np.inf
    return mean_interval(worse, -z, z) if np.ptp(worse) else (float(worse[0]), float(worse[0]))


@dataclass(frozen=True)
class Objective:
    """What α is chosen by. On plain examples it is the mean of the metric."""

    metric: Metric
    over: Over = "mean"
    guards: tuple[Guard, ...] = ()

    @property
    def is_plain_mean(self) -> bool:
        """Whether it is a mean over examples that nothing limits, so that part of them can rule out α."""
        return INFO[self.metric].is_mean and self.over == "mean" and not self.guards

    def per_image(self, values: NDArray[Any], ids: Ids) -> NDArray[Any]:
        """One number an image, larger is better, whose mean is the objective: (points, n) to (points, images).

        The worst condition is that of each point, by all of these examples.
        """
        better = INFO[self.metric].sign * values.astype(np.float64)
        if self.over == "mean" or not has_conditions(ids):
            return by_image(better, ids)
        number = conditions_of(ids)
        kept = np.unique(number)
        means = np.stack([better[:, number == k].mean(axis=1) for k in kept])
        return np.stack(
            [
                by_image(row, ids, only=int(k))
                for row, k in zip(better, kept[means.argmin(axis=0)], strict=True)
            ]
        )

    def totals(self, values: NDArray[Any], ids: Ids) -> NDArray[np.float64]:
        """The objective (points,), larger is better."""
        sign = INFO[self.metric].sign
        if self.over == "mean" or not has_conditions(ids):
            total: NDArray[np.float64] = sign * mean_over_conditions(values, ids)
            return total
        number = conditions_of(ids)
        means = [sign * values[:, number == k].mean(axis=1, dtype=np.float64) for k in np.unique(number)]
        worst: NDArray[np.float64] = np.min(means, axis=0)
        return worst

    def allowed(self, values: Values, ids: Ids, purpose: Purpose) -> NDArray[np.bool_]:
        """Which points every guard lets pass (points,); the first always is."""
        allowed = np.ones(len(values(self.metric)), np.bool_)
        for guard in self.guards:
            passes = [guard.judge(worse, purpose).passed for worse in guard.worse(values, ids)[1:]]
            in_sequence = guard.margin is not None and purpose != "choose"
            allowed[1:] &= np.logical_and.accumulate(passes) if in_sequence else passes
        return allowed

    def best(self, values: Values, ids: Ids, purpose: Purpose = "deploy") -> int:
        """The best point within the guards; among equals the nearest to the unpatched model."""
        totals = self.totals(values(self.metric), ids)
        return int(np.where(self.allowed(values, ids, purpose), totals, -np.inf).argmax())

    def gain(
        self,
        after: Scores,
        before: Scores,
        *,
        seed: int = 0,
        comparisons: int = 1,
        folds: int = 0,
        limits: Limits | None = None,
        parts: NDArray[np.int64] | None = None,
    ) -> Gain:
        """Gain of the same examples' scores over others, as ``paired_gain``; of the worst condition where that counts."""
        if self.over == "mean" or not has_conditions(after.ids):
            return paired_gain(
                after,
                before,
                self.metric,
                seed=seed,
                comparisons=comparisons,
                folds=folds,
                limits=limits,
                parts=parts,
            )
        values = np.stack([getattr(before, self.metric), getattr(after, self.metric)])
        rows = self.per_image(values, after.ids)
        confidence = 1 - (1 - CONFIDENCE) / comparisons
        limits = limits or Limits.without_choice(confidence)
        changed = not np.array_equal(after.loss, before.loss)
        measured = mean_gain(rows[1] - rows[0], self.metric, limits, changed)
        return make_gain(self.metric, measured, count_images(after.ids), folds, (), confidence)

    def objection(self, after: Scores, before: Scores, names: Sequence[str]) -> str:
        """What the first guard that fails says; "" where all pass."""
        for judged in self.judge(after, before, "deploy"):
            if not judged.passed:
                return judged.guard.says(judged.cost, judged.bound, names)
        return ""

    def judge(self, after: Scores, before: Scores, purpose: Purpose) -> tuple[Judged, ...]:
        """What each guard says of some scores against others of the same examples."""

        def values(metric: Metric) -> NDArray[Any]:
            return np.stack([getattr(before, metric), getattr(after, metric)])

        return tuple(guard.judge(guard.worse(values, after.ids)[1], purpose) for guard in self.guards)


def parse_guards(texts: Sequence[str], names: Sequence[str]) -> tuple[Guard, ...]:
    """Guards from ``clean:top1=0.005``, ``clean:top1`` (not significantly worse), or ``none``.

    Without any the first condition's top-1 may not be significantly worse.

    Args:
        names: of the conditions.

    Raises:
        ConfigurationError: no such condition or metric, or a margin that is no number from 0.
    """
    if not texts:
        return (Guard(1, "top1"),)
    guards = []
    for text in texts:
        if text == "none":
            if len(texts) > 1:
                raise ConfigurationError("`guard=none` goes with no other guard", "leave one of them out")
            return ()
        condition, colon, rest = text.rpartition(":")
        name, equals, number = rest.partition("=")
        if not colon:
            raise ConfigurationError(
                f"expected a guard as CONDITION:METRIC or CONDITION:METRIC=MARGIN, got {one_line(text, 80)!r}",
                "such as `guard=clean:top1=0.005`",
            )
        if condition not in names:
            raise ConfigurationError(
                f"the guard {one_line(text, 80)!r} names no condition; there are {', '.join(names)}",
                did_you_mean(condition, names),
            )
        if name not in MEANS:
            raise ConfigurationError(
                f"the guard {one_line(text, 80)!r} names no metric", f"one of: {', '.join(MEANS)}"
            )
        margin: float | None = None
        if equals:
            try:
                margin = float(number)
            except ValueError:
                margin = math.nan
            if not (math.isfinite(margin) and margin >= 0):
                raise ConfigurationError(
                    f"the margin of the guard {one_line(text, 80)!r} must be a number from 0",
                    "a fraction, or nats for the loss",
                )
        guards.append(Guard(names.index(condition) + 1, name, margin))
    return tuple(guards)
