"""Which examples make up each training batch, as a function of seed and epoch.

Nothing is remembered between epochs: the batches of epoch e are the same
whether or not the run was interrupted before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import ConfigurationError

BatchOrder = Literal["shuffled", "blocks"]


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn; ``batch_size`` counts the examples of one step on all devices.

    Without ``classes_per_batch`` every epoch is a fresh permutation, cut into
    whole batches. With it batches are not i.i.d. (paper section 4.4): each
    picks that many classes, and draws as many examples of each, with
    replacement. ``batch_order="blocks"`` leaves the classes of a batch one
    after the other, so that consecutive ghost batches see different classes.
    """

    batch_size: int
    seed: int = 0
    classes_per_batch: int | None = None
    batch_order: BatchOrder = "shuffled"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ConfigurationError(f"`seed` must be at least 0, got {self.seed}")
        if self.batch_order not in get_args(BatchOrder):
            raise ConfigurationError(f"unknown batch order {self.batch_order!r}", "shuffled or blocks")
        classes = self.classes_per_batch
        if classes is None:
            if self.batch_order == "blocks":
                raise ConfigurationError("`batch_order=blocks` needs `classes_per_batch`")
        elif classes < 1 or self.batch_size % classes:
            raise ConfigurationError(
                f"`classes_per_batch` must divide the batch size {self.batch_size}, got {classes}"
            )


def steps_per_epoch(examples: int, sampling: Sampling) -> int:
    """Whole batches in an epoch; raises ConfigurationError if there is none."""
    if examples < sampling.batch_size:
        raise ConfigurationError(
            f"a batch of {sampling.batch_size} needs as many training examples, got {examples}",
            "use a smaller `batch_size`",
        )
    return examples // sampling.batch_size


def epoch_batches(targets: NDArray[np.int64], sampling: Sampling, epoch: int) -> NDArray[np.int64]:
    """Positions (steps, batch_size) of the examples of every batch of an epoch.

    Args:
        targets: class index of each training example (n,).

    Raises:
        ConfigurationError: fewer examples than a batch, or fewer classes than it asks for.
    """
    rng = np.random.default_rng((sampling.seed, epoch))
    steps, size = steps_per_epoch(len(targets), sampling), sampling.batch_size
    if sampling.classes_per_batch is None:
        return rng.permutation(len(targets))[: steps * size].reshape(steps, size)
    members = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    if len(members) < sampling.classes_per_batch:
        raise ConfigurationError(
            f"`classes_per_batch={sampling.classes_per_batch}` of data with {len(members)} classes"
        )
    share = size // sampling.classes_per_batch
    batches = np.empty((steps, size), dtype=np.int64)
    for batch in batches:
        chosen = rng.choice(len(members), sampling.classes_per_batch, replace=False)
        batch[:] = np.concatenate([rng.choice(members[label], share) for label in chosen])
        if sampling.batch_order == "shuffled":
            rng.shuffle(batch)
    return batches
