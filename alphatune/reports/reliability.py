"""How often predictions are right that are made with this or that confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from alphatune.statistics.calibration_error import ECE_BINS
from alphatune.statistics.gain import CONFIDENCE
from alphatune.statistics.scores import Scores


@dataclass(frozen=True)
class Bin:
    """The examples whose confidence is in (low, high]; averages are None where there is none."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None
    interval: tuple[float, float] | None  # of the accuracy, Wilson's


def reliability(scores: Scores, bins: int = ECE_BINS) -> tuple[Bin, ...]:
    """The bins that the expected calibration error is summed over."""
    sure = scores.confidence.astype(np.float64)
    index = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    right = np.bincount(index, weights=scores.top1, minlength=bins)
    summed = np.bincount(index, weights=sure, minlength=bins)
    low, high = wilson(right.astype(np.float64), counts)
    return tuple(
        Bin(i / bins, (i + 1) / bins, int(n), summed[i] / n, right[i] / n, (float(low[i]), float(high[i])))
        if n
        else Bin(i / bins, (i + 1) / bins, 0, None, None, None)
        for i, n in enumerate(counts)
    )


def wilson(
    right: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's interval of proportions, which stays within 0 and 1."""
    z, n = ndtri(0.5 + CONFIDENCE / 2), np.maximum(counts, 1)
    p = right / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half
