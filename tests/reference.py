"""The paper's equations in float64 NumPy, one example and channel at a time.

Slow, and written unlike the implementation on purpose: raw moments E[x] and
E[x²] are mixed as the paper's Eq. 3 has them, and loops take the place of
broadcasting.
"""

from __future__ import annotations

import numpy as np


def example_weighted(
    x: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    alpha: float | np.ndarray,
    eps: float,
) -> np.ndarray:
    """Example-weighted inference (Eq. 3) on (N, C, *)."""
    x = np.asarray(x, dtype=np.float64)
    examples, channels = x.shape[:2]
    alphas = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (channels,))
    out = np.empty_like(x)
    for n in range(examples):
        for c in range(channels):
            values = np.ravel(x[n, c])
            own_first, own_second = np.sum(values) / values.size, np.sum(values**2) / values.size
            moving_first = float(running_mean[c])
            moving_second = float(running_var[c]) + moving_first**2
            first = alphas[c] * own_first + (1 - alphas[c]) * moving_first
            second = alphas[c] * own_second + (1 - alphas[c]) * moving_second
            deviation = np.sqrt(second - first**2 + eps)
            gamma = 1.0 if weight is None else float(weight[c])
            beta = 0.0 if bias is None else float(bias[c])
            out[n, c] = gamma * (x[n, c] - first) / deviation + beta
    return out


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """ECE by its definition, a bin at a time; bins are (a, b], the first one [0, b]."""
    total, n = 0.0, len(confidence)
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i in range(n) if (low < confidence[i] <= high) or (b == 0 and confidence[i] == 0)]
        if inside:
            accuracy = np.mean([float(correct[i]) for i in inside])
            total += len(inside) / n * abs(accuracy - np.mean([float(confidence[i]) for i in inside]))
    return total


def cross_entropy(logits: np.ndarray, target: int) -> float:
    """−log softmax(logits)[target] in nats."""
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits)
    return float(np.log(np.sum(np.exp(shifted))) - shifted[target])
