"""What α costs layer by layer: how much longer a batch takes for each norm layer that is weighted instead of folded.

Runtimes fuse a layer with what stands beside it and choose memory layouts for
whole chains, so a layer by itself tells little. Whole networks are timed: with
α in all layers of one kind (the same shape in the same place of a block) and
none elsewhere, in turns with the folded network.

    cost of a layer = f · (time with α in its kind / time folded − 1) / layers of the kind

in multiples of the folded network's time. Between two weighted layers a runtime
saves what it would do between a weighted and a folded one, such as changing the
memory layout: f is the same for all layers and makes their costs add up to what
α in all of them takes. Costs are added up for any set of layers; how far that
holds is measured on random sets.
"""

from __future__ import annotations

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
from alphatune.norms.patching import example_weighted_layers

#: random sets of layers on which the sum of costs is compared with the time of the network
SETS = 4


@dataclass(frozen=True)
class LayerKind:
    """Layers that cost the same."""

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
    sets: tuple[MeasuredSet, ...]

    def ratio(self, layers: Collection[str]) -> float:
        """About how many times as long as the folded network α in these layers takes."""
        return _ratio(self.kinds, layers)


def _ratio(kinds: Sequence[LayerKind], layers: Collection[str]) -> float:
    """1, and the costs of some layers."""
    return 1 + sum(kind.share * len(set(kind.layers) & set(layers)) for kind in kinds)


def layer_costs(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    input_size: tuple[int, int, int],
    batch_size: int,
    *,
    runtime: Literal["torch", "onnx"],
    alpha: float,
    seconds: float,
    sets: int = SETS,
    seed: int = 0,
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
    spent: Callable[[float], None] = lambda _: None,
) -> LayerCosts:
    """Time a network with α in one kind of layers after another.

    Args:
        model: a classifier with BatchNorm layers; it is not touched.
        shapes: of an example's activation by layer, as the forward pass sees it.
        input_size: (C, H, W) of an image.
        alpha: of weighted layers; any value but 0 costs the same.
        seconds: budget of each network, less its first call; at least three rounds.
        sets: random sets of layers to compare the sum of costs on.
        exclude, skip_unknown: as for ``patch_``.
        spent: called between the timings with the seconds that passed.

    Raises:
        UnsupportedModelError: no norm layer folds into a convolution, or a network that cannot be exported.
        ConfigurationError: a package that the runtime needs is missing.
    """
    weighted = example_weighted_copy(model, alpha, exclude, skip_unknown)
    folded = fold(model).folded
    names = [name for name, _ in example_weighted_layers(weighted) if name in folded and name in shapes]
    if not names:
        raise UnsupportedModelError("no norm layer that takes an α folds into a convolution")
    device = next(model.parameters()).device
    images = torch.randn((batch_size, *input_size), generator=torch.Generator().manual_seed(seed)).to(device)

    def run_with(layers: Collection[str]) -> Run:
        network = fold(model, keep=layers).model
        if layers:
            network = example_weighted_copy(network, dict.fromkeys(layers, alpha), (), skip_unknown=True)
        return graph_in_onnxruntime(network, input_size) if runtime == "onnx" else _in_torch(network)

    baseline = run_with(())

    def timed(layers: Sequence[str]) -> tuple[float, Timing]:
        runs = {"weighted": partial(run_with(layers), images), "folded": partial(baseline, images)}
        timings = interleave(runs, seconds=seconds, device=device, spent=spent)
        return ratio(timings["weighted"], timings["folded"]), timings["folded"]

    kinds = []
    for layers in group_alike(names, shapes):
        times, _ = timed(layers)
        kinds.append(LayerKind(layers, shapes[layers[0]], (times - 1) / len(layers)))
    everywhere, of_folded = timed(names)
    if (added := _ratio(kinds, names) - 1) > 0 and everywhere > 1:
        kinds = [replace(kind, share=kind.share * (everywhere - 1) / added) for kind in kinds]
    rng = random.Random(seed)
    drawn = [tuple(name for name in names if rng.random() < 0.5) for _ in range(sets)]
    measured = [MeasuredSet(each, _ratio(kinds, each), timed(each)[0]) for each in drawn if each]
    return LayerCosts(batch_size, of_folded.median, tuple(kinds), everywhere, tuple(measured))


def group_alike(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, ...], ...]:
    """Layers of the same shape in the same place of a block, in model order."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in names:
        groups.setdefault((_place(name), shapes[name]), []).append(name)
    return tuple(map(tuple, groups.values()))


def _place(name: str) -> str:
    """``bn1`` of ``layer3.5.bn1``, ``conv.0.1`` of ``features.7.conv.0.1``: from the last word on."""
    parts = name.split(".")
    words = [i for i, part in enumerate(parts) if not part.isdigit()]
    return ".".join(parts[words[-1] if words else 0 :])


def _in_torch(network: nn.Module) -> Run:
    network.eval()  # here, not in what is timed

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        output: Tensor = network(images)
        return output

    return run
