"""What a descent (descent.py) tunes: numbers θ of a model, as it has to know them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class Parameters(Protocol):
    """Numbers of a model that are tuned by gradient.

    A *value* is what is written down and set; θ is what the optimiser moves,
    without bounds. Values and θ are float64 vectors of the same length.
    """

    @property
    def epochs(self) -> int:
        """Times that an example is seen at most."""
        ...

    @property
    def most_steps(self) -> int:
        """The optimiser's steps at most."""
        ...

    def learning_rate(self, size: float) -> float:
        """Adam's, in θ, at first, for steps of some share of the largest."""
        ...

    @property
    def prior_deviation(self) -> float:
        """σ of the Gaussian prior, in θ."""
        ...

    def to_theta(self, values: Tensor) -> Tensor:
        """θ of some values."""
        ...

    def to_values(self, theta: Tensor) -> Tensor:
        """The values of θ, rounded to what is written down."""
        ...

    def differentiable(self, model: nn.Module, theta: Tensor) -> AbstractContextManager[None]:
        """The model runs at θ, with a gradient for it, for the time of a ``with`` block."""
        ...

    def set_(self, model: nn.Module, values: Tensor) -> None:
        """Set the model to some values."""
        ...

    def kept(self, model: nn.Module) -> AbstractContextManager[None]:
        """What ``set_`` changes, α apart, is as before after a ``with`` block, on any exit."""
        ...
