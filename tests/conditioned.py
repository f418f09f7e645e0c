"""Examples in memory with ids of one's choice: images under several conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from alphatune.data.prefetch import Batch
from alphatune.statistics.conditions import example_ids


class Conditioned:
    """What a descent takes for data."""

    def __init__(self, x: Tensor, y: Tensor, ids: np.ndarray, batch_size: int = 100) -> None:
        self.x, self.y, self.ids, self.batch_size = x, y, ids, batch_size

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[Batch]:
        ids = torch.from_numpy(self.ids)
        for parts in zip(*(t.split(self.batch_size) for t in (self.x, self.y, ids)), strict=True):
            yield Batch(*parts)

    def take(self, positions: np.ndarray) -> Conditioned:
        assert (np.diff(positions) >= 0).all()  # in increasing order; a step may hold an example twice
        rows = torch.from_numpy(positions)
        return Conditioned(self.x[rows], self.y[rows], self.ids[positions], self.batch_size)

    @property
    def targets(self) -> np.ndarray:
        return self.y.numpy()


def conditioned(parts: Sequence[tuple[Tensor, Tensor]], batch_size: int = 100) -> Conditioned:
    """Inputs and targets of each condition, counted from 1; image i is row i of each."""
    ids = [example_ids(k, np.arange(len(y))) for k, (_, y) in enumerate(parts, 1)]
    x, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return Conditioned(x, y, np.concatenate(ids), batch_size)
