"""Intervals of a mean paired difference that hold where few examples make most of it.

Limits are arguments, as the gain of an α that was chosen needs other ones than
±1.96 (selection_bias.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Interval = tuple[float, float]
#: halvings of [−1, 1] that leave rounding only
_HALVINGS = 60


def mean_interval(difference: NDArray[np.float64], low: float, high: float) -> Interval:
    """Interval of the mean of paired differences: of Student's and Hall's limits the outer one at each end.

        Student:  d̄ − t·s/√n
        Hall:     d̄ − h(t)·s/√n,   h(t) = 3/a·(∛(1 + a·(t − a/6)) − 1),   a = skewness/√n

    A few examples often hold most of a change in loss. Student's interval then ends too soon on their side. Hall's
    allows for the skewness; but measured on heavy-tailed differences that are not skewed it is noise, and makes the
    interval too short. Each is right where the other is not, and with many examples they are the same.

    Args:
        low, high: limits of (estimate − truth)/error as if it were normal: −1.96 and 1.96 for 95 %.

    Source: Hall 1992, On the removal of skewness by transformation, J. R. Statist. Soc. B 54(1).
    """
    n = len(difference)
    mean, spread = float(difference.mean()), float(difference.std())
    a = float(((difference - mean) ** 3).mean()) / spread**3 / n**0.5

    def limits(z: float) -> tuple[float, float]:
        t = float(stdtrit(n - 1, ndtr(z)))
        return t, 3 / a * (float(np.cbrt(1 + a * (t - a / 6))) - 1) if abs(a) > 1e-6 else t

    error = spread / (n - 1) ** 0.5
    return mean - max(limits(high)) * error, mean - min(limits(low)) * error


def proportion_interval(better: int, worse: int, n: int, low: float, high: float) -> Interval:
    """Interval of a difference D of paired proportions, estimated by (b − c)/n: what the score test does not reject.

        low ≤ (b − c − n·D) / √(n·(2q + D·(1 − D))) ≤ high

    where q is the proportion whose estimate is c/n, at its likeliest given D: the larger root of
    2n·q² + ((2n − b + c)·D − b − c)·q − c·D·(1 − D) = 0. It holds for a handful of examples that changed sides,
    and for none.

    Source: Tango 1998, Statistics in Medicine 17.
    """

    def end(limit: float) -> float:
        below, above = -1.0, 1.0
        for _ in range(_HALVINGS):  # the statistic falls as D grows
            d = (below + above) / 2
            linear = (2 * n - better + worse) * d - better - worse
            q = (max(linear**2 + 8 * n * worse * d * (1 - d), 0.0) ** 0.5 - linear) / (4 * n)
            variance = max(n * (2 * q + d * (1 - d)), 1e-300)
            if (better - worse - n * d) / variance**0.5 > limit:
                below = d
            else:
                above = d
        return (below + above) / 2

    return end(high), end(low)
