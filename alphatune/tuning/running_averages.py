"""Running statistics measured anew on the images that α is tuned on: a free rival of α, without labels.

One set for all conditions. Images are shuffled before they are measured: in
one pass layers normalise by the batch, which has to be of all conditions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alphatune.core.distributed import World
from alphatune.core.progress import Meter
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import Predictor
from alphatune.models.calibration import recalibrate_
from alphatune.norms.layer_tensors import AVERAGES, LayerTensors, get_tensors, set_tensors_, tensors_set
from alphatune.norms.patching import example_weighted_layers
from alphatune.tuning.passes import Data

#: by layer name: running mean and variance (C,), float
Averages = dict[str, tuple[Tensor, Tensor]]


def measure_averages(
    predictor: Predictor,
    data: Data,
    positions: NDArray[np.int64],
    *,
    seed: int,
    world: World | None = None,
    meter: Meter | None = None,
) -> Averages:
    """Moments of the patched layers' inputs, pooled over some examples; the model stays as it is.

    Args:
        positions: of the examples, in increasing order.
        meter: told of every batch.

    Raises:
        UnsupportedModelError: no patched layer normalises by running statistics.
        NumericError, DataError: as ``recalibrate_``.
    """
    model = predictor.model
    names = [name for name, layer in example_weighted_layers(model) if layer.unpatched_alpha == 0]
    with averages_set(model, get_tensors(model, AVERAGES, names)):
        found = recalibrate_(
            model,
            _Shuffled(data, positions, seed),
            predictor=Predictor(model, predictor.dtype, predictor.channels_last),
            world=world,
            progress=meter,
        )
        return get_tensors(model, AVERAGES, [name for name in names if name in found.layers])


def averages_set(model: torch.nn.Module, values: LayerTensors) -> AbstractContextManager[None]:
    """Running statistics of some layers for the time of a ``with`` block; on any exit they have the bits that they had.

    Raises:
        ConfigurationError: no such layer, another shape, or values that are not finite.
    """
    return tensors_set(model, AVERAGES, values)


def apply_averages_(model: torch.nn.Module, values: LayerTensors) -> None:
    """Give some layers other running statistics, in place; raises as ``averages_set``."""
    set_tensors_(model, AVERAGES, values)


class _Shuffled:
    """Some examples in batches that are drawn at random; one that can be read again."""

    def __init__(self, data: Data, positions: NDArray[np.int64], seed: int) -> None:
        self._data = data
        parts = -(-len(positions) // data.batch_size)
        drawn = np.random.default_rng(seed).permutation(positions)
        self._parts = [np.sort(part) for part in np.array_split(drawn, parts)]

    def __iter__(self) -> Iterator[Batch]:
        for part in self._parts:
            batches = list(self._data.take(part))
            yield Batch(
                torch.cat([batch.inputs for batch in batches]),
                torch.cat([batch.targets for batch in batches]),
                torch.cat([batch.ids for batch in batches]),
            )
