"""What α costs layer by layer: how much longer a batch takes for each norm layer that is weighted instead of folded.

Runtimes fuse a layer with what stands beside it and choose memory layouts for
whole chains, so a layer by itself tells little. Whole networks are timed: with
α in all layers of one kind (the same place of a block and the same map size) and
none elsewhere, in turns with the folded network.

    cost of a layer = f · (time with α in its kind / time folded − 1) · its channels / channels of its kind

in multiples of the folded network's time. Between two weighted layers a runtime
saves what it would do between a weighted and a folded one, such as changing the
memory layout: f is the same for all layers, and makes their costs add up to
what α in all of them and in random halves of them takes. Costs are added up for
any set of layers; how far that holds is measured on other random sets.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from alphatune.core.errors import UnsupportedModelError
from alphatune.core.timing import Timing, interleave, ratio
from alphatune.export.agreement import Run
from alphatune.export.deployment import example_weighted_copy
from alphatune.export.folding import fold
from alphatune.export.graph_cost import graph_in_onnxruntime
from alphatune.models.copying import stock_copy
from alphatune.norms.patching import example_weighted_layers

#: random sets of layers that f is fitted to, beside all layers
FITTED = 3
#: random sets of layers on which the sum of costs is compared with the time of the network
SETS = 4


@dataclass(frozen=True)
class LayerKind:
    """Layers of the same shape, which cost the same."""

    layers: tuple[str, ...]
    shape: tuple[int, ...]  # (C, H, W) of an example's activation
    share: float  # of the folded network's time, each layer


@dataclass(frozen=True)
class MeasuredSet:
    """A set of layers, and how many times as long as the folded network it takes."""

    layers: tuple[str, ...]
    predicted: float  # by adding up
    measured: float


@dataclass(frozen=True)
class LayerCosts:
    """What was measured for batches of one size."""

    batch_size: int
    folded_s: float  # seconds that the folded network takes for a batch
    kinds: tuple[LayerKind, ...]
    everywhere: float  # times the folded network with α in all layers
    sets: tuple[MeasuredSet, ...] = ()

    def of(self, layer: str) -> float:
        """What α in a layer adds, in multiples of the folded network's time; 0 for one that was not timed."""
        return next((kind.share for kind in self.kinds if layer in kind.layers), 0.0)

    def ratio(self, layers: Collection[str]) -> float:
        """About how many times as long as the folded network α in these layers takes."""
        return 1 + sum(map(self.of, layers))


