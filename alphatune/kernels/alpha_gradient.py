"""The gradient of example weighting with respect to α, and to the activation.

With d = μᵢ − m, V the mixed variance of Eq. 3 (moments.py), r = 1/sqrt(V + ε),
P positions an example, and the sums S₁ = Σ dy, S₂ = Σ dy·(x − μᵢ) over them,

    dM = −γ·r·S₁                              of the mixed mean M = m + α·d
    dV = −½·γ·r³·(S₂ + (1−α)·d·S₁)            of the mixed variance
    dα = Σᵢ (d·dM + (sᵢ − v + (1−2α)·d²)·dV)
    dx = γ·r·dy + (α·dM + 2α(1−α)·d·dV)/P + (2α·dV/P)·(x − μᵢ)

so that one sweep for the sums and one for dx are all there is, where autograd
over the plain operations makes about ten. γ, β and the moving averages are
constants here: α is tuned, the network is not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from alphatune.kernels import moments
from alphatune.kernels.grouped import differentiable_gradients, group_norm_ops, is_differentiated
from alphatune.kernels.moments import inverse_deviation, mix_moments


def example_weighted_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    """``moments.example_weighted_norm`` with a gradient for ``x`` and ``alpha``, and for nothing else."""
    y: Tensor = _ExampleWeightedNorm.apply(x, running_mean, running_var, weight, bias, alpha, eps)
    return y


class _ExampleWeightedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        alpha: Tensor,
        eps: float,
    ) -> Tensor:
        sweeps = group_norm_ops(x, 1)
        mean, variance = sweeps.moments(x.shape[1])
        m, v = running_mean.to(mean.dtype), running_var.to(mean.dtype)
        mixed_mean, mixed_variance = mix_moments(mean, variance, m, v, alpha)
        scale = inverse_deviation(mixed_variance, eps)
        if weight is not None:
            scale = scale * weight
        shift = -mixed_mean * scale
        if bias is not None:
            shift = shift + bias
        ctx.save_for_backward(x, m, v, weight, alpha, mean, variance)
        ctx.eps = eps
        return sweeps.affine(scale.to(mean.dtype), shift.to(mean.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, m, v, weight, alpha, mean, variance = ctx.saved_tensors
        if is_differentiated():
            y = moments.example_weighted_norm(x, m, v, weight, None, alpha, ctx.eps)
            wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[5])
            dx, dalpha = differentiable_gradients(y, (x, alpha), wanted, dy)
            return dx, None, None, None, None, dalpha, None
        sweeps = group_norm_ops(x, 1)
        dy = sweeps.like_x(dy)
        sum_dy, sum_dy_centred = sweeps.sums(dy, mean, torch.ones_like(mean))
        d = mean - m
        rstd = torch.rsqrt(mix_moments(mean, variance, m, v, alpha)[1] + ctx.eps)
        scale = rstd if weight is None else rstd * weight
        d_mean = -scale * sum_dy
        d_variance = -0.5 * scale * rstd.square() * (sum_dy_centred + (1 - alpha) * d * sum_dy)
        dx = dalpha = None
        if ctx.needs_input_grad[5]:
            dalpha = (d * d_mean + (variance - v + (1 - 2 * alpha) * d * d) * d_variance).sum(0)
            dalpha = (dalpha if alpha.ndim else dalpha.sum()).to(alpha.dtype)
        if ctx.needs_input_grad[0]:
            positions = math.prod(x.shape[2:])
            slope = 2 * alpha * d_variance / positions
            offset = (alpha * d_mean + 2 * alpha * (1 - alpha) * d * d_variance) / positions - slope * mean
            dx = sweeps.affine(slope, offset, dy, scale)
        return dx, None, None, None, None, dalpha, None
