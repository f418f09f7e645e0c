"""Find α for the price of a few passes: few nodes on a part of the examples, then one exact pass.

    1. A pilot of at most 192 examples sees 7 nodes of [0, 0.15]. The range doubles
       while the best α sits near its end, and shrinks where the rest cannot win
       (racing.py). The pilot says how few nodes are enough to choose within the tolerance.
    2. The choosing part, a seeded and stratified 40 % of the examples, sees those
       nodes. Logits are interpolated to a dense grid, and the best α is chosen.
    3. That α is measured exactly, on all examples.

The gain is cross-fitted (selection.py): each tenth of the choosing part is scored at
the α that the other tenths chose, all other examples at the α that the whole part chose.

With ``full`` all examples choose, and the whole curve is within the tolerance.

Positions on the grid are distances t from the unpatched model: α, or 1 − α for
GroupNorm. Everything that is random is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from alphatune.core.metrics import INFO, Metric
from alphatune.statistics.conditions import count_images
from alphatune.statistics.interpolation import interpolation_weights, lobatto_nodes
from alphatune.statistics.racing import rule_out
from alphatune.statistics.scores import Scores
from alphatune.statistics.set_statistics import metrics_of
from alphatune.tuning.choosing import best_point, larger_is_better, totals_of
from alphatune.tuning.curve_scores import CurveScores, score_curve_
from alphatune.tuning.objective import Objective
from alphatune.tuning.ordering import image_order, whole_images
from alphatune.tuning.passes import Passes
from alphatune.tuning.sweep import NotFiniteError

T = TypeVar("T")

#: where to look first, [0, r]; with ``full``, whose curve is to show the decline as well
FIRST_RANGE, FULL_RANGE = 0.15, 0.3
#: where this last part of the range is as good as any other for the pilot, or this part for all that choose,
#: the search looks further
NEAR_END, AT_END = 0.8, 0.95
#: points of the grid; with ``full``
POINTS, FULL_POINTS = 61, 101
STEPS = (0.0005, 0.001, 0.0015, 0.0025, 0.003, 0.005, 0.006, 0.01, 0.02)
#: examples of the pilot: a twentieth, but no fewer and no more
PILOT = (64, 192)
PILOT_NODES, FULL_PILOT_NODES = 7, 9
#: ranges of α that the pilot tries at most, wider or narrower ones
PILOT_ATTEMPTS = 4
#: numbers of nodes to try, in this order
NODES = (4, 5, 6, 7, 9)
#: the metrics that tell how well the curve is interpolated
INTERPOLATED: tuple[Metric, Metric] = ("loss", "top1")
#: share of the examples that choose
CHOOSING = 0.4
#: with fewer examples a search saves no time worth its loss of power
FEWEST_TO_SEARCH = 1000
#: where not even this near the unpatched model every output is finite, the model is to blame and not the range
SMALLEST_RANGE = 0.005


@dataclass(frozen=True)
class Search:
    """What a search found, and what it looked at."""

    t: float  # the best distance from the unpatched model
    grid: tuple[float, ...]
    curve: CurveScores  # of those that chose, at each point of the grid, interpolated
    nodes: tuple[float, ...]
    choosing: NDArray[np.int64]  # positions of the examples that chose
    confirming: NDArray[np.int64]  # all others; none with ``full``
    baseline: Scores  # exact, at t = 0, of those that chose
    best: dict[Metric, float]  # best t of each metric, where it is known (``_optima``)
    estimated_error: float  # of the curve, in nats and as a fraction, by the pilot
    share: float = 1.0  # of the way to what is best, that keeps the guards: t is there


@dataclass(frozen=True)
class Pilot:
    """Logits of a few examples at so many nodes that they stand for the truth."""

    logits: Tensor  # (nodes, N, classes)
    targets: Tensor
    ids: NDArray[np.int64]
    nodes: tuple[float, ...]
    range: float
    narrowed: bool = False  # whether the race for the metric cut the range

    def error(self, nodes: Sequence[float], high: float) -> float:
        """Largest error of loss (nats) and top-1 on [0, high], of a polynomial through other nodes."""
        return self._difference(*self._both(nodes, high))

    def regret(self, nodes: Sequence[float], high: float, objective: Objective) -> float:
        """How much less than the best of [0, high] the objective is, where such a polynomial has its best."""
        truth, other = (totals_of(scores, objective, "choose") for scores in self._both(nodes, high))
        lost = float(truth.max() - truth[other.argmax()])
        return lost if INFO[objective.metric].sees_confidence else lost - self._resolution

    def _both(self, nodes: Sequence[float], high: float) -> tuple[CurveScores, CurveScores]:
        """Scores on a grid of [0, high], as they are, and by the polynomial through other nodes."""
        points = np.linspace(0, high, 31)
        other = interpolation_weights(nodes, points) @ interpolation_weights(self.nodes, nodes)
        return self.curve(points), self._scores(other)

    @property
    def _resolution(self) -> float:
        """Of what depends on the order of logits only: one example more or less says nothing."""
        return 2 / len(self.targets)

    def own_error(self, high: float) -> float:
        """Largest error of the pilot's own polynomial on [0, high], by leaving out each inner node there in turn."""
        errors = [0.0]
        for left_out in range(1, len(self.nodes) - 1):
            if self.nodes[left_out] > high and len(errors) > 1:
                break
            others = [j for j in range(len(self.nodes)) if j != left_out]
            weights = np.zeros((1, len(self.nodes)))
            weights[0, others] = interpolation_weights(
                [self.nodes[j] for j in others], [self.nodes[left_out]]
            )
            exact = np.eye(len(self.nodes))[[left_out]]
            errors.append(self._difference(self._scores(exact), self._scores(weights)))
        return max(errors)

    def _scores(self, weights: NDArray[np.float64]) -> CurveScores:
        two_classes = self.logits.shape[2] == 2
        scores = CurveScores.empty(len(weights), len(self.targets), two_classes=two_classes)
        ids = torch.from_numpy(self.ids)
        score_curve_(scores, 0, self.logits, torch.from_numpy(weights).float(), self.targets, ids)
        return scores

    def curve(self, grid: ArrayLike) -> CurveScores:
        """Scores on a grid."""
        return self._scores(interpolation_weights(self.nodes, grid))

    def _difference(self, truth: CurveScores, other: CurveScores) -> float:
        loss, top1 = (np.abs(truth.average(m) - other.average(m)).max() for m in INTERPOLATED)
        return float(max(loss, top1 - self._resolution))


