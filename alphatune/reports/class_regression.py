"""How much worse each class got, with intervals of its own and for all classes at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from alphatune.core.metrics import INFO, Measure
from alphatune.reports.per_class import FEWEST, class_names
from alphatune.reports.scores import StoredScores
from alphatune.results.power import MOST_EXAMPLES
from alphatune.statistics.conditions import by_image, first_of_image, has_conditions
from alphatune.statistics.gain import CONFIDENCE
from alphatune.statistics.intervals import Interval, mean_interval, proportion_interval
from alphatune.statistics.power import POWER, connor, spread_of

__all__ = ["FEWEST", "ClassRegression", "class_regressions", "images_a_class"]


@dataclass(frozen=True)
class ClassRegression:
    """A class's change with the sign that makes worse positive; intervals are None where there are too few examples."""

    name: str
    n: int
    worse: float
    alone: Interval | None  # holds for the class alone
    together: Interval | None  # for all classes at once (Bonferroni)

    def text(self, with_interval: bool, together: bool) -> str:
        """``cat 0.12 worse (50 images)``."""
        change = (
            f"{abs(self.worse):.4g} {'worse' if self.worse > 0 else 'better'}" if self.worse else "unchanged"
        )
        interval, spoken = (self.together if together else self.alone) if with_interval else None, ""
        if interval is not None:
            which = " for all classes at once" if together else ""
            spoken = f", 95 % interval{which} {interval[0]:.3g} to {interval[1]:.3g}"
        return f"{self.name} {change} ({self.n} image{'' if self.n == 1 else 's'}{spoken})"


def class_regressions(stored: StoredScores, metric: Measure) -> list[ClassRegression]:
    """Of each class that has examples, by label: the model that was given against the tuned one."""
    worse, targets = _worse(stored, metric), stored.chosen.targets
    ids = stored.chosen.ids
    if has_conditions(ids):
        targets = targets[first_of_image(ids)]
    _, index, counts = np.unique(targets, return_inverse=True, return_counts=True)
    same = np.array_equal(stored.original.loss, stored.chosen.loss)
    found = []
    parts = np.split(worse[np.argsort(index, kind="stable")], np.cumsum(counts)[:-1])
    for name, part in zip(class_names(stored.chosen, stored.classes), parts, strict=True):
        alone, together = (
            (0.0, 0.0) if same else _interval(part, metric, confidence)
            for confidence in (CONFIDENCE, 1 - (1 - CONFIDENCE) / len(parts))
        )
        found.append(ClassRegression(name, len(part), float(part.mean()), alone, together))
    return found


def images_a_class(stored: StoredScores, metric: Measure, limit: float, classes: int) -> int | None:
    """How many images of each class show, in 80 % of runs, that none is worse by a limit, if none is; None if nothing can.

    As if all classes varied alike.
    """
    if limit <= 0:
        return None
    worse = _worse(stored, metric)
    spread = spread_of(worse, INFO[metric].is_share and bool(np.isin(worse, (-1, 0, 1)).all()))
    power = 1 - (1 - POWER) / classes  # all have to pass
    if spread.discordant is None:
        z = float(ndtri(0.5 + CONFIDENCE / 2) + ndtri(power))
        needed = (z * spread.deviation / limit) ** 2
    else:
        needed = connor(spread.discordant, min(limit, 1.0), power=power)
    return max(1, math.ceil(min(needed, MOST_EXAMPLES)))


def _worse(stored: StoredScores, metric: Measure) -> NDArray[np.float64]:
    before, after = (
        getattr(scores, metric).astype(np.float64) for scores in (stored.original, stored.chosen)
    )
    worse: NDArray[np.float64] = by_image(INFO[metric].sign * (before - after), stored.chosen.ids)
    return worse


def _interval(worse: NDArray[np.float64], metric: Measure, confidence: float) -> Interval | None:
    z = float(ndtri(0.5 + confidence / 2))
    if INFO[metric].is_share and np.isin(worse, (-1, 0, 1)).all():
        return proportion_interval(int((worse > 0).sum()), int((worse < 0).sum()), len(worse), -z, z)
    if len(worse) < FEWEST:
        return None
    if np.ptp(worse) == 0:
        return float(worse[0]), float(worse[0])
    return mean_interval(worse, -z, z)
