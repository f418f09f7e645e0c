"""Put other tensors into norm layers: their γ and β, or their running statistics.

What is replaced goes by the layer's name and two attributes of it, parameters
or buffers. Values are float; a layer keeps its own dtype and device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError

#: two attributes of a layer
Names = tuple[str, str]
AFFINE: Names = ("weight", "bias")
AVERAGES: Names = ("running_mean", "running_var")
#: by layer name: two tensors (C,)
LayerTensors = Mapping[str, tuple[Tensor, Tensor]]


def get_tensors(model: nn.Module, names: Names, layers: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Copies of two tensors of some layers, in float32 or finer."""
    modules = dict(model.named_modules(remove_duplicate=False))
    copies = {}
    for layer in layers:
        first, second = (getattr(modules[layer], name).detach().clone() for name in names)
        wide = torch.promote_types(first.dtype, torch.float32)
        copies[layer] = (first.to(wide), second.to(wide))
    return copies


@torch.no_grad()
def set_tensors_(model: nn.Module, names: Names, tensors: LayerTensors) -> None:
    """Copy two tensors into each of some layers; all are checked before any is changed.

    Raises:
        ConfigurationError: no such layer, one without these tensors, another shape, values that are not finite.
    """
    pairs = list(_pairs(model, names, tensors))
    for own, value in pairs:
        own.copy_(value)


@contextmanager
def tensors_set(model: nn.Module, names: Names, tensors: LayerTensors) -> Iterator[None]:
    """The same for the time of a ``with`` block; on any exit the layers have the bits that they had.

    Raises:
        ConfigurationError: as ``set_tensors_``.
    """
    before = [(own, own.detach().clone()) for own, _ in _pairs(model, names, tensors)]
    try:
        set_tensors_(model, names, tensors)
        yield
    finally:
        with torch.no_grad():
            for own, value in before:
                own.copy_(value)


@contextmanager
def differentiable_tensors(model: nn.Module, names: Names, tensors: LayerTensors) -> Iterator[None]:
    """Let layers use tensors of an autograd graph, for the time of a ``with`` block."""
    modules = dict(model.named_modules(remove_duplicate=False))
    before: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
    try:
        for layer, values in tensors.items():
            module = modules[layer]
            for name, value in zip(names, values, strict=True):
                # Past the module's __setattr__, which takes nothing but a Parameter for a parameter.
                place = module._parameters if name in module._parameters else module._buffers
                own = place[name]
                before.append((place, name, own))
                place[name] = value.to(own)
        yield
    finally:
        for place, name, own in reversed(before):
            place[name] = own


def _pairs(model: nn.Module, names: Names, tensors: LayerTensors) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor of the layers beside the value it is to get."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for layer, values in tensors.items():
        for name, value in zip(names, values, strict=True):
            own = getattr(modules.get(layer), name, None)
            if not isinstance(own, Tensor):
                raise ConfigurationError(
                    f"expected a norm layer {layer!r} with a tensor {name!r}, found none",
                    "are the values of this model?",
                )
            if value.shape != own.shape or not bool(torch.isfinite(value).all()):
                raise ConfigurationError(
                    f"{name!r} of layer {layer!r} takes finite numbers of shape {tuple(own.shape)}, "
                    f"got shape {tuple(value.shape)}"
                    + ("" if value.shape != own.shape else " with NaN or infinity")
                )
            yield own, value