def search(
    passes: Passes,
    objective: Objective,
    *,
    tolerance: float,
    race_delta: float,
    seed: int,
    full: bool = False,
    first_range: float | None = None,
    limit: float = 1.0,
) -> Search:
    """Look for the best α as this module's text says.

    Args:
        passes: the patched model and its data.
        objective: what to choose by.
        tolerance: error of the interpolated curve, in nats and as a fraction, that nodes are added until.
        race_delta: chance that the pilot, which narrows the range, leaves out the best α; 0 never narrows it.
        full: all examples choose.
        first_range: where to look first, [0, first_range], if not where this module says.
        limit: about how far to look at most.

    Raises:
        NotFiniteError: an output that is not finite; ``within_finite_range`` looks nearer.
    """
    first_range = min(limit, first_range or (FULL_RANGE if full else FIRST_RANGE))
    ids = passes.data.ids
    order = image_order(passes.data.targets, ids, seed)
    n, meter = len(order), passes.meter
    race_delta = race_delta if objective.is_plain_mean and not full else 0.0
    first = whole_images(order, ids, pilot_size(n))
    last = n if full else whole_images(order, ids, int(CHOOSING * n))
    meter.phase("pilot")
    passes.expect(expected_examples(n, full))
    pilot, alive = look_at_pilot(
        passes,
        np.sort(order[:first]),
        objective,
        tolerance,
        race_delta,
        count_images(ids[order[:last]]),
        first_range,
        limit,
        full,
    )
    whole = grid_of(pilot.range, full)
    grid = whole[:alive]
    nodes = fewest_nodes(pilot, grid, tolerance, None if full else objective)
    meter.phase("search")
    passes.expect(last * len(nodes) + _expected_after(n, last))
    choosing = np.sort(order[:last])
    curve, baseline = passes.curve(choosing, nodes, grid)
    t = grid[best_point(curve, objective, "choose")]
    if AT_END * whole[-1] <= t and whole[-1] < limit:
        return search(
            passes, objective, tolerance=tolerance, race_delta=race_delta, seed=seed, full=full,
            first_range=2 * whole[-1], limit=limit,
        )  # fmt: skip
    complete = len(grid) == len(whole) and not pilot.narrowed
    return Search(
        t=t,
        grid=grid,
        curve=curve,
        nodes=nodes,
        choosing=choosing,
        confirming=np.sort(order[last:]),
        baseline=baseline,
        best=_optima(curve, grid, objective, complete=complete, limit=limit),
        estimated_error=max(pilot.error(nodes, grid[-1]), 0.0),
    )


def _optima(
    scores: CurveScores, grid: Sequence[float], followed: Objective, *, complete: bool, limit: float
) -> dict[Metric, float]:
    """The best t of the metric that the search followed, and of the others where it can be told.

    Where the pilot cut the range for one metric's sake, others may be better beyond it. So may they be where their
    optimum is at the end of the range.

    Args:
        complete: whether the pilot cut nothing.
    """
    names = metrics_of(scores.at(0))
    best = {metric: grid[best_point(scores, Objective(metric), "choose")] for metric in names}
    best[followed.metric] = grid[best_point(scores, followed, "choose")]
    end = grid[-1]
    return {
        metric: t
        for metric, t in best.items()
        if metric == followed.metric or (complete and (t < AT_END * end or end >= limit))
    }


