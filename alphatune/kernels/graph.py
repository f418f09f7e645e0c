"""Example weighting in exported graphs: three passes over an activation instead of five.

A runtime takes the operations of a graph one by one, each a pass over memory.
``moments.example_weighted_norm`` centres the activation before it squares it;
here the raw moments are mixed, as the paper's Eq. 3 has them,

    mean     = α·μᵢ + (1−α)·m
    E[x²]    = α·avg(x²) + (1−α)·(v + m²)
    variance = E[x²] − mean²

which leaves two sums and one pass that applies both moments, γ and β.

The difference of squares loses digits. The variance contains α(1−α)(μᵢ − m)²
and (1−α)·v (moments.py). So a large μᵢ adds at most 1/(1−α) times the variance to
E[x²], and m adds about m²/v times. The variance is known to about
1/(1−α) + m²/v units in the last place. Layers where that is more than
``MOST_LOST`` keep the centred form.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: units in the last place that the variance may lose: about one part in 80 000
MOST_LOST = 100.0


def is_accurate(running_mean: Tensor, running_var: Tensor, alpha: Tensor, eps: float) -> bool:
    """Whether a layer's numbers leave the difference of squares enough digits.

    Args:
        running_mean, running_var: moving averages (C,).
        alpha: weight of the example, shape () or (C,).
    """
    largest_alpha = float(alpha.max())
    offset = float((running_mean.double().square() / (running_var.double() + eps)).max())
    return largest_alpha < 1 and 1 / (1 - largest_alpha) + offset <= MOST_LOST


def norm_for_onnx(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    """``moments.example_weighted_norm`` of (N, C, *), one spatial dimension at least, with BatchNorm at its end.

    The other arguments and the result are the same. torch has no gradient of it.
    """
    n, channels, *spatial = x.shape
    mean, variance = _mixed_moments(x, running_mean, running_var, alpha)

    def per_row(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.expand(n, channels).reshape(-1)

    rows = x.reshape(1, n * channels, *spatial)
    gamma, beta = per_row(weight), per_row(bias)
    y = F.batch_norm(rows, mean.reshape(-1), variance.reshape(-1), gamma, beta, eps=eps)
    return y.reshape(x.shape)


def norm_for_torch(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    """The same with a multiplication and an addition in one at its end, which torch can differentiate."""
    mean, variance = _mixed_moments(x, running_mean, running_var, alpha)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * _per_channel(weight, x)
    shift = -mean * scale
    if bias is not None:
        shift = shift + _per_channel(bias, x)
    return torch.addcmul(shift, x, scale)


def _mixed_moments(
    x: Tensor, running_mean: Tensor, running_var: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of (N, C, *) from Eq. 3, each (N, C, 1, ...)."""
    dims, positions = tuple(range(2, x.ndim)), math.prod(x.shape[2:])
    a, m, v = (_per_channel(tensor, x) for tensor in (alpha, running_mean, running_var))
    mean = a * x.mean(dims, keepdim=True) + (1 - a) * m
    squares = torch.linalg.vector_norm(x, dim=dims, keepdim=True).square()
    variance = squares * (a / positions) + (1 - a) * (v + m * m) - mean * mean
    return mean, variance + (
        variance - variance
    )  # NaN where squares overflow, as in moments.inverse_deviation


def _per_channel(tensor: Tensor, x: Tensor) -> Tensor:
    return tensor.reshape((1, -1) + (1,) * (x.ndim - 2))
