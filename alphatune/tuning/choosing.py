"""Which of some α is best on some examples, by the scores of each example at each α."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphatune.core.metrics import INFO
from alphatune.statistics.scores import Scores
from alphatune.tuning.curve_scores import CurveScores
from alphatune.tuning.objective import Objective, Purpose


@dataclass(frozen=True)
class Choices:
    """The α that can be chosen, and scores of the examples that choose."""

    alphas: tuple[float, ...]  # (points,), the unpatched model's first
    scores: CurveScores  # (points, n)
    baseline: Scores  # (n,), exact, at the first of them

    def best(self, objective: Objective, purpose: Purpose = "deploy") -> float:
        """The best α on all of these examples."""
        return self.alphas[best_point(self.scores, objective, purpose)]

    def nearest(self, alpha: float) -> int:
        """The point that is nearest to an α."""
        return int(np.abs(np.array(self.alphas) - alpha).argmin())

    def at(self, points: NDArray[np.int64], exact: Scores | None, alpha: float) -> Scores:
        """Scores of each example at a point of its own (n,).

        Where they are interpolated, all but the first point's are off by about the same as at ``alpha`` nearby:

            score(point) + exact(alpha) − score(alpha)

        Args:
            exact: scores of these examples at ``alpha``; None where those of all points are exact.
        """
        rows, moved, near = np.arange(len(points)), points != 0, self.nearest(alpha)

        def values(name: str, stored: NDArray[Any]) -> NDArray[Any]:
            found: NDArray[Any] = stored[points, rows]
            if exact is None:
                return found
            there, before = exact.columns[name], self.baseline.columns[name]
            if (
                name == "predicted"
            ):  # a class has no difference: the exact one where both points have the same
                found = np.where(found == stored[near], there, found)
                return np.where(moved, found, before)
            corrected: NDArray[Any] = np.where(
                moved, found + (there.astype(np.float64) - stored[near]), before
            )
            return corrected if name in ("loss", "margin") else np.clip(corrected, 0, 1).astype(found.dtype)

        return replace(
            self.baseline, **{name: values(name, stored) for name, stored in self.scores.columns.items()}
        )


def totals_of(scores: CurveScores, objective: Objective, purpose: Purpose) -> NDArray[np.float64]:
    """The objective at every point, larger is better; -inf where a guard rules a point out."""
    info = INFO[objective.metric]
    if not info.is_mean:
        return info.sign * scores.average(objective.metric)
    totals = objective.totals(scores.values(objective.metric), scores.ids)
    return np.where(objective.allowed(scores.values, scores.ids, purpose), totals, -np.inf)


def best_point(
    scores: CurveScores, objective: Objective, purpose: Purpose, rows: NDArray[Any] | None = None
) -> int:
    """The best point on some of the examples; among equals the nearest to the unpatched model."""
    some = scores if rows is None else scores.take(rows)
    return int(totals_of(some, objective, purpose).argmax())


def larger_is_better(scores: CurveScores, objective: Objective) -> NDArray[Any]:
    """One number an image (points, images) whose mean is to be large; of a statistic each example's share of it."""
    info = INFO[objective.metric]
    if info.is_mean:
        return objective.per_image(scores.values(objective.metric), scores.ids)
    return info.sign * scores.shares(objective.metric)
