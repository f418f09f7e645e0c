"""Measure the moments that norm layers mix with: of layers that keep none, or anew.

``calibrate_`` gives GroupNorm and its kin the moments of their inputs
(norms/calibrated.py). Without them they normalise by the example alone, so one
pass over the images tells all there is.

``recalibrate_`` replaces a BatchNorm model's moving averages. What a layer sees
depends on how the layers before it normalise, and that on their averages:

    one-pass         every layer normalises by the batch, as in training, while all
                     are measured: costs one pass, depends on the batch size
    layer-by-layer   each layer is measured with all before it in eval mode by their
                     new averages: as many passes as layers, each up to its layer;
                     does not depend on the batch size, and doing it again changes nothing

All else is in eval mode. Moments are pooled over all images as if they had come
as one batch (norms/pooling.py), over every call of a layer, and over all
processes. ``running_var`` takes the *unbiased* variance of the n values of a
channel, as torch's own averages do: a BatchNorm of momentum 1 that sees all
images in one training batch is left with the same numbers. ``momentum`` and
``num_batches_tracked`` stay, which belong to training: a cumulative average
that trains on weighs the new averages as it would have the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError, DataError, NumericError, UnsupportedModelError
from alphatune.core.progress import Meter, ShowProgress, as_meter, shows_progress
from alphatune.data.checksums import changed
from alphatune.data.loading import Batches
from alphatune.evaluation.predictor import Predictor
from alphatune.models.measurement import Data, count_calls, device_of, pool_inputs, unweighted
from alphatune.norms.calibrated import CALIBRATED, Calibrated
from alphatune.norms.example_weighted import ExampleWeighted, weighted_class
from alphatune.norms.grouping import batch_group_norm
from alphatune.norms.pooling import Moments
from alphatune.norms.surgery import become_calibrated_, become_uncalibrated_
from alphatune.norms.survey import NormLayer, survey
from alphatune.norms.training_norm import drop_and_act, only_argument

Order = Literal["one-pass", "layer-by-layer"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Calibration:
    """Which layers have new moving averages, and of how many examples."""

    examples: int
    layers: tuple[str, ...]
    unreached: tuple[str, ...]  # layers of this kind that no forward pass came to; they are as they were
    order: Order = "one-pass"


@shows_progress
def calibrate_(
    model: nn.Module,
    data: Data,
    *,
    predictor: Predictor | None = None,
    world: World | None = None,
    progress: ShowProgress = None,
) -> Calibration:
    """Measure moving averages for the layers that normalise by the example alone, in place.

    ``patch_`` and ``tune`` then take them: α = 1 is the network as it was, bit
    for bit, and α = 0 inference by the averages. alphatune's own GroupNorm
    layers, which have averages from training, get these instead. State-dict
    keys never change; ``alphatune.save`` writes the averages beside the weights.

    Args:
        model: any module; patched or not, in training mode or not.
        data: batches of images, as an iterable of inputs or (inputs, ...); labels are not looked at,
            and each image should come once.
        predictor: dtype and memory format to run in, if not those of ``Predictor(model)``.
        world: the processes that share the work; all end with the same averages.
        progress: as for ``tune``.

    Raises:
        UnsupportedModelError: no such layer, or none that the forward pass comes to.
        ConfigurationError: many images came twice.
        NumericError: an activation that is not finite.
        DataError: no examples, or too few for a variance. On any error the model is as it was.
    """
    names = layers_to_calibrate(model)
    meter = as_meter(progress)
    meter.phase("averages")
    with unweighted(model):
        pooled, examples = pool_inputs(model, names, data, predictor, world, meter)
    modules = dict(model.named_modules())
    reached = _checked(names, pooled)
    for name in reached:
        _give(modules[name], pooled[name], device_of(modules[name], model))
    return Calibration(examples, reached, tuple(n for n in names if n not in pooled))


@shows_progress
def recalibrate_(
    model: nn.Module,
    data: Data,
    *,
    order: Order = "one-pass",
    predictor: Predictor | None = None,
    world: World | None = None,
    progress: ShowProgress = None,
) -> Calibration:
    """Replace the moving averages of a model's BatchNorm layers by exact ones, in place.

    Args:
        model: any module; patched or not, in training mode or not.
        data: as for ``calibrate_``; for ``one-pass`` in batches like those of
            training, shuffled; for ``layer-by-layer`` it is iterated once a layer
            and has to give the same images each time, in any order.
        order: ``"one-pass"`` or ``"layer-by-layer"``; see the module's text.
        predictor, world, progress: as for ``calibrate_``.

    Raises:
        ConfigurationError: an unknown order; many images that came twice; layer by layer, other images than
            before, or an iterator, which can be read only once.
        UnsupportedModelError: no BatchNorm layer with moving averages.
        NumericError, DataError: as for ``calibrate_``. On any error the averages are as they were.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (one-pass).
    """
    if order not in ORDERS:
        raise ConfigurationError(f"unknown order {order!r}", f"one of: {', '.join(ORDERS)}")
    names = layers_to_recalibrate(model)
    modules = dict(model.named_modules())
    meter = as_meter(progress)
    meter.phase("averages")
    with unweighted(model), _restored_on_error([modules[name] for name in names]):
        if order == "one-pass":
            with normalising_by_the_batch(modules[name] for name in names):
                pooled, examples = pool_inputs(model, names, data, predictor, world, meter)
            for name in _checked(names, pooled):
                _give(modules[name], pooled[name], device_of(modules[name], model))
        else:
            pooled, examples = _layer_by_layer(model, names, data, predictor, world, meter)
    reached = tuple(name for name in names if name in pooled)
    return Calibration(examples, reached, tuple(n for n in names if n not in pooled), order)


def uncalibrate_(model: nn.Module) -> None:
    """Undo ``calibrate_`` where layers kept no moving averages: they are the very objects, of the class, they were.

    Raises:
        UnsupportedModelError: such a layer is patched.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Calibrated)]
    for name, layer in layers:
        if isinstance(layer, ExampleWeighted):
            raise UnsupportedModelError(f"layer {name or '(root)'} is patched", "call unpatch_(model) first")
    for _, layer in layers:
        become_uncalibrated_(layer)


