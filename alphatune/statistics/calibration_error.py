"""The expected calibration error (ECE): how far confidence and accuracy are apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: number of equal-width bins of confidence
ECE_BINS = 15


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
