"""Whether two runs differ in calibration error, by exchanging them.

The bootstrap is right for α against none, where the decision may err towards
too small a gain. Of two equal networks it makes too much: an ECE is made of the
noise in each bin, a resample adds more of it, which shrinks differences, and
reflecting them about the estimate stretches it. Exchanging adds no noise: if
neither network is better, which of the two an example's scores come from is as
good as tossed, and all tosses give the differences that luck makes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alphatune.statistics.calibration_error import ECE_BINS, calibration_bins
from alphatune.statistics.gain import RESAMPLES
from alphatune.statistics.scores import Scores

#: differences closer than that are equal but for rounding
_ROUNDING = 1e-12


def exchange_p(first: Scores, other: Scores, *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """p of the difference in ECE of two runs over the same examples.

        p = (1 + #{r: |d_r| ≥ |d|}) / (1 + R),  d = ECE(other) − ECE(first)

    where d_r is the difference after exchanging the scores of each example with
    probability 1/2. Exchanging the runs themselves gives the same p.
    """
    rng = np.random.default_rng(seed)
    runs = [_gaps(first), _gaps(other)]
    whole = [_sums(bins, gaps) for bins, gaps in runs]
    differences = np.empty(resamples)
    for r in range(resamples):
        tossed = rng.random(len(first)) < 0.5
        moved = [_sums(bins[tossed], gaps[tossed]) for bins, gaps in runs]
        change = moved[1] - moved[0]
        differences[r] = np.abs(whole[1] - change).sum() - np.abs(whole[0] + change).sum()
    observed = abs(float(np.abs(whole[1]).sum() - np.abs(whole[0]).sum()))
    as_large = int((np.abs(differences) >= observed - _ROUNDING * len(first)).sum())
    return (1 + as_large) / (1 + resamples)


def _gaps(scores: Scores) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The bin of each example, as ``expected_calibration_error`` has it, and confidence − correct."""
    sure = scores.confidence.astype(np.float64)
    return calibration_bins(scores.confidence), sure - scores.top1


def _sums(bins: NDArray[np.int64], gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(bins, weights=gaps, minlength=ECE_BINS).astype(np.float64)