def layers_to_calibrate(model: nn.Module) -> tuple[str, ...]:
    """Layers that normalise by the example alone; raises UnsupportedModelError if there is none."""
    names = tuple(
        layer.name
        for layer in survey(model)
        if layer.status == "calibratable" or _unpatched_alpha(model, layer) == 1
    )
    if not names:
        raise UnsupportedModelError(
            "expected a layer that keeps no moving averages (GroupNorm, InstanceNorm, LayerNorm2d), found none",
            "`recalibrate` (recalibrate_) measures those of BatchNorm layers anew",
        )
    return names


def layers_to_recalibrate(model: nn.Module) -> tuple[str, ...]:
    """Layers that normalise by moving averages; raises UnsupportedModelError if there is none."""
    names = tuple(layer.name for layer in survey(model) if _unpatched_alpha(model, layer) == 0)
    if not names:
        raise UnsupportedModelError(
            "expected a BatchNorm layer with moving averages to measure anew, found none",
            "`calibrate` (calibrate_) is for layers that keep none, such as GroupNorm",
        )
    return names


def _unpatched_alpha(model: nn.Module, layer: NormLayer) -> float | None:
    if layer.status not in ("patchable", "patched"):
        return None
    module = model.get_submodule(layer.name)
    kind = type(module) if isinstance(module, ExampleWeighted) else weighted_class(type(module))
    return None if kind is None else kind.unpatched_alpha


@contextmanager
def normalising_by_the_batch(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let BatchNorm layers normalise by the batch, in groups if they are of a kind that does.

    Unlike training mode this moves no averages, and a single value per channel
    is normalised by the present averages instead of being an error.
    """
    chosen = list(layers)
    try:
        for layer in chosen:
            layer.__dict__["forward"] = _by_the_batch(layer)
        yield
    finally:
        for layer in chosen:
            layer.__dict__.pop("forward", None)


def _by_the_batch(layer: Any) -> Callable[..., Tensor]:
    size = getattr(layer, "ghost_batch_size", None) or getattr(layer, "examples_per_group", None)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        x = only_argument(args, kwargs)
        y, _ = batch_group_norm(
            x,
            layer.weight,
            layer.bias,
            getattr(layer, "num_groups", None) or x.shape[1],
            size or max(1, len(x)),
            layer.eps,
            layer.running_mean,
            layer.running_var,
        )
        return drop_and_act(layer, y)

    return forward


@contextmanager
def _restored_on_error(layers: list[Any]) -> Iterator[None]:
    before = [(layer, layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for layer, mean, variance in before:
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(variance)
        raise


def _layer_by_layer(
    model: nn.Module,
    names: tuple[str, ...],
    data: Data,
    predictor: Predictor | None,
    world: World | None,
    meter: Meter,
) -> tuple[dict[str, Moments], int]:
    """Measure each layer, in the order they run, with those before it normalising by their new averages."""
    if isinstance(data, Iterator):
        raise ConfigurationError(
            "layer by layer the images are read once a layer, got an iterator, which gives them only once",
            "pass a DataLoader or a list of batches, or take one-pass",
        )
    world = world or World()
    modules = dict(model.named_modules())
    calls = count_calls(model, names, data, predictor, world)
    if isinstance(data, Batches):
        meter.expect(-(-len(data) // world.size) * len(calls))
    pooled: dict[str, Moments] = {}
    seen: list[NDArray[np.int64]] = []
    examples = 0
    for place, (name, times) in enumerate(calls.items(), 1):
        meter.phase(f"averages: layer {place} of {len(calls)}")
        until = (name, times)
        found, examples = pool_inputs(model, (name,), data, predictor, world, meter, until=until, seen=seen)
        _checked((name,), found)
        if not np.array_equal(seen[0], seen[-1]):
            raise changed("other images")
        _give(modules[name], found[name], device_of(modules[name], model))
        pooled |= found
    return pooled, examples


def _checked(names: tuple[str, ...], pooled: Mapping[str, Moments]) -> tuple[str, ...]:
    """The layers that were reached; raises unless there are some, with moments that are a mean and a variance."""
    if not any(name in pooled for name in names):
        raise UnsupportedModelError(
            f"no forward pass came to a layer to measure, e.g. {names[0] or '(root)'}"
        )
    for name in names:
        if name not in pooled:
            continue
        moments = pooled[name]
        if not bool((torch.isfinite(moments.mean) & torch.isfinite(moments.deviations)).all()):
            raise NumericError(
                f"layer {name or '(root)'} saw values that are NaN or infinite: there is no average of them",
                "are these the weights you mean? `dtype=float32` overflows last",
            )
        if moments.count < 2:
            raise DataError(
                f"layer {name or '(root)'} saw a single value a channel, which has no variance",
                "measure on more images",
            )
    return tuple(name for name in names if name in pooled)


@torch.no_grad()
def _give(layer: Any, moments: Moments, device: torch.device) -> None:
    # Rounded here and not on the device, which may have no float64.
    mean, variance = moments.mean.float(), moments.unbiased_variance.float()
    if isinstance(layer, Calibrated) or type(layer) in CALIBRATED:
        become_calibrated_(layer, mean.to(device), variance.to(device))
    else:
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
