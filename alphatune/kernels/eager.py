"""Example weighting on a CPU without a compiler: torch's own norm kernels, put together.

torch has no operation that gives moments and nothing else at the speed of
memory (``var_mean`` takes ten times a BatchNorm). Its GroupNorm, over groups of
one channel, reads an activation once for stable moments and writes

    z = (x − μᵢ)·rᵢ,   rᵢ = 1 / sqrt(sᵢ + ε)

from which the wanted y is one more affine sweep, in place, by BatchNorm's
inference kernel over rows (n, c):

    y = z·(scale/rᵢ) + (1 − α)(μᵢ − m)·scale + β,   scale = γ / sqrt(variance + ε)
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphatune.kernels import moments

aten = torch.ops.aten
#: positions from which on the two borrowed kernels beat plain operations (measured)
FEWEST_POSITIONS = 100


def supports(x: Tensor) -> bool:
    """Whether this activation (N, C, *) is in a form that the borrowed kernels are fast for."""
    return (
        x.ndim > 2
        and x.dtype == torch.float32
        and x.is_contiguous()
        and x.numel() >= FEWEST_POSITIONS * x.shape[0] * x.shape[1] > 0
    )


def example_weighted_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    """``moments.example_weighted_norm`` without gradients; arguments and result are the same."""
    n, channels = x.shape[:2]
    rows, positions = n * channels, x.numel() // (n * channels)
    safe_eps = eps if eps > 0 else 1e-12  # an example's channel may be constant
    z: Tensor
    z, mean, rstd = aten.native_group_norm(x, None, None, n, channels, positions, channels, safe_eps)
    mean, rstd = mean.view(n, channels), rstd.view(n, channels)
    own_variance = (rstd.square().reciprocal_() - safe_eps).clamp_min_(0)
    m, v = running_mean.to(x.dtype), running_var.to(x.dtype)
    _, variance = moments.mix_moments(mean, own_variance, m, v, alpha)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = (1 - alpha) * (mean - m) * scale
    if bias is not None:
        shift = shift + bias
    scale = (scale / rstd).to(x.dtype).reshape(-1)
    shift = shift.to(x.dtype).reshape(-1)
    zeros, ones, none = torch.zeros_like(scale), torch.ones_like(scale), scale.new_empty(0)
    flat = z.view(1, rows, positions)
    aten.native_batch_norm.out(
        flat, scale, shift, zeros, ones, False, 0.0, 0.0, out=flat, save_mean=none, save_invstd=none
    )
    overflowed = moments.overflowed_examples(variance)
    if overflowed is not None:
        y = moments.example_weighted_norm(x[overflowed], running_mean, running_var, weight, bias, alpha, eps)
        z.index_copy_(0, overflowed, y)
    return z
