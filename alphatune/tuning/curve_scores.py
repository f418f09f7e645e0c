"""Scores of examples on a dense grid of α, from logits at a few nodes.

Interpolated logits live for one batch and a few grid points at a time; what
stays is 14 bytes an example and point, and 4 more with two classes. Interpolated scores serve to choose α
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
from alphatune.statistics.scores import Scores
from alphatune.statistics.set_statistics import STATISTICS

#: logits that are interpolated at a time
CHUNK = 1_000_000


@dataclass(frozen=True)
class CurveScores:
    """Scores (points, n) of n examples at the points of a grid, in the order of the ids."""

    ids: NDArray[np.int64]  # (n,)
    targets: NDArray[np.int32]  # (n,)
    predicted: NDArray[np.int32]
    loss: NDArray[np.float32]  # cross-entropy, nats
    confidence: NDArray[np.float32]
    top1: NDArray[np.bool_]
    top5: NDArray[np.bool_]
    margin: NDArray[np.float32] | None = None  # as in Scores

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def points(self) -> int:
        return len(self.loss)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What there is (points, n) of each example at each point, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)[2:]}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def empty(cls, points: int, examples: int, *, two_classes: bool = False) -> CurveScores:
        """Room for the scores, so that batches are written in place and nothing is kept twice."""
        shape = (points, examples)
        return cls(
            ids=np.empty(examples, np.int64),
            targets=np.empty(examples, np.int32),
            predicted=np.empty(shape, np.int32),
            loss=np.empty(shape, np.float32),
            confidence=np.empty(shape, np.float32),
            top1=np.empty(shape, np.bool_),
            top5=np.empty(shape, np.bool_),
            margin=np.empty(shape, np.float32) if two_classes else None,
        )

    @classmethod
    def stacked(cls, scores: Sequence[Scores]) -> CurveScores:
        """Scores of the same examples, a point each."""
        first = scores[0]
        names = [name for name in first.columns if name not in ("ids", "targets")]
        return cls(first.ids, first.targets, **{n: np.stack([s.columns[n] for s in scores]) for n in names})

    def at(self, point: int) -> Scores:
        """The scores at a point."""
        return Scores(self.ids, self.targets, **{name: value[point] for name, value in self.columns.items()})

    def take(self, rows: NDArray[Any]) -> CurveScores:
        """The scores of some of the examples."""
        columns = {name: value[:, rows] for name, value in self.columns.items()}
        return CurveScores(self.ids[rows], self.targets[rows], **columns)

    def values(self, metric: str) -> NDArray[Any]:
        """A metric's values (points, n), as stored."""
        values: NDArray[Any] = getattr(self, metric)
        return values

    def shares(self, metric: Metric) -> NDArray[np.float64]:
        """Each example's share (points, n) of a statistic of the set."""
        return np.stack([STATISTICS[metric].shares(self.at(point)) for point in range(self.points)])

    def average(self, metric: Metric) -> NDArray[np.float64]:
        """A metric at every point, a mean over conditions where there are some; a statistic is that of all examples."""
        if not INFO[metric].is_mean:
            return np.array([STATISTICS[metric].value(self.at(point)) for point in range(self.points)])
        average: NDArray[np.float64] = mean_over_conditions(self.values(metric), self.ids)
        return average


def join(parts: Sequence[CurveScores]) -> CurveScores:
    """All examples of the parts, ordered by id."""
    points = parts[0].points
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids, kind="stable")
    joined = CurveScores.empty(points, len(ids), two_classes=parts[0].margin is not None)
    joined.ids[:] = ids[order]
    joined.targets[:] = np.concatenate([part.targets for part in parts])[order]
    for name, values in joined.columns.items():
        for point in range(points):  # one at a time: no second copy of everything
            values[point] = np.concatenate([part.columns[name][point] for part in parts])[order]
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
    scores.ids[columns], scores.targets[columns] = ids.numpy(), targets.cpu().numpy()
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
        found = {
            "predicted": predicted,
            "loss": total - own.squeeze(2),
            "confidence": (best - total).exp(),
            "top1": predicted == targets,
            "top5": ahead < 5,
        }
        if classes == 2:
            found["margin"] = z[:, :, 1] - z[:, :, 0]
        for name, values in scores.columns.items():
            values[rows, columns] = found[name].cpu().numpy()
