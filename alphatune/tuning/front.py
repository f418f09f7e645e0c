"""What α gains in each set of layers, what it costs there, and which set to deploy.

Layers are left out (layers.py) on either half of the examples, and each set's α
is scored on the other half, as levels are (refinement.py). With a budget the
set with the highest objective within it is chosen; without one the cheapest
that is not significantly worse than the best. Its gain over the plain network
must be significant, with the interval widened for the number of sets
(Bonferroni).

What is deployed combines the halves: the layers that both kept for longest,
with α fitted on all examples. Where time can be measured, that very set is
timed, and layers are left out until it keeps the budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from alphatune.norms.patching import Alpha
from alphatune.results.front import Front, LayerSet
from alphatune.statistics.scores import summarise
from alphatune.tuning.candidate import Candidate
from alphatune.tuning.fits import Fits
from alphatune.tuning.granularity import Granularity, Units
from alphatune.tuning.layers import ROUNDING, LayerLimit, LayerPrices, Step, shrink
from alphatune.tuning.out_of_fold import OutOfFold
from alphatune.tuning.passes import Passes
from alphatune.tuning.selection import Accept

#: what the sets may cost, as shares of what α in all layers costs
SHARES = (0.7, 0.5, 0.35, 0.25, 0.15, 0.08)
#: how often layers are left out of the final set until its measured time keeps the budget
ATTEMPTS = 4
#: costs below which there is nothing to save, in multiples of the folded network's time
NEGLIGIBLE = 0.005
#: by how much the limit falls at least where the measured time breaks the budget
LEAST_STEP = 0.002


@dataclass(frozen=True)
class Fitted:
    """α of a level in all layers, of each half, and its scores."""

    level: Granularity
    accepted: bool
    alphas: Sequence[Mapping[str, Alpha]]
    temperatures: Sequence[float]
    priors: Sequence[float]
    scored: OutOfFold


@dataclass(frozen=True)
class ChosenSet:
    """The set of the front that won: what it may cost, its scores out of fold, and both halves' steps down to it."""

    units: Units  # of all layers
    limit: LayerLimit
    scored: OutOfFold
    steps: Sequence[Sequence[Step]]

    @property
    def numbers(self) -> int:
        """How many numbers α consists of there: the larger of the halves."""
        return max(len(self.units.only(steps[-1].layers)) for steps in self.steps)

    def order(self, prices: LayerPrices) -> list[str]:
        """The layers that a half kept to the end, those first that both kept for longest."""
        kept_for = Counter(layer for steps in self.steps for step in steps for layer in step.layers)
        last = [steps[-1] for steps in self.steps]
        worth = {
            layer: sum(step.worth.get(layer, 0.0) for step in last)
            for layer, _ in self.units.layers
            if any(layer in step.layers for step in last)
        }
        return sorted(prices.in_order(worth), key=lambda layer: -kept_for[layer])  # stable

    def start(self, passes: Passes) -> dict[str, Alpha]:
        """α of every layer between those of the halves that kept it: their mean in log-odds."""
        values = torch.stack([self.units.gather(steps[-1].alphas) for steps in self.steps])
        count = (values > 0).sum(0)
        inner = torch.logit(values.clamp(1e-4, 1 - 1e-4)).masked_fill(values == 0, 0.0)
        mean = torch.sigmoid(inner.sum(0) / count.clamp(min=1))
        return self.units.alphas(torch.where(count > 0, mean, passes.baseline))


def limits_of(prices: LayerPrices, everywhere: float) -> tuple[LayerLimit, ...]:
    """What the sets may cost, falling: shares of what α in all layers does, and the budget."""
    most = {1 + share * (everywhere - 1) for share in SHARES}
    if prices.budget is not None:
        most.add(prices.budget)
    return tuple(LayerLimit(prices, each) for each in sorted(most, reverse=True) if 1 < each < everywhere)


