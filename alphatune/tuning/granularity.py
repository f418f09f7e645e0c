"""Which α are one number: of the whole model, of a stage, of a layer, or of each channel.

A *stage* is a run of layers, in the order in which they are reached, that see
maps of one size: what the field calls the stages of a network, found without
knowing how its modules are called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from alphatune.evaluation.predictor import evaluation_mode
from alphatune.norms.example_weighted import ExampleWeighted
from alphatune.norms.patching import Alpha, differentiable_alpha, example_weighted_layers, set_alpha_
from alphatune.norms.watching import watching

Granularity = Literal["global", "stage", "layer", "channel"]
#: from coarse to fine
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
#: the sigmoid has no way to 0 or 1: a descent starts this far from them, and ends there when as near
NEAREST, AT_END = 0.01, 0.001


@dataclass(frozen=True)
class Units:
    """The numbers that α consists of: unit i is the α of some layers, or of one channel.

    To a descent they are parameters (parameters.py) with α = sigmoid(θ).
    """

    granularity: Granularity
    #: each layer's name, and its units: one, or as many as channels
    layers: tuple[tuple[str, range], ...]
    names: tuple[str, ...]  # of each group of units: "stage 1", a layer's name

    def __len__(self) -> int:
        """The number of units."""
        return max(units.stop for _, units in self.layers)

    def spread(self, values: Tensor) -> dict[str, Tensor]:
        """Values of the units (U,) as the α of each layer, () or (C,); differentiable."""
        return {
            name: values[units.start] if len(units) == 1 else values[units.start : units.stop]
            for name, units in self.layers
        }

    def alphas(self, values: Sequence[float] | Tensor) -> dict[str, Alpha]:
        """The same as numbers, or tensors (C,), as ``set_alpha_`` takes them."""
        wide = torch.as_tensor(values, dtype=torch.float64)
        return {
            name: float(alpha) if alpha.ndim == 0 else alpha.float()
            for name, alpha in self.spread(wide).items()
        }

    def gather(self, alphas: Mapping[str, Alpha]) -> Tensor:
        """The value of each unit (U,) in α given layer by layer: the mean where a unit's layers differ."""
        total, count = (
            torch.zeros(len(self), dtype=torch.float64),
            torch.zeros(len(self), dtype=torch.float64),
        )
        for name, units in self.layers:
            alpha = torch.as_tensor(alphas[name], dtype=torch.float64).expand(max(len(units), 1))
            total[units.start : units.stop] += alpha if len(units) > 1 else alpha.mean()
            count[units.start : units.stop] += 1
        return total / count

    def only(self, layers: Collection[str]) -> Units:
        """The units of some layers; the others keep the α of the unpatched model."""
        kept: list[tuple[str, range]] = []
        place: dict[int, int] = {}  # of each unit's first number
        end = 0
        for name, units in self.layers:
            if name in layers:
                if units.start not in place:
                    place[units.start], end = end, end + len(units)
                start = place[units.start]
                kept.append((name, range(start, start + len(units))))
        if self.granularity in ("layer", "channel"):
            return Units(self.granularity, tuple(kept), tuple(name for name, _ in kept))
        return Units(self.granularity, tuple(kept), tuple(self.names[first] for first in place))

    @property
    def epochs(self) -> int:
        """Few: what few examples can say is soon said."""
        return 4

    @property
    def most_steps(self) -> int:
        return 48

    def learning_rate(self, _: float) -> float:
        return 0.15

    @property
    def prior_deviation(self) -> float:
        """In log-odds: between α = 0.02 and 0.13, say."""
        return 2.0

    def to_theta(self, values: Tensor) -> Tensor:
        """The log-odds of α, some way from those of 0 and 1."""
        return torch.logit(values.clamp(NEAREST, 1 - NEAREST))

    def to_values(self, theta: Tensor) -> Tensor:
        """α to four digits; what is next to 0 or 1 is that."""
        alpha = torch.sigmoid(theta).mul(1e4).round().div(1e4)
        return alpha.masked_fill(alpha < AT_END, 0.0).masked_fill(alpha > 1 - AT_END, 1.0)

    def differentiable(self, model: nn.Module, theta: Tensor) -> AbstractContextManager[None]:
        """The model runs at α = sigmoid(θ), with a gradient for θ."""
        layers = dict(example_weighted_layers(model))
        return differentiable_alpha(
            {
                layers[name]: alpha.to(layers[name].alpha)
                for name, alpha in self.spread(torch.sigmoid(theta)).items()
            }
        )

    def set_(self, model: nn.Module, values: Tensor) -> None:
        """Set α."""
        set_alpha_(model, self.alphas(values))

    def kept(self, _: nn.Module) -> AbstractContextManager[None]:
        """Nothing but α is changed."""
        return nullcontext()


def units_of(model: nn.Module, granularity: Granularity, inputs: Tensor) -> Units:
    """The units of a patched model.

    Args:
        inputs: a prepared input; it is run through the model to see the order and sizes of its layers.
    """
    layers = _in_order(model, inputs)
    if granularity == "channel":
        sized, start = [], 0
        for name, layer, _ in layers:
            channels = layer.running_mean.shape[0]
            sized.append((name, range(start, start + channels)))
            start += channels
        return Units(granularity, tuple(sized), tuple(name for name, _ in sized))
    if granularity == "layer":
        ranges = tuple((name, range(i, i + 1)) for i, (name, _, _) in enumerate(layers))
        return Units(granularity, ranges, tuple(name for name, _ in ranges))
    if granularity == "global":
        return Units(granularity, tuple((name, range(1)) for name, _, _ in layers), ("all layers",))
    staged: list[tuple[str, range]] = []
    names = []
    for i, (size, members) in enumerate(groupby(layers, key=lambda seen: seen[2])):
        staged += [(name, range(i, i + 1)) for name, _, _ in members]
        names.append(f"stage {i + 1} ({'×'.join(map(str, size)) or 'vectors'})")
    return Units(granularity, tuple(staged), tuple(names))


def _in_order(model: nn.Module, inputs: Tensor) -> list[tuple[str, ExampleWeighted, tuple[int, ...]]]:
    """Name, layer and map size of every example-weighted layer, in the order they are first reached."""
    layers = dict(example_weighted_layers(model))
    seen: dict[str, tuple[int, ...]] = {}

    def see(name: str, _: nn.Module, x: Tensor) -> None:
        seen.setdefault(name, tuple(x.shape[2:]))

    with watching(model, layers, see), evaluation_mode(model):
        model(inputs[:1])
    order = [(name, layers[name], size) for name, size in seen.items()]
    last = order[-1][2] if order else ()
    # Layers that this image does not reach have no say here; they keep whatever the last ones get.
    return order + [(name, layer, last) for name, layer in layers.items() if name not in seen]
