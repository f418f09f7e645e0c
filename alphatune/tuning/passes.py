"""Passes of a patched model over parts of the data: in one process or several, and from where they were interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alphatune.core.distributed import World
from alphatune.core.progress import Meter
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import Predictor
from alphatune.norms.patching import Alpha
from alphatune.statistics.interpolation import interpolation_weights
from alphatune.statistics.scores import Scores, concatenate
from alphatune.tuning.curve_scores import CurveScores, join, score_curve_
from alphatune.tuning.journal import Journal
from alphatune.tuning.pass_record import PassRecord, pass_name
from alphatune.tuning.sweep import run, score_at

T = TypeVar("T")


class Data(Protocol):
    """Batches of examples that can be iterated again, over all of them or some."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def take(self, positions: NDArray[np.int64]) -> Data: ...
    @property
    def targets(self) -> NDArray[np.int64]: ...
    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def names(self) -> tuple[str, ...]: ...  # of the conditions, the first of clean images; () without any
    @property
    def batch_size(self) -> int: ...


@dataclass(frozen=True)
class Passes:
    """A patched model over parts of the data, in one process or several; a journal spares what was seen before."""

    predictor: Predictor
    data: Data
    baseline: float  # the α of the unpatched model
    world: World
    meter: Meter
    journal: Journal | None = None

    def alpha(self, t: float) -> float:
        """α at a distance from the unpatched model."""
        return round(abs(self.baseline - t), 12)

    def expect(self, examples: int) -> None:
        """Say how much is still to be done, of which this process does its share."""
        self.meter.expect(-(-examples // self.world.size))

    def measure(self, positions: NDArray[np.int64], ts: Sequence[float]) -> list[Scores]:
        """Exact scores of some examples at each t."""
        alphas = [*map(self.alpha, ts)]

        def scores(batch: Batch, logits: list[Tensor]) -> list[Scores]:
            return [score_at(alpha, at_alpha, batch) for alpha, at_alpha in zip(alphas, logits, strict=True)]

        parts = self.run("measure", positions, alphas, scores)
        return [concatenate([part[i] for part in parts]) for i in range(len(ts))]

    def logits(self, positions: NDArray[np.int64], ts: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Logits (ts, N, classes) on the CPU and targets (N,) of some examples, in their order."""
        alphas = [*map(self.alpha, ts)]

        def arrays(batch: Batch, logits: list[Tensor]) -> tuple[NDArray[Any], ...]:
            for alpha, at_alpha in zip(alphas, logits, strict=True):
                score_at(alpha, at_alpha, batch)  # finite, and labels that fit
            stacked = torch.stack(logits).float().cpu()
            return batch.ids.numpy(), stacked.numpy(), batch.targets.cpu().numpy()

        parts = self.run("logits", positions, alphas, arrays)
        order = np.argsort(np.concatenate([ids for ids, _, _ in parts]), kind="stable")
        logits = np.concatenate([logits for _, logits, _ in parts], axis=1)[:, order]
        return torch.from_numpy(logits), torch.from_numpy(np.concatenate([t for *_, t in parts])[order])

    def curve(
        self, positions: NDArray[np.int64], nodes: Sequence[float], grid: Sequence[float]
    ) -> tuple[CurveScores, Scores]:
        """Interpolated scores of some examples on a grid, and the exact ones at t = 0, the first node."""
        alphas = [*map(self.alpha, nodes)]
        weights = torch.from_numpy(interpolation_weights(nodes, grid)).float()

        def scores(batch: Batch, logits: list[Tensor]) -> tuple[CurveScores, Scores]:
            nonlocal weights
            exact = [score_at(alpha, at_alpha, batch) for alpha, at_alpha in zip(alphas, logits, strict=True)]
            weights = weights.to(logits[0].device)
            two_classes = logits[0].shape[1] == 2
            curve = CurveScores.empty(len(grid), len(batch), two_classes=two_classes)
            score_curve_(curve, 0, torch.stack(logits), weights, batch.targets, batch.ids)
            return curve, exact[0]

        parts = self.run(f"curve {[*grid]}", positions, alphas, scores)
        return join([curve for curve, _ in parts]), concatenate([baseline for _, baseline in parts])

    def run(
        self,
        question: str,
        positions: NDArray[np.int64],
        alphas: Sequence[float | Mapping[str, Alpha]],
        look: Callable[[Batch, list[Tensor]], T],
    ) -> list[T]:
        """What ``look`` makes of each batch of some examples and its logits at all α, in every process.

        Args:
            question: tells passes apart that look at the same logits in other ways.
            look: gives numpy arrays, or our scores made of them.
        """

        def mine() -> list[T]:
            name = pass_name(question, positions, alphas, self.world)
            record: PassRecord[T] = PassRecord(self.journal, name)
            todo = self.world.batches_of(positions, self.data.batch_size)
            if record.examples:  # whole batches, so that the rest comes in the same ones
                self.meter.add(record.examples * len(alphas), resumed=True)
                todo = todo[record.examples :]
            if len(todo):

                def keep(batch: Batch, logits: list[Tensor]) -> None:
                    record.add(look(batch, logits), len(batch))

                try:
                    run(self.predictor, self.data.take(todo), alphas, keep, self.meter)
                finally:  # what an interruption leaves is kept, too
                    record.end()
            return record.results

        return [result for share in self.world.run_on_all_ranks(mine) for result in share]