def find_front(
    fits: Fits,
    halves: Sequence[NDArray[np.int64]],
    plain: OutOfFold,
    fitted: Fitted,
    prices: LayerPrices,
    *,
    accept: Accept,
) -> tuple[Front, ChosenSet | None]:
    """Leave layers out, from α of a level in all of them, and choose a set as this module's text says."""
    passes, objective, seed, level = fits.passes, fits.objective, fits.seed, fitted.level
    units = fits.units[level]
    everything = tuple(name for name, _ in units.layers)
    everywhere = prices.ratio(everything)
    limits = limits_of(prices, everywhere) if everywhere > 1 + NEGLIGIBLE else ()

    def steps_of(fold: int) -> list[Step]:
        positions = halves[1 - fold]
        return shrink(
            passes,
            objective,
            lambda parameters, start, name: fits.descend(
                positions, parameters, start, fitted.priors[fold], f"{level}-{name}-{fold}", fold
            ),
            units,
            positions,
            fitted.alphas[fold],
            fitted.temperatures[fold],
            limits,
            seed,
        )

    halves_steps = passes.world.share_out(steps_of, 2)
    points = [_Point(fitted.scored, (everywhere, everywhere), (len(everything),) * 2, ())]
    for count in range(1, min(map(len, halves_steps)) + 1):
        steps = tuple(each[:count] for each in halves_steps)
        last = [each[-1] for each in steps]
        if count > 1 and all(step is before[-2] for step, before in zip(last, steps, strict=True)):
            continue  # the set before keeps this limit, too
        candidates = [Candidate(step.alphas) for step in last]
        one, other = last
        points.append(
            _Point(
                OutOfFold.within_guards(passes, objective, halves, candidates, plain),
                (prices.ratio(one.layers), prices.ratio(other.layers)),
                (len(one.layers), len(other.layers)),
                steps,
            )
        )
    sets = [_describe(point, plain, fits, prices, len(points)) for point in points]
    chosen = _choose(points, sets, fits, prices, fitted.accepted, accept)
    front = Front(
        granularity=level,
        with_temperature=fits.temperature,
        runtime=prices.runtime,
        batch_size=prices.costs.batch_size,
        threads=prices.threads,
        budget=prices.budget,
        sets=tuple(sets),
        chosen=chosen,
    )
    if not chosen:
        return front, None
    point = points[chosen]
    return front, ChosenSet(units, LayerLimit(prices, max(point.ratios)), point.scored, point.steps)


@dataclass(frozen=True)
class _Point:
    """A set of layers of each half, and its scores; steps down to it, none for all layers."""

    scored: OutOfFold
    ratios: tuple[float, float]
    counts: tuple[int, int]
    steps: Sequence[Sequence[Step]]


def _describe(point: _Point, plain: OutOfFold, fits: Fits, prices: LayerPrices, comparisons: int) -> LayerSet:
    objective, joint = fits.objective, fits.temperature
    return LayerSet(
        layers=point.counts,
        ratio=sum(point.ratios) / 2,
        metrics=summarise(point.scored.raw),
        calibrated=summarise(point.scored.calibrated),
        gain=point.scored.gain_over(plain, objective, joint, fits.seed, comparisons),
        within_budget=prices.budget is None or max(point.ratios) <= prices.budget + ROUNDING,
        keeps_guards=point.scored.keeps_guards(plain, objective, joint),
    )


def _choose(
    points: Sequence[_Point],
    sets: Sequence[LayerSet],
    fits: Fits,
    prices: LayerPrices,
    everywhere: bool,
    accept: Accept,
) -> int | None:
    """The place of the set to deploy, as this module's text says.

    Args:
        everywhere: whether α in all layers may be.
    """
    good = [
        place
        for place, each in enumerate(sets)
        if (place or everywhere)
        and each.within_budget
        and each.keeps_guards
        and (each.gain.significant or (accept == "best" and each.gain.delta > 0))
    ]
    if not good:
        return None
    best = max(good, key=lambda place: sets[place].gain.delta)
    if prices.budget is not None:
        return best

    def is_worse(place: int) -> bool:
        over = points[best].scored.gain_over(
            points[place].scored, fits.objective, fits.temperature, fits.seed, 1
        )
        return over.significant

    return min((place for place in good if not is_worse(place)), key=lambda place: sets[place].ratio)


def settle(front: Front, part: ChosenSet | None, fits: Fits, prices: LayerPrices) -> Front:
    """The front with the very layers to deploy, timed where that can be; nothing is chosen if no set keeps the budget.

    Layers that both halves kept for longest come first; none is taken that neither half has kept to the end.
    """
    if front.chosen is None:
        return front
    units = fits.units[front.granularity]
    everything = [layer for layer, _ in units.layers]
    order, limit = (
        (everything, prices.ratio(everything)) if part is None else (part.order(prices), part.limit.most)
    )
    kept = prices.affordable(order, limit)
    measured = _measured(prices, units, kept, fits.passes)
    for _ in range(ATTEMPTS):
        if measured is None or prices.budget is None or measured <= prices.budget:
            break
        limit -= max(measured - prices.budget, LEAST_STEP)
        kept = prices.affordable(order, limit)
        measured = _measured(prices, units, kept, fits.passes)
    if not kept or (measured is not None and prices.budget is not None and measured > prices.budget):
        return structs.replace(front, chosen=None)
    layers = tuple(layer for layer, _ in units.layers if layer in kept)
    return structs.replace(front, layers=layers, predicted=prices.ratio(layers), measured=measured)


def _measured(prices: LayerPrices, units: Units, kept: Collection[str], passes: Passes) -> float | None:
    """How many times as long as the folded network α in these layers takes, timed by one process."""
    if not kept or (measure := prices.measure) is None:
        return None
    layers = [layer for layer, _ in units.layers if layer in kept]
    return passes.world.run_on_all_ranks(lambda: measure(layers) if passes.world.first else 0.0)[0]
