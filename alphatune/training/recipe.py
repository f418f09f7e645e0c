"""How to train: everything of a run but the model and the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from alphatune.core.errors import ConfigurationError

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "step", "constant"]
DecayNorm = Literal["none", "gamma", "beta", "both"]


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a run.

    ``weight_decay`` acts on weights, and on γ and β of norm layers as
    ``decay_norm`` says (paper section 3.3); ``gamma_target`` is the value that γ
    decays to. ``accumulate`` batches make one step of the optimiser.
    ``milestones`` are fractions of the run at which the step schedule divides
    the learning rate by ten.
    """

    epochs: int = 10
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_decay: float = 0.0
    decay_norm: DecayNorm = "none"
    gamma_target: Literal[0, 1] = 0
    schedule: ScheduleName = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    clip_grad: float = 0.0
    accumulate: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compile: bool = False
    eval_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, get_args(OptimizerName))
        _one_of("schedule", self.schedule, get_args(ScheduleName))
        _one_of("decay-norm", self.decay_norm, get_args(DecayNorm))
        _one_of("gamma-target", self.gamma_target, (0, 1))
        for name in ("epochs", "accumulate", "eval_every"):
            _within(name, getattr(self, name), 1)
        for name in ("learning_rate", "weight_decay", "bias_decay", "warmup_epochs", "clip_grad"):
            _within(name, getattr(self, name), 0)
        for name in ("momentum", "label_smoothing", "ema_decay"):
            _within(name, getattr(self, name), 0, 1)
        if self.warmup_epochs >= self.epochs:
            raise ConfigurationError(
                f"`warmup_epochs` must be fewer than the {self.epochs} epochs, got {self.warmup_epochs:g}"
            )
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise ConfigurationError(
                f"`milestones` are rising fractions of the run in (0, 1), got {list(self.milestones)}"
            )


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"unknown {name} {value!r}", f"one of: {', '.join(map(str, allowed))}")


def _within(name: str, value: float, low: float, below: float = float("inf")) -> None:
    if not low <= value < below:
        limits = f"at least {low:g}" if below == float("inf") else f"in [{low:g}, {below:g})"
        raise ConfigurationError(f"`{name}` must be {limits}, got {value:g}")
