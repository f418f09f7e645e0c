"""Find α for the price of a few passes: a few nodes, a part of the examples, then one exact pass.

    1. A pilot of at most 256 examples sees 9 nodes of [0, 0.15]. The range doubles
       while the best α sits near its end, and shrinks where the rest cannot win.
       The pilot says how few nodes give the curve to within the tolerance.
    2. The choosing part, a seeded and stratified 60 % of the examples, comes in four
       lots. A lot sees those nodes, and logits are interpolated to a dense grid.
       After each the race (racing.py) drops what cannot win; range and nodes follow.
    3. The α that is best on the choosing part is measured exactly, on all examples.

The gain is measured exactly, too, and always on examples that had no part in
choosing: the α that is best after some lots is a node of the next one, and the
last α meets the other 40 %. Pooled, that is progressive validation (Blum, Kalai
& Langford 1999), which uses all examples but those of the first lot.

With ``full`` all examples see the nodes, nothing is dropped, and the curve is
that of all examples; α is chosen and its gain measured in the same way.

Positions on the grid are distances t from the unpatched model: α, or 1 − α for
GroupNorm. Everything that is random is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from alphatune.core.metrics import INFO, METRICS, Metric
from alphatune.statistics.conditions import count_images, has_conditions
from alphatune.statistics.interpolation import interpolation_weights, lobatto_nodes
from alphatune.statistics.racing import rule_out
from alphatune.statistics.scores import Scores, concatenate
from alphatune.tuning.curve_scores import CurveScores, join, score_curve_
from alphatune.tuning.objective import Objective
from alphatune.tuning.ordering import image_order, whole_images
from alphatune.tuning.passes import Passes
from alphatune.tuning.sweep import NotFiniteError

T = TypeVar("T")

#: where to look first, [0, r]; with ``full``, whose curve is to show the decline as well
FIRST_RANGE, FULL_RANGE = 0.15, 0.3
#: where this last part of the range is as good as any other for the pilot, or this part for all lots, the
#: search looks further
NEAR_END, AT_END = 0.8, 0.95
#: points of the grid; with ``full``
POINTS, FULL_POINTS = 61, 101
STEPS = (0.0005, 0.001, 0.0015, 0.0025, 0.003, 0.005, 0.006, 0.01, 0.02)
#: examples of the pilot: a twentieth, but no fewer and no more
PILOT = (64, 256)
PILOT_NODES = 9
#: ranges of α that the pilot tries at most, wider or narrower ones
PILOT_ATTEMPTS = 4
NODE_COUNTS = (3, 4, 5, 6, 7, 9)
#: nodes that a search is expected to take before it knows
USUAL_NODES = 4
#: a point may be off by this share of what it is worse than the best: it will not be chosen all the same
SLACK = 0.02
#: the metrics that tell how well the curve is interpolated
INTERPOLATED: tuple[Metric, Metric] = ("loss", "top1")
#: looks at the choosing part, as shares of all examples; the last is its size
LOOKS = (0.15, 0.3, 0.45, 0.6)
#: the same over several conditions, where an image says more
LOOKS_AT_CONDITIONS = (0.2, 0.4)
#: with fewer examples a search saves no time worth its loss of power
FEWEST_TO_SEARCH = 1000
#: where not even this near the unpatched model every output is finite, the model is to blame and not the range
SMALLEST_RANGE = 0.005


@dataclass(frozen=True)
class Search:
    """What a search found, and what it looked at."""

    t: float  # the best distance from the unpatched model
    grid: tuple[float, ...]
    #: interpolated scores; part k has the first points of the grid only, those in the race when it was seen
    curve: tuple[CurveScores, ...]
    nodes: tuple[float, ...]  # of the last part
    choosing: NDArray[np.int64]  # positions of the examples that chose
    confirming: NDArray[np.int64]  # all others
    baseline: Scores  # exact, at t = 0: of the choosing part, with ``full`` of all
    leaders: tuple[float, ...]  # what was best before each lot but the first
    challenged: tuple[Scores, ...]  # exact, of each lot but the first, at its leader
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

    def error(self, nodes: Sequence[float], high: float, *, slack: float = 0.0) -> float:
        """Largest error of loss (nats) and top-1 on [0, high], of a polynomial through other nodes.

        With ``slack`` a point may be off by that share of what it is worse than the best point.
        """
        points = np.linspace(0, high, 31)
        truth = interpolation_weights(self.nodes, points)
        other = interpolation_weights(nodes, points) @ interpolation_weights(self.nodes, nodes)
        return self._difference(self._scores(truth), self._scores(other), slack)

    def own_error(self, high: float) -> float:
        """The same of the pilot's own polynomial, by leaving out each inner node up to ``high`` in turn."""
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
        scores = CurveScores.empty(len(weights), len(self.targets))
        ids = torch.from_numpy(self.ids)
        score_curve_(scores, 0, self.logits, torch.from_numpy(weights).float(), self.targets, ids)
        return scores

    def curve(self, grid: ArrayLike) -> CurveScores:
        """Scores on a grid."""
        return self._scores(interpolation_weights(self.nodes, grid))

    def _difference(self, truth: CurveScores, other: CurveScores, slack: float = 0.0) -> float:
        loss, top1 = (
            (np.abs(a - other.average(m)) - slack * np.abs(a - INFO[m].sign * (INFO[m].sign * a).max())).max()
            for m in INTERPOLATED
            for a in [truth.average(m)]
        )
        # One example more or less says nothing: the pilot cannot see less of top-1 than that.
        return float(max(loss, top1 - 2 / len(self.targets)))


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
    least: int = 0,
) -> Search:
    """Look for the best α as this module's text says.

    Args:
        passes: the patched model and its data.
        objective: what to choose by.
        tolerance: error of the interpolated curve, in nats and as a fraction, that nodes are added until.
        race_delta: probability of dropping the α that is best on the choosing part; 0 drops nothing.
        first_range: where to look first, [0, first_range], if not where this module says.
        limit: about how far to look at most.
        least: how many examples choose at least; those that chose the range must not confirm the choice.

    Raises:
        NotFiniteError: an output that is not finite; ``within_finite_range`` looks nearer.
    """
    first_range = min(limit, first_range or (FULL_RANGE if full else FIRST_RANGE))
    ids = passes.data.ids
    order = image_order(passes.data.targets, ids, seed)
    n, looks = len(order), looks_at(ids)
    meter, slack = passes.meter, 0.0 if full else SLACK
    race_delta = race_delta if objective.is_plain_mean and not full else 0.0
    first = whole_images(order, ids, min(max(n // 20, PILOT[0]), PILOT[1]))
    last = whole_images(order, ids, int(looks[-1] * n))
    population = count_images(ids[order[:last]])
    meter.phase("pilot")
    passes.expect(expected_examples(n, full, looks))
    pilot, alive = look_at_pilot(
        passes, np.sort(order[:first]), objective, tolerance, race_delta, population, first_range, limit, full
    )
    grid = grid_of(pilot.range, full)
    nodes, error = fewest_nodes(pilot, grid[:alive], tolerance, slack)
    parts, baselines, leaders, challenged, seen = [], [], [0.0], [], 0
    stops = sorted({whole_images(order, ids, max(first, int(share * n))) for share in looks})
    for number, stop in enumerate(stops, 1):
        meter.phase(f"search {number} of {len(stops)}")
        passes.expect((last - seen) * len(nodes) + _expected_after(n, last, len(nodes) if full else 0))
        lot = np.sort(order[seen:stop])
        part, baseline, at_leader = passes.curve(lot, nodes, grid[:alive], leaders[-1])
        parts.append(part)
        baselines.append(baseline)
        challenged.append(at_leader)
        seen = stop
        if stop == last:
            break
        so_far = join(parts)
        if full:  # the nodes are to be the same for all examples: the best of them leads
            at_nodes = so_far.at([grid.index(t) for t in nodes])
            leaders.append(nodes[_best(at_nodes, objective)])
            continue
        leaders.append(grid[_best(so_far, objective)])
        if race_delta == 0:
            nodes = with_node(nodes, leaders[-1])
            continue
        values = _larger_is_better(so_far, objective)
        flags, regret = rule_out(values, population, race_delta, len(looks) + 1)
        alive = min(alive, int(np.flatnonzero(flags)[-1]) + 1)
        if (alive == 1 or regret <= tolerance) and seen >= least:
            break  # whatever is left is as good as the leader
        alive = max(alive, 3)
        nodes, error = fewest_nodes(pilot, grid[:alive], tolerance, slack)
        nodes = with_node(nodes, leaders[-1])
    joined = join(parts).first(alive)
    t = grid[_best(joined, objective)]
    if AT_END * grid[-1] <= t and grid[-1] < limit and alive == len(grid):
        wider = search(
            passes, objective, tolerance=tolerance, race_delta=race_delta, seed=seed, full=full,
            first_range=2 * grid[-1], limit=limit, least=seen,
        )  # fmt: skip
        # That the range was too small is what all lots said: none can test what was chosen before it.
        return replace(wider, leaders=(), challenged=())
    meter.phase("confirming")
    passes.expect(_expected_after(n, seen, len(nodes) if full else 0))
    if full:
        part, baseline, _ = passes.curve(np.sort(order[seen:]), nodes, grid, 0.0)
        parts, baselines = [*parts, part], [*baselines, baseline]
    complete = alive == len(grid) and not pilot.narrowed
    best = _optima(join(parts).first(alive), grid, objective, complete=complete, limit=limit)
    return Search(
        t=t,
        grid=grid[: parts[0].points],  # beyond it, the pilot saw enough
        curve=tuple(parts),
        nodes=nodes,
        choosing=np.sort(order[:seen]),
        confirming=np.sort(order[seen:]),
        baseline=concatenate(baselines),
        leaders=tuple(leaders[1:]),
        challenged=tuple(challenged[1:]),
        best=best,
        estimated_error=error,
    )


def _optima(
    scores: CurveScores, grid: Sequence[float], followed: Objective, *, complete: bool, limit: float
) -> dict[Metric, float]:
    """The best t of the metric that the search followed, and of the others where it can be told.

    What the race dropped for one metric's sake rests on fewer examples, so it is not known whether it is better by
    another. An optimum at the end of the range may lie beyond it.

    Args:
        scores: of the points that all examples saw.
        complete: whether the race dropped no point, and the pilot none either.
    """
    best = {metric: grid[_best(scores, Objective(metric))] for metric in METRICS}
    best[followed.metric] = grid[_best(scores, followed)]
    end = grid[scores.points - 1]
    return {
        metric: t
        for metric, t in best.items()
        if metric == followed.metric or (complete and (t < AT_END * end or end >= limit))
    }


def looks_at(ids: NDArray[np.int64]) -> tuple[float, ...]:
    """The looks at the choosing part, as shares of all examples."""
    return LOOKS_AT_CONDITIONS if has_conditions(ids) else LOOKS


def expected_examples(n: int, full: bool, looks: Sequence[float] = LOOKS) -> int:
    """About how many examples a search looks at, each once an α, before the pilot says how many nodes it takes."""
    first, last = min(max(n // 20, PILOT[0]), PILOT[1]), int(looks[-1] * n)
    return first * PILOT_NODES + last * USUAL_NODES + _expected_after(n, last, USUAL_NODES if full else 0)


def _expected_after(n: int, choosing: int, nodes: int) -> int:
    """The same of what follows the choice, which costs the confirming part so many nodes in a full curve."""
    confirming = n - choosing
    return confirming * (nodes + 1 if nodes else 2) + choosing


def best_on(found: Search, positions: NDArray[np.int64], objective: Objective) -> float:
    """The t that is best by those of the examples at some positions that chose."""
    joined = join(found.curve)
    seen = found.choosing
    if len(joined) > len(seen):  # a full curve is of all examples
        seen = np.sort(np.concatenate([found.choosing, found.confirming]))
    return found.grid[_best(joined.take(np.isin(seen, positions)), objective)]


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
        nodes = lobatto_nodes(PILOT_NODES, high)
        logits, targets = passes.logits(positions, nodes)
        pilot = Pilot(logits, targets, ids, nodes, high, narrowed)
        grid = grid_of(high, full)
        curve = pilot.curve(grid)
        totals = _totals(curve, objective)
        if totals[int(NEAR_END * len(grid)) :].max() == totals.max() and high < limit and not is_last:
            high = min(limit, 2 * high)
            continue
        values, looks = _larger_is_better(curve, objective), looks_at(ids)
        alive = int(np.flatnonzero(rule_out(values, population, race_delta, len(looks) + 1)[0])[-1]) + 1
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
    pilot: Pilot, grid: Sequence[float], tolerance: float, slack: float
) -> tuple[tuple[float, ...], float]:
    """Nodes among the points of a grid, as few as give the curve to within the tolerance, and the error to expect."""
    for count in NODE_COUNTS:
        wanted = np.array(lobatto_nodes(min(count, len(grid)), grid[-1]))
        # On the grid: what is measured has a round number, and the interpolation hardly minds.
        nearest = np.abs(np.asarray(grid)[:, None] - wanted).argmin(axis=0)
        nodes = tuple(grid[i] for i in sorted(set(nearest.tolist())))
        error = pilot.error(nodes, grid[-1], slack=slack)
        if error <= tolerance:
            break
    return nodes, max(error, 0.0)


def with_node(nodes: tuple[float, ...], t: float) -> tuple[float, ...]:
    """The nodes with t among them, in place of the nearest inner one."""
    if t in nodes:
        return nodes
    inner = nodes[1:-1]
    nearest = min(inner, key=lambda node: abs(node - t), default=None)
    return tuple(sorted({nodes[0], t, nodes[-1], *(node for node in inner if node != nearest)}))


def _totals(scores: CurveScores, objective: Objective) -> NDArray[np.float64]:
    """The objective at every point, larger is better; -inf where a guard rules a point out."""
    info = INFO[objective.metric]
    if not info.is_mean:
        return info.sign * scores.average(objective.metric)
    totals = objective.totals(scores.values(objective.metric), scores.ids)
    return np.where(objective.allowed(scores.values, scores.ids, "choose"), totals, -np.inf)


def _best(scores: CurveScores, objective: Objective) -> int:
    """The best point; among equals the nearest to the unpatched model."""
    return int(_totals(scores, objective).argmax())


def _larger_is_better(scores: CurveScores, objective: Objective) -> NDArray[Any]:
    """One number an image (points, images) whose mean is to be large; a statistic that is no mean as one column."""
    info = INFO[objective.metric]
    if not info.is_mean:
        return info.sign * scores.average(objective.metric)[:, None]
    if objective.is_plain_mean and not has_conditions(scores.ids):
        values = scores.values(objective.metric)
        return values.astype(np.float32) if info.higher_is_better else -values
    return objective.per_image(scores.values(objective.metric), scores.ids)
