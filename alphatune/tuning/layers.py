"""Which layers take an α: smaller and smaller sets of them, by what each layer is worth and costs.

A norm layer with α > 0 does not fold into the convolution before it, so every
such layer costs time (export/layer_costs.py). From α in all layers, those that
are worth least for what they cost are left out, α of the others is fitted anew,
and so on, down to one limit of the cost after another. A layer that is left out
is at α = 0 exactly, and folds.

    worth of a layer = −∫₀¹ α · ∂ℓ/∂α at t·α dt

ℓ is what a descent minimises (descent.py), and t·α that share of every layer's
α. This is the Aumann-Shapley value: the worths of all layers add up to what α
takes off ℓ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alphatune.evaluation.predictor import evaluation_mode
from alphatune.export.layer_costs import LayerCosts
from alphatune.norms.patching import Alpha, differentiable_alpha, example_weighted_layers
from alphatune.results.front import PricedBy
from alphatune.tuning.descent import Fit, differentiable, smooth_objective, unchanged
from alphatune.tuning.granularity import Units
from alphatune.tuning.objective import Objective
from alphatune.tuning.ordering import stratified_order
from alphatune.tuning.parameters import Parameters
from alphatune.tuning.passes import Passes

#: examples that say what layers are worth, how many at a time, and points of the integral (Gauss-Legendre)
WORTH_EXAMPLES, AT_A_TIME, POINTS = 512, 64, 4
#: what a layer is taken to cost at least, in multiples of the folded network's time
LEAST_COST = 1e-5
#: of sums of costs
ROUNDING = 1e-9

#: fits parameters on the examples of the step, from a start; the text names the fit for the journal
Descend = Callable[[Parameters, Tensor, str], Fit]


@dataclass(frozen=True)
class LayerPrices:
    """What α costs in each layer, and how much all may.

    Args:
        budget: times as long as the folded network that inference may take; None: no limit.
        measure: how many times as long it takes with α in some layers; None: the sum of their costs has to do.
    """

    costs: LayerCosts
    runtime: PricedBy
    threads: int
    budget: float | None = None
    measure: Callable[[Collection[str]], float] | None = None

    def ratio(self, layers: Collection[str]) -> float:
        """About how many times as long as the folded network α in these layers takes."""
        return 1 + sum(map(self._cost, layers))

    def in_order(self, worth: Mapping[str, float]) -> list[str]:
        """The layers that are worth something, by what they are worth for their cost."""
        useful = [name for name in worth if worth[name] > 0]
        return sorted(useful, key=lambda name: worth[name] / self._cost(name), reverse=True)

    def affordable(self, order: Sequence[str], limit: float) -> frozenset[str]:
        """As many layers as keep a limit, the first ones first."""
        kept, total = set(), 1.0
        for name in order:
            if total + self._cost(name) <= limit + ROUNDING:
                kept.add(name)
                total += self._cost(name)
        return frozenset(kept)

    def _cost(self, layer: str) -> float:
        return max(self.costs.of(layer), LEAST_COST)


@dataclass(frozen=True)
class LayerLimit:
    """What α may cost, in multiples of the folded network's time."""

    prices: LayerPrices
    most: float


@dataclass(frozen=True)
class Step:
    """Layers that keep a limit, and α fitted in them."""

    layers: tuple[str, ...]
    alphas: Mapping[str, Alpha]  # of every layer: that of the unpatched model where it is left out
    worth: Mapping[str, float]  # of the layers that there were before


def shrink(
    passes: Passes,
    objective: Objective,
    descend: Descend,
    units: Units,
    positions: NDArray[np.int64],
    alphas: Mapping[str, Alpha],
    temperature: float,
    limits: Sequence[LayerLimit],
    seed: int,
) -> list[Step]:
    """Leave layers out until α keeps one limit after another, and fit it anew each time.

    Args:
        descend: fits the α of some layers on the same examples.
        units: of all layers.
        positions: of the examples.
        alphas: of all layers, to begin with.
        temperature: that goes with them.
        limits: from the highest to the lowest.

    Returns:
        A step for each limit that any layer keeps.
    """
    everything = tuple(layer for layer, _ in units.layers)
    unpatched = dict.fromkeys(everything, passes.baseline)
    kept, steps, known = everything, list[Step](), dict[str, float]()
    for limit in limits:
        if not known:
            given = {layer: alphas[layer] for layer in kept}
            known = worth_of_layers(passes, objective, given, temperature, positions, seed)
        affordable = limit.prices.affordable(limit.prices.in_order(known), limit.most)
        if not affordable:
            break
        if steps and affordable == set(kept):  # it has kept this limit before
            steps.append(steps[-1])
            continue
        kept = tuple(layer for layer in kept if layer in affordable)
        part = units.only(kept)
        found = descend(part, part.gather(alphas), name_of_set(kept))
        alphas, temperature = unpatched | part.alphas(found.values), found.temperature
        steps.append(Step(kept, alphas, known))
        known = {}
    return steps


def worth_of_layers(
    passes: Passes,
    objective: Objective,
    alphas: Mapping[str, Alpha],
    temperature: float,
    positions: NDArray[np.int64],
    seed: int,
) -> dict[str, float]:
    """What α of each layer takes off the objective, as this module's text says; others are at that of the unpatched.

    Args:
        temperature: of the logits.
        positions: of the examples, of which some are drawn.
    """
    predictor = differentiable(passes.predictor)
    model = predictor.model
    layers = dict(example_weighted_layers(model))
    order = positions[stratified_order(passes.data.targets[positions], seed)]
    drawn = np.sort(order[:WORTH_EXAMPLES])
    total = dict.fromkeys(alphas, 0.0)
    given = {name: torch.as_tensor(alpha).to(layers[name].alpha) for name, alpha in alphas.items()}
    with unchanged(model), evaluation_mode(model):
        for layer in layers.values():
            layer.set_alpha(passes.baseline)
        for batch in passes.data.take(drawn):
            prepared = predictor.prepare(batch.inputs)
            for start in range(0, len(batch), AT_A_TIME):
                inputs = prepared[start : start + AT_A_TIME]
                targets = batch.targets[start : start + AT_A_TIME]
                for node, weight in zip(*np.polynomial.legendre.leggauss(POINTS), strict=True):
                    share = (node + 1) / 2
                    at = {name: (float(share) * alpha).requires_grad_() for name, alpha in given.items()}
                    with torch.enable_grad(), differentiable_alpha({layers[n]: a for n, a in at.items()}):
                        logits = predictor.whole(inputs)
                        loss = smooth_objective(logits, targets, objective.metric, temperature).sum()
                        slopes = torch.autograd.grad(loss, [*at.values()], allow_unused=True)
                    for name, slope in zip(at, slopes, strict=True):
                        if slope is not None:  # of a layer that these images do not reach
                            total[name] -= weight / 2 * float((given[name] * slope).sum())
            passes.meter.add(len(batch) * POINTS)
    return {name: float(value) / len(drawn) for name, value in total.items()}


def name_of_set(layers: Sequence[str]) -> str:
    """Tells sets of layers apart."""
    return hashlib.sha256("\n".join(layers).encode()).hexdigest()[:12]