class LayerTimer:
    """Times a network with α in some of its layers in turns with the folded one, on random images.

    Args:
        model: a classifier with BatchNorm layers; it is copied, so that it may be changed meanwhile.
        input_size: (C, H, W) of an image.
        alpha: of weighted layers; any value but 0 costs the same.
        seconds: budget of each network, less its first call; at least three rounds.
        dtype, channels_last: how torch runs it, as for ``Predictor``.
        exclude, skip_unknown: as for ``patch_``.
        spent: called between the timings with the seconds that passed.

    Raises:
        UnsupportedModelError: no norm layer folds into a convolution, or a network that cannot be exported.
        ConfigurationError: a package that the runtime needs is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: tuple[int, int, int],
        batch_size: int,
        *,
        runtime: Literal["torch", "onnx"],
        alpha: float,
        seconds: float,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        seed: int = 0,
        exclude: Collection[str] = (),
        skip_unknown: bool = False,
        spent: Callable[[float], None] = lambda _: None,
    ) -> None:
        weighted = example_weighted_copy(model, alpha, exclude, skip_unknown)
        #: layers that may take an α
        self.layers = tuple(name for name, _ in example_weighted_layers(weighted))
        if not set(self.layers) & set(fold(model).folded):
            raise UnsupportedModelError("no norm layer that takes an α folds into a convolution")
        self.batch_size, self.runtime, self.seed = batch_size, runtime, seed
        self._model = stock_copy(model)
        self._device = next(model.parameters()).device
        if runtime == "onnx" and self._device.type != "cpu":  # a graph runs there
            self._model, self._device = copy.deepcopy(self._model).cpu(), torch.device("cpu")
        self._input_size = input_size
        self._alpha, self._seconds, self._spent = alpha, seconds, spent
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn((batch_size, *input_size), generator=generator).to(self._device)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self._images, self._dtype = images.contiguous(memory_format=layout), dtype
        self._folded = self._run_with(())

    def ratio(self, layers: Collection[str]) -> float:
        """How many times as long as the folded network one with α in these layers takes."""
        return self._time(layers)[0]

    def costs(self, shapes: Mapping[str, tuple[int, ...]], *, sets: int = SETS) -> LayerCosts:
        """Time α in one kind of layers after another.

        Args:
            shapes: (C, H, W) of an example's activation by layer, as the forward pass sees it.
            sets: random sets of layers to compare the sum of costs on.

        Raises:
            UnsupportedModelError: the forward pass sees none of the layers.
        """
        names = [name for name in self.layers if name in shapes]
        if not names:
            raise UnsupportedModelError("the forward pass reaches no norm layer that takes an α")
        costs: dict[str, float] = {}
        for layers in group_alike(names, shapes):
            added, channels = self.ratio(layers) - 1, sum(shapes[name][0] for name in layers)
            costs |= {name: added * shapes[name][0] / channels for name in layers}
        rng = random.Random(self.seed)

        def draw(count: int) -> list[tuple[str, ...]]:
            drawn = (tuple(name for name in names if rng.random() < 0.5) for _ in range(count))
            return [each for each in drawn if each]

        everywhere, folded = self._time(names)
        fitted = {tuple(names): everywhere} | {each: self.ratio(each) for each in draw(FITTED)}
        taken = sum(times - 1 for times in fitted.values())
        if (added := sum(costs[name] for layers in fitted for name in layers)) > 0 and taken > 0:
            costs = {name: cost * taken / added for name, cost in costs.items()}
        kinds = tuple(
            LayerKind(layers, shapes[layers[0]], costs[layers[0]])
            for layers in group_alike(names, shapes, True)
        )
        found = LayerCosts(self.batch_size, folded.median, kinds, everywhere)
        measured = tuple(MeasuredSet(each, found.ratio(each), self.ratio(each)) for each in draw(sets))
        return replace(found, sets=measured)

    def _time(self, layers: Collection[str]) -> tuple[float, Timing]:
        runs = {
            "weighted": partial(self._run_with(layers), self._images),
            "folded": partial(self._folded, self._images),
        }
        timings = interleave(runs, seconds=self._seconds, device=self._device, spent=self._spent)
        return ratio(timings["weighted"], timings["folded"]), timings["folded"]

    def _run_with(self, layers: Collection[str]) -> Run:
        network = fold(self._model, keep=layers).model
        if layers:
            network = example_weighted_copy(
                network, dict.fromkeys(layers, self._alpha), (), skip_unknown=True
            )
        if self.runtime == "onnx":
            return graph_in_onnxruntime(network, self._input_size)
        return _in_torch(network, self._dtype)


def group_alike(
    names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], same_channels: bool = False
) -> tuple[tuple[str, ...], ...]:
    """Layers of the same map size in the same place of a block, in model order; of the same shape if asked for."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in names:
        shape = shapes[name] if same_channels else shapes[name][1:]
        groups.setdefault((_place(name), shape), []).append(name)
    return tuple(map(tuple, groups.values()))


def _place(name: str) -> str:
    """``bn1`` of ``layer3.5.bn1``, ``conv.0.1`` of ``features.7.conv.0.1``: from the last word on."""
    parts = name.split(".")
    words = [i for i, part in enumerate(parts) if not part.isdigit()]
    return ".".join(parts[words[-1] if words else 0 :])


def _in_torch(network: nn.Module, dtype: torch.dtype) -> Run:
    network.eval()  # here, not in what is timed

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            output: Tensor = network(images)
        return output

    return run
