"""Rule out α that cannot win, from part of the examples.

Scores at neighbouring α differ little from example to example, so *paired*
differences to the best α so far are known tightly early on. With m of n examples
scored, an α is ruled out when

    mean(d) + z · sd(d) / sqrt(m) · sqrt(1 − m/n) < 0,   d = score(α) − score(leader)

The last factor is there because the examples are drawn without replacement:
at m = n nothing is left to chance. z is the normal quantile of δ / (points·looks).

Guarantee: the α that is best on all n examples is ruled out with probability
at most δ, over the order in which the examples are drawn, as far as means of m
differences are normally distributed. If the best were ruled out, its mean
difference to some leader, which is >= 0 on all n, would have come out more
than z standard errors below 0; there are at most points·looks such events for
each leader the race ends with. A race begins with LEAST_EXAMPLES at the least,
and tests/statistics/test_racing.py counts by simulation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

#: fewer examples rule out nothing
LEAST_EXAMPLES = 100


def rule_out(values: NDArray[np.floating], population: int, delta: float, looks: int) -> NDArray[np.bool_]:
    """Which α are still in the race (points,).

    Args:
        values: (points, m) scores of m examples drawn without replacement, larger is better.
        population: n, the examples they were drawn from.
        delta: probability of ruling out the best; 0 rules out nothing.
        looks: how often the race is looked at, altogether.
    """
    points, m = values.shape
    if delta <= 0 or m < min(LEAST_EXAMPLES, population):
        return np.ones(points, bool)
    leader = int(values.mean(axis=1, dtype=np.float64).argmax())
    z = -float(ndtri(delta / (points * looks)))
    alive = np.ones(points, bool)
    for point in range(points):  # a point at a time, in double, without a copy of all
        difference = values[point].astype(np.float64) - values[leader]
        error = difference.std(ddof=1) / np.sqrt(m) * np.sqrt(max(0.0, 1 - m / population))
        alive[point] = difference.mean() + z * error >= 0
    return alive
