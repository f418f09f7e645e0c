"""Temperature: how much of a gain is calibration, and the T that a model is divided by.

    p = softmax(z / T)

One number for all logits changes no prediction, but lowers the loss of a
network that is too sure of itself, as α > 0 does (Guo et al. 2017, "On
Calibration of Modern Neural Networks"). So that the two can be told apart,
losses and confidences are taken at a grid of T while the logits are there:
what stays is 8 bytes an example and T, whatever the number of classes.
The grid is fine enough to stand for the optimum: half a step from it costs
0.0001 nats with 10 classes and 0.0005 with 1 000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alphatune.statistics.conditions import mean_over_conditions
from alphatune.statistics.scores import Scores, concatenate

#: 0.2 to 5 in steps of 3 %, 1 among them
TEMPERATURES: tuple[float, ...] = tuple(round(1.03**k, 4) for k in range(-54, 55))
_UNIT = TEMPERATURES.index(1.0)


@dataclass(frozen=True)
class TemperatureScores:
    """Scores of n examples as they are, and their loss and confidence at each of ``TEMPERATURES``."""

    scores: Scores
    loss: NDArray[np.float32]  # (T, n), nats
    confidence: NDArray[np.float32]  # (T, n)

    def take(self, rows: NDArray[np.int64]) -> TemperatureScores:
        """The scores of some of the examples."""
        return TemperatureScores(self.scores.take(rows), self.loss[:, rows], self.confidence[:, rows])

    def best(self) -> float:
        """The temperature of the lowest loss."""
        return TEMPERATURES[int(mean_over_conditions(self.loss, self.scores.ids).argmin())]

    def at(self, temperature: float) -> Scores:
        """The scores with the logits divided by one of the temperatures; top-1 and top-5 stay."""
        row = TEMPERATURES.index(temperature)
        if row == _UNIT:
            return self.scores
        margin = self.scores.margin
        return replace(
            self.scores,
            loss=self.loss[row],
            confidence=self.confidence[row],
            margin=None if margin is None else margin / np.float32(temperature),
        )


def score_temperatures(logits: Tensor, targets: Tensor) -> tuple[Any, Any]:
    """Loss and confidence (T, N) of one batch's logits (N, classes) at each of ``TEMPERATURES``."""
    logits = logits.float()
    best = logits.max(dim=1).values
    own = logits.gather(1, targets[:, None]).squeeze(1)
    loss, confidence = [], []
    for temperature in TEMPERATURES:
        total = torch.logsumexp(logits / temperature, dim=1)
        loss.append(total - own / temperature)
        confidence.append((best / temperature - total).exp())
    return torch.stack(loss).cpu().numpy(), torch.stack(confidence).cpu().numpy()


def concatenate_temperatures(parts: list[TemperatureScores]) -> TemperatureScores:
    """Join the scores of batches and order them by id; ids are unique (``evaluation.concatenate``)."""
    order = np.argsort(np.concatenate([part.scores.ids for part in parts]), kind="stable")
    return TemperatureScores(
        concatenate([part.scores for part in parts]),
        np.concatenate([part.loss for part in parts], axis=1)[:, order],
        np.concatenate([part.confidence for part in parts], axis=1)[:, order],
    )
