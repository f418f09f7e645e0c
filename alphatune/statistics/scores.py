"""Scores of examples, one number each, and their averages."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import DataError
from alphatune.results.metrics import Metrics
from alphatune.statistics.conditions import conditions_of, has_conditions, images_of

#: number of equal-width confidence bins of the expected calibration error
ECE_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Scores of n examples, in the order of their ids."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int32]
    predicted: NDArray[np.int32]  # class with the largest logit
    loss: NDArray[np.float32]  # cross-entropy, nats
    top1: NDArray[np.bool_]
    top5: NDArray[np.bool_]
    confidence: NDArray[np.float32]  # softmax probability of the predicted class

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Scores:
        """The scores of some of the examples."""
        return Scores(*(getattr(self, f.name)[rows] for f in fields(self)))


def summarise(scores: Scores) -> Metrics:
    """Average the scores, each condition of equal weight; ECE as in ``expected_calibration_error``."""
    if has_conditions(scores.ids):
        number = conditions_of(scores.ids)
        each = [summarise(plain_scores(scores.take(number == k))) for k in np.unique(number)]
        means = {m: float(np.mean([e[m] for e in each])) for m in ("top1", "top5", "loss", "ece")}
        return Metrics(n=len(scores), **means)
    return Metrics(
        n=len(scores),
        top1=float(scores.top1.mean(dtype=np.float64)),
        top5=float(scores.top5.mean(dtype=np.float64)),
        loss=float(scores.loss.mean(dtype=np.float64)),
        ece=expected_calibration_error(scores.confidence, scores.top1),
    )


def plain_scores(scores: Scores) -> Scores:
    """The scores of one condition, as those of plain examples."""
    return replace(scores, ids=images_of(scores.ids))


def expected_calibration_error(
    confidence: NDArray[np.float32], correct: NDArray[np.bool_], bins: int = ECE_BINS
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence.

        ECE = Σ_b |Σ_{i in b} (confidence_i − correct_i)| / n,  bins (j/B, (j+1)/B]

    Source: Naeini et al. 2015; Guo et al. 2017.
    """
    index = calibration_bins(confidence, bins)
    gap = np.bincount(index, weights=confidence.astype(np.float64) - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def calibration_bins(confidence: NDArray[np.float32], bins: int = ECE_BINS) -> NDArray[np.int64]:
    """The bin of each confidence, counted from 0."""
    # Bins are closed on the right, so confidence 1.0 belongs to the last one.
    index: NDArray[np.int64] = np.ceil(confidence.astype(np.float64) * bins).astype(np.int64)
    return np.clip(index - 1, 0, bins - 1)


def calibration_shares(confidence: NDArray[np.float32], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each example's share of the ECE, which is their mean: its gap, with the sign of its bin's sum."""
    bins, gaps = calibration_bins(confidence), confidence.astype(np.float64) - correct
    shares: NDArray[np.float64] = np.sign(np.bincount(bins, weights=gaps))[bins] * gaps
    return shares


def concatenate(parts: list[Scores]) -> Scores:
    """Join the scores of batches and order them by id.

    Raises:
        DataError: no example at all, or one that came twice.
    """
    if not parts:
        raise DataError("the data holds no example")
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Scores)}
    order = np.argsort(joined["ids"], kind="stable")
    if len(np.unique(joined["ids"])) != len(order):
        raise DataError("an example came twice: every id must be scored once")
    return Scores(**{name: values[order] for name, values in joined.items()})
