"""Scores of examples on a dense grid of α, from logits at a few nodes.

Interpolated logits live for one batch and a few grid points at a time; what
stays is 10 bytes an example and point. Interpolated scores serve to choose α
and to draw the curve. They are never a result: what is chosen is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alphatune.core.metrics import INFO, Metric
from alphatune.statistics.conditions import mean_over_conditions
from alphatune.statistics.scores import expected_calibration_error

#: logits that are interpolated at a time
CHUNK = 1_000_000


@dataclass(frozen=True)
class CurveScores:
    """Scores (points, n) of n examples at the points of a grid, in the order of the ids."""

    ids: NDArray[np.int64]
    loss: NDArray[np.float32]  # cross-entropy, nats
    confidence: NDArray[np.float32]
    top1: NDArray[np.bool_]
    top5: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def points(self) -> int:
        return len(self.loss)

    @classmethod
    def empty(cls, points: int, examples: int) -> CurveScores:
        """Room for the scores, so that batches are written in place and nothing is kept twice."""
        shape = (points, examples)
        return cls(
            np.empty(examples, np.int64),
            np.empty(shape, np.float32),
            np.empty(shape, np.float32),
            np.empty(shape, np.bool_),
            np.empty(shape, np.bool_),
        )

    def take(self, rows: NDArray[Any]) -> CurveScores:
        """The scores of some of the examples."""
        return CurveScores(self.ids[rows], *(getattr(self, f.name)[:, rows] for f in fields(self)[1:]))

    def values(self, metric: str) -> NDArray[Any]:
        """A metric's values (points, n), as stored."""
        values: NDArray[Any] = getattr(self, metric)
        return values

    def average(self, metric: Metric) -> NDArray[np.float64]:
        """A metric at every point, a mean over conditions where there are some; the ECE is that of all examples."""
        if not INFO[metric].is_mean:
            pairs = zip(self.confidence, self.top1, strict=True)
            return np.array([expected_calibration_error(c, t) for c, t in pairs])
        average: NDArray[np.float64] = mean_over_conditions(self.values(metric), self.ids)
        return average


def join(parts: Sequence[CurveScores]) -> CurveScores:
    """All examples of the parts, ordered by id."""
    points = parts[0].points
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids, kind="stable")
    joined = CurveScores.empty(points, len(ids))
    joined.ids[:] = ids[order]
    for name in (f.name for f in fields(CurveScores)[1:]):
        values = getattr(joined, name)
        for point in range(points):  # one at a time: no second copy of everything
            values[point] = np.concatenate([getattr(part, name)[point] for part in parts])[order]
    return joined


def score_curve_(
    scores: CurveScores, start: int, logits: Tensor, weights: Tensor, targets: Tensor, ids: Tensor
) -> None:
    """Interpolate one batch's logits to the grid, score them, and write them at column ``start``.

    Args:
        logits: (nodes, N, classes), as the model gave them.
        weights: (points, nodes), of ``interpolation_weights``, on the same device.
        targets: class indices (N,), checked before (``evaluation.score_logits``).
    """
    nodes, n, classes = logits.shape
    flat = logits.float().reshape(nodes, -1)
    columns = slice(start, start + n)
    scores.ids[columns] = ids.numpy()
    index = torch.arange(classes, device=logits.device)
    before_target = index < targets[:, None]
    width = max(1, CHUNK // (n * classes))
    for begin in range(0, len(weights), width):
        rows = slice(begin, begin + width)
        z = (weights[rows] @ flat).view(-1, n, classes)
        best, predicted = z.max(dim=2)
        total = torch.logsumexp(z, dim=2)
        own = z.gather(2, targets[None, :, None].expand(len(z), n, 1))
        # Ties as in score_logits: the lower class index wins.
        ahead = ((z > own) | ((z == own) & before_target)).sum(dim=2)
        for name, values in (
            ("loss", total - own.squeeze(2)),
            ("confidence", (best - total).exp()),
            ("top1", predicted == targets),
            ("top5", ahead < 5),
        ):
            getattr(scores, name)[rows, columns] = values.cpu().numpy()
