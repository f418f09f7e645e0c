"""What the norm layers of a model see of a set of images, pooled over all of them.

A forward pass is watched (norms/watching.py), and can end at the layer in question. The
model is in eval mode at the α at which a patched one is the unpatched, and
nothing of it is changed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from alphatune.core.distributed import World
from alphatune.core.errors import DataError
from alphatune.core.progress import Meter, ShowProgress, as_meter, shows_progress
from alphatune.data.checksums import check_repeats, checksums
from alphatune.data.custom_batches import as_loader, only_inputs
from alphatune.data.custom_loader import LoaderBatches
from alphatune.data.custom_pairs import count_examples
from alphatune.data.loading import Batch, Batches
from alphatune.data.workers import from_workers
from alphatune.evaluation.predictor import Predictor, evaluation_mode, explaining_failure
from alphatune.norms.patching import example_weighted_layers
from alphatune.norms.pooling import Moments, merge, moments_of
from alphatune.norms.survey import survey
from alphatune.norms.watching import watching

#: batches of labelled images; or of any iterable, (inputs, ...) or inputs
Data = Batches | LoaderBatches | Iterable[Any]


@shows_progress
def measure_moments(
    model: nn.Module,
    data: Data,
    *,
    predictor: Predictor | None = None,
    world: World | None = None,
    progress: ShowProgress = None,
) -> dict[str, Moments]:
    """Pooled moments of every known norm layer's input, in eval mode at the unpatched α; nothing is changed.

    Args, raises: as for ``calibrate_``. Layers that no forward pass came to are left out.
    """
    names = tuple(x.name for x in survey(model) if x.status in ("patchable", "patched", "calibratable"))
    meter = as_meter(progress)
    meter.phase("measuring")
    with unweighted(model):
        return pool_inputs(model, names, data, predictor, world, meter)[0]


def pool_inputs(
    model: nn.Module,
    names: tuple[str, ...],
    data: Data,
    predictor: Predictor | None,
    world: World | None,
    meter: Meter,
    *,
    until: tuple[str, int] | None = None,
    seen: list[NDArray[np.int64]] | None = None,
) -> tuple[dict[str, Moments], int]:
    """Moments of the inputs of some layers over all data and processes, and the number of examples.

    Args:
        meter: told of every batch, and how many examples to expect, if that is not known already.
        seen: takes the checksums of a loader's images, sorted.

    Raises:
        ConfigurationError: a loader gave many images twice.
    """
    world = world or World()
    if until is None:
        meter.expect(_share(data, world))

    def share() -> tuple[dict[str, Moments], int, NDArray[np.int64]]:
        sums = [np.empty(0, dtype=np.int64)]
        with _watching(model, names, predictor, until) as (watch, run):
            done = 0
            for inputs, checked in _inputs(model, data, world):
                if not checked and inputs.ndim > 2:  # rows of a table may well repeat
                    sums.append(checksums(inputs))
                with nullcontext() if isinstance(data, Batches) else explaining_failure(inputs):
                    run(inputs)
                done += len(inputs)
                meter.add(len(inputs))
            return watch.pooled, done, np.concatenate(sums)

    parts = world.run_on_all_ranks(share)
    pooled: dict[str, Moments] = {}
    for part, _, _ in parts:
        for name, moments in part.items():
            _add(pooled, name, moments)
    examples = sum(done for _, done, _ in parts)
    if examples == 0:
        raise DataError("the data to measure moving averages on hold no example")
    sums = np.sort(np.concatenate([sums for _, _, sums in parts]))
    check_repeats(sums, np.zeros_like(sums), data)
    if seen is not None:
        seen.append(sums)
    return pooled, examples


def _share(data: Data, world: World) -> int | None:
    """The examples that this process will see, if that is known."""
    count = len(data) if isinstance(data, (Batches, LoaderBatches)) else count_examples(data)
    return None if count is None else -(-count // world.size)


def count_calls(
    model: nn.Module, names: tuple[str, ...], data: Data, predictor: Predictor | None, world: World
) -> Counter[str]:
    """How often each layer is called in a pass, in the order in which they are first called."""

    def share() -> Counter[str]:
        with _watching(model, names, predictor, None) as (watch, run):
            for inputs, _ in itertools.islice(_inputs(model, data, world), 1):
                with explaining_failure(inputs):
                    run(inputs[:2])
            return watch.calls

    counted = next((calls for calls in world.run_on_all_ranks(share) if calls), None)
    if counted is None:
        raise DataError("the data to measure moving averages on hold no example, or no norm layer runs")
    return counted


@contextmanager
def _watching(
    model: nn.Module, names: tuple[str, ...], predictor: Predictor | None, until: tuple[str, int] | None
) -> Iterator[tuple[_Watch, Callable[[Tensor], object]]]:
    """Pool the inputs of some layers; what is yielded runs a batch. Eval mode and the watching are undone on any exit."""
    how = predictor or Predictor(model)
    watch = _Watch(model, until)
    runner = Predictor(watch, how.dtype, how.channels_last)
    layers = {name: model.get_submodule(name) for name in names}
    with watching(model, layers, watch.see), evaluation_mode(watch):
        yield watch, lambda inputs: runner(runner.prepare(inputs))


def _inputs(model: nn.Module, data: Data, world: World) -> Iterator[tuple[Tensor, bool]]:
    """This process's share of the batches, on the model's device, and whether repeats were looked for already."""
    if isinstance(data, (Batches, LoaderBatches)):
        mine = world.batches_of(np.arange(len(data)), data.batch_size)
        for batch in data.take(mine) if len(mine) else ():
            yield batch.inputs, True
        return
    device = device_of(model, model)
    for item in itertools.islice(from_workers(as_loader(data)), world.rank, None, world.size):
        ours = isinstance(item, Batch)  # of one of the above
        yield (item.inputs if ours else only_inputs(item)).to(device), ours


@contextmanager
def unweighted(model: nn.Module) -> Iterator[None]:
    """The α of a patched model at which it is the unpatched one, for the time of a ``with`` block."""
    before = {layer: layer.alpha.clone() for _, layer in example_weighted_layers(model)}
    try:
        for layer in before:
            layer.set_alpha(layer.unpatched_alpha)
        yield
    finally:
        for layer, alpha in before.items():
            layer.set_alpha(alpha)


def device_of(layer: nn.Module, model: nn.Module) -> torch.device:
    """Where a layer's input will be; one without tensors of its own is where the model begins."""
    tensors = (*layer.parameters(), *layer.buffers(), *model.parameters(), *model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


class _Reached(Exception):
    """The forward pass has come to the last call it was made for."""


class _Watch(nn.Module):
    """A model whose norm layers' inputs are pooled while it runs.

    A forward pass counts when it is through: one that ran out of memory, and is
    repeated with half the batch, leaves nothing.
    """

    def __init__(self, model: nn.Module, until: tuple[str, int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.until = until  # a layer, and its number of calls after which the pass may end
        self.pooled: dict[str, Moments] = {}
        self.calls: Counter[str] = Counter()  # of the last pass, in order of the first call
        self._pending: dict[str, Moments] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        self._pending, self.calls = {}, Counter()
        with suppress(_Reached):
            self.model(inputs)
        for name, moments in self._pending.items():
            _add(self.pooled, name, moments)
        return inputs.new_zeros((len(inputs), 1))  # logits, of which a predictor asks for a row an example

    def see(self, name: str, layer: nn.Module, x: Tensor) -> None:
        """Take up one call of a layer."""
        if isinstance(layer, _InstanceNorm) and x.ndim == layer._get_no_batch_dim():  # type: ignore[no-untyped-call]
            x = x[None]
        if len(x):
            _add(self._pending, name, moments_of(x))
        self.calls[name] += 1
        if self.until == (name, self.calls[name]):
            raise _Reached


def _add(pooled: dict[str, Moments], name: str, moments: Moments) -> None:
    pooled[name] = merge(pooled[name], moments) if name in pooled else moments
