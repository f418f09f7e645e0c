"""γ and β of the norm layers, tuned as α is: the free rival of finer α.

    γ = γ₀ + s·θ_γ,    β = β₀ + s·θ_β,    s = sqrt(mean γ₀²) of the layer

A layer's output is γ·z + β with z of about unit variance, so that s is its
size, and θ is relative. At θ = 0 the layer is as stored. Tuned γ and β fold
into the convolution before the layer: they cost nothing at inference. They are
twice as many numbers as there are channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alphatune.core.errors import UnsupportedModelError
from alphatune.norms.layer_tensors import (
    AFFINE,
    LayerTensors,
    differentiable_tensors,
    get_tensors,
    set_tensors_,
    tensors_set,
)
from alphatune.norms.patching import Alpha, example_weighted_layers, set_alpha_

#: times that an example is seen at most, steps at most, Adam's rate, σ of the prior: on ResNet-20 under shift
EPOCHS, MOST_STEPS, LEARNING_RATE, PRIOR = 16, 144, 0.02, 0.1
#: by layer name: γ and β (C,), float
Affine = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AffineUnits:
    """γ and β of some layers of a model: parameters of a descent (parameters.py), whose values are θ."""

    stored: Affine  # γ₀ and β₀
    alpha: float | Mapping[str, Alpha] | None = None  # α meanwhile; None: the unpatched one

    def __len__(self) -> int:
        """The number of values: two a channel."""
        return sum(len(gamma) + len(beta) for gamma, beta in self.stored.values())

    @property
    def start(self) -> Tensor:
        """The values of the network as stored (U,)."""
        return torch.zeros(len(self), dtype=torch.float64)

    def affine(self, values: Tensor | tuple[float, ...]) -> Affine:
        """γ and β at some values (U,); differentiable."""
        wide = torch.as_tensor(values, dtype=torch.float64)
        result, place = {}, 0
        for name, (gamma, beta) in self.stored.items():
            scale = gamma.double().square().mean().sqrt()
            both = []
            for own in (gamma, beta):
                theta = wide[place : place + len(own)].to(own.device)
                both.append((own.double() + scale * theta).to(own.dtype))
                place += len(own)
            result[name] = (both[0], both[1])
        return result

    @property
    def epochs(self) -> int:
        """More than α takes: a step of few examples is mostly noise to so many numbers."""
        return EPOCHS

    @property
    def most_steps(self) -> int:
        """Still gaining after the 48 that α takes, where there are a thousand images a condition."""
        return MOST_STEPS

    def learning_rate(self, size: float) -> float:
        """Smaller for small steps, by the square root (Malladi et al. 2022, on Adam's noise)."""
        return LEARNING_RATE * math.sqrt(size)

    @property
    def prior_deviation(self) -> float:
        """Relative to the layer's γ."""
        return PRIOR

    def to_theta(self, values: Tensor) -> Tensor:
        """Values are θ."""
        return values.clone()

    def to_values(self, theta: Tensor) -> Tensor:
        """θ in float32's digits, which are γ's."""
        return theta.float().double()

    def differentiable(self, model: nn.Module, theta: Tensor) -> AbstractContextManager[None]:
        """The model runs with γ and β of θ, with a gradient for it."""
        return differentiable_tensors(model, AFFINE, self.affine(theta))

    def set_(self, model: nn.Module, values: Tensor) -> None:
        """Set γ and β."""
        apply_affine_(model, self.affine(values))

    @contextmanager
    def kept(self, model: nn.Module) -> Iterator[None]:
        """γ and β are as before afterwards; α, which the caller restores, is what these were made for."""
        with affine_set(model, self.stored):
            set_alpha_(model, {} if self.alpha is None else self.alpha)
            yield


def affine_units(model: nn.Module, alpha: float | Mapping[str, Alpha] | None = None) -> AffineUnits:
    """γ and β of the patched layers of a model, about the values that it has now.

    Args:
        alpha: α while they are tuned; None: the unpatched one.

    Raises:
        UnsupportedModelError: no patched layer has both.
    """
    layers = [
        name
        for name, layer in example_weighted_layers(model)
        if isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    ]
    if not layers:
        raise UnsupportedModelError(
            "expected a patched norm layer with γ and β to tune, found none", "its layers are `affine=False`"
        )
    return AffineUnits(get_tensors(model, AFFINE, layers), alpha)


def affine_set(model: nn.Module, values: LayerTensors) -> AbstractContextManager[None]:
    """γ and β of some layers for the time of a ``with`` block; on any exit they have the bits that they had.

    Raises:
        ConfigurationError: no such layer, another shape, or values that are not finite.
    """
    return tensors_set(model, AFFINE, values)


def apply_affine_(model: nn.Module, values: LayerTensors) -> None:
    """Give some layers other γ and β, in place; raises as ``affine_set``."""
    set_tensors_(model, AFFINE, values)


def count_values(values: LayerTensors) -> int:
    """How many numbers these are."""
    return sum(first.numel() + second.numel() for first, second in values.values())
