"""Interpolate in α: nodes, weights, and how far to trust them.

The logits of a network are smooth in α, because every layer is: a polynomial
through a few nodes gives them everywhere between. Nodes are the
Chebyshev-Lobatto points of [0, r],

    t_j = r·(1 − cos(π·j / (K−1))) / 2,   j = 0 … K−1,

which hold both ends, nearly minimise the largest error of polynomial
interpolation, and are nested: those of K = 5 are among those of K = 9
(Trefethen, Approximation Theory and Approximation Practice, ch. 2 and 5).
t is the distance from the unpatched model: α, or 1 − α for GroupNorm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def lobatto_nodes(count: int, high: float) -> tuple[float, ...]:
    """``count`` >= 2 Chebyshev-Lobatto nodes of [0, high], increasing; 0 and ``high`` are exact."""
    inner = [high * (1 - np.cos(np.pi * j / (count - 1))) / 2 for j in range(1, count - 1)]
    return (0.0, *(round(float(t), 12) for t in inner), high)


def interpolation_weights(nodes: ArrayLike, points: ArrayLike) -> FloatArray:
    """Matrix W (points, nodes) with f(point) ≈ W @ f(nodes), of the polynomial through all nodes.

        W_ij = (w_j / (x_i − t_j)) / Σ_k w_k / (x_i − t_k),   w_j = 1 / Π_{k≠j} (t_j − t_k)

    the second barycentric form, which is stable (Berrut & Trefethen 2004, Eq. 4.2).
    A point that is a node takes that node's value exactly.
    """
    t, x = np.asarray(nodes, dtype=np.float64), np.asarray(points, dtype=np.float64)
    gaps = t[:, None] - t[None, :]
    np.fill_diagonal(gaps, 1.0)
    # Scaled by the span, so that products of many small gaps do not underflow.
    w = 1.0 / np.prod(gaps / (t[-1] - t[0]), axis=1)
    difference = x[:, None] - t[None, :]
    hit = difference == 0
    terms: FloatArray = w / np.where(hit, 1.0, difference)
    rows = hit.any(axis=1)
    terms[rows] = hit[rows]
    weights: FloatArray = terms / terms.sum(axis=1, keepdims=True)
    return weights
