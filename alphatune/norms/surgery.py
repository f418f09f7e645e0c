"""Turn a norm layer into another kind in place, and back.

The class of the module changes, not the module: the way torch's own lazy
layers and parametrizations do it. Parameters, buffers, hooks, drop and
activation stay where they are; a module shared by two parents stays shared;
an optimiser or a list that holds the module still holds the right one; and
going back restores the very same object, because it never left.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from alphatune.core.errors import UnsupportedModelError
from alphatune.norms.calibrated import CALIBRATED, UNCALIBRATED, Calibrated
from alphatune.norms.example_weighted import ExampleWeighted, weighted_class


def become_example_weighted_(module: nn.Module, alpha: float | Tensor = 0.0) -> None:
    """Change a stock norm layer, of a class that has a ``weighted_class``, in place."""
    kind = weighted_class(type(module))
    if kind is None:
        raise UnsupportedModelError(f"a {type(module).__name__} cannot be example-weighted")
    module.__class__ = kind
    cast("ExampleWeighted", module).start_weighing(alpha)


def become_stock_(module: ExampleWeighted) -> None:
    """Change an example-weighted layer back into the layer it was."""
    if "stock" not in vars(type(module)):
        raise UnsupportedModelError(
            f"a {type(module).__name__} is a layer that was given another class after it was patched",
            "undo that first: remove a parametrization, say",
        )
    stock = type(module).stock
    module.stop_weighing()
    cast("nn.Module", module).__class__ = stock


def become_calibrated_(module: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Give a layer of a class in ``CALIBRATED``, or one that became calibrated before, moments (C,), in place."""
    if not isinstance(module, Calibrated):
        module.__class__ = CALIBRATED[type(module)]
    cast("Calibrated", module).keep_moments(mean, variance)


def become_uncalibrated_(module: Calibrated) -> None:
    """Change a calibrated layer that is not patched back into the layer it was."""
    stock = UNCALIBRATED[type(module)]
    module.forget_moments()
    cast("nn.Module", module).__class__ = stock