def pilot_size(n: int) -> int:
    """How many of n examples the pilot looks at."""
    return min(max(n // 20, PILOT[0]), PILOT[1])


def expected_examples(n: int, full: bool) -> int:
    """About how many examples a search looks at, each once an α, before the pilot says how many nodes it takes."""
    last = n if full else int(CHOOSING * n)
    pilot = pilot_size(n) * (FULL_PILOT_NODES if full else PILOT_NODES)
    return pilot + last * NODES[0] + _expected_after(n, last)


def _expected_after(n: int, choosing: int) -> int:
    """How many follow the choice: all at the chosen α, and those that did not choose at the unpatched model's."""
    return 2 * n - choosing


def best_on(found: Search, positions: NDArray[np.int64], objective: Objective) -> float:
    """The t that is best by those of the examples at some positions that chose."""
    rows = np.isin(found.choosing, positions)
    return found.grid[best_point(found.curve, objective, "choose", rows)]


def look_at_pilot(
    passes: Passes,
    positions: NDArray[np.int64],
    objective: Objective,
    tolerance: float,
    race_delta: float,
    population: int,
    high: float,
    limit: float,
    full: bool,
) -> tuple[Pilot, int]:
    """Find the range of α that is worth looking at; returns the pilot and how many grid points to begin with."""
    narrowed, ids = False, passes.data.ids[positions]
    for attempt in range(PILOT_ATTEMPTS):
        is_last = attempt == PILOT_ATTEMPTS - 1
        high = grid_of(high, full)[-1]
        nodes = lobatto_nodes(FULL_PILOT_NODES if full else PILOT_NODES, high)
        logits, targets = passes.logits(positions, nodes)
        pilot = Pilot(logits, targets, ids, nodes, high, narrowed)
        grid = grid_of(high, full)
        curve = pilot.curve(grid)
        totals = totals_of(curve, objective, "choose")
        if totals[int(NEAR_END * len(grid)) :].max() == totals.max() and high < limit and not is_last:
            high = min(limit, 2 * high)
            continue
        values = larger_is_better(curve, objective)
        alive = int(np.flatnonzero(rule_out(values, population, race_delta, PILOT_ATTEMPTS))[-1]) + 1
        alive = max(alive, 3)
        if is_last or full or alive > len(grid) // 2 or pilot.own_error(grid[alive - 1]) <= tolerance:
            break
        narrowed = True
        high = grid[alive - 1]  # a polynomial over a smaller range follows the curve more closely
    return pilot, alive


def within_finite_range(passes: Passes, look: Callable[[float], T]) -> tuple[T, str]:
    """Call ``look(limit)`` with a smaller limit of t while an output is not finite, and say so.

    No label has a say in the limit, so what is chosen and measured within it is as valid as without.
    """
    limit, note = 1.0, ""
    while True:
        try:
            return look(limit), note
        except NotFiniteError as error:
            t = abs(passes.baseline - error.alpha)
            if t <= SMALLEST_RANGE:
                raise
            limit = t / 2
            note = (
                f"{error.message}; none farther than about {limit:g} from {passes.baseline:g} was looked at"
            )


def grid_of(high: float, full: bool) -> tuple[float, ...]:
    """Round numbers from 0 to ``high``, or a little over it: 61 at most, with ``full`` 101."""
    most = FULL_POINTS if full else POINTS
    step = next(step for step in STEPS if high / step < most - 1 + 1e-9)
    return tuple(round(i * step, 12) for i in range(int(np.ceil(high / step - 1e-9)) + 1))


def fewest_nodes(
    pilot: Pilot, grid: Sequence[float], tolerance: float, objective: Objective | None
) -> tuple[float, ...]:
    """Nodes among the points of a grid, as few as the pilot says are enough.

    Args:
        objective: what is chosen by must be within the tolerance of the best; None: the whole curve must be.
    """
    for count in NODES:
        wanted = np.array(lobatto_nodes(min(count, len(grid)), grid[-1]))
        # On the grid: what is measured has a round number, and the interpolation hardly minds.
        nearest = np.abs(np.asarray(grid)[:, None] - wanted).argmin(axis=0)
        nodes = tuple(grid[i] for i in sorted(set(nearest.tolist())))
        lost = pilot.error(nodes, grid[-1]) if objective is None else pilot.regret(nodes, grid[-1], objective)
        if lost <= tolerance:
            break
    return nodes
