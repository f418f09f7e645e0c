"""Moments of one example, and how they mix with moving averages.

Notation of the paper (Summers & Dinneen, ICLR 2020, section 3.1): for an
activation of shape (N, C, *), μᵢ and sᵢ are the mean and the *biased* variance
of one example's channel over its spatial positions; m and v are the layer's
``running_mean`` and ``running_var``; α is the weight of the example.

Equation 3 mixes moments, not variances:

    mean     = α·μᵢ + (1−α)·m
    E[x²]    = α·(sᵢ + μᵢ²) + (1−α)·(v + m²)
    variance = E[x²] − mean²

Written out, the squares cancel and leave a sum of non-negative terms,

    variance = (1−α)·v + α·sᵢ + α·(1−α)·(μᵢ − m)²

which is what is computed here: it cannot turn negative and loses no digits
when the mean is large. The last term is the variance *between* the example
and the population; mixing variances without it is a different method.

All statistics are computed in float32 or better, whatever the activation's
dtype: the square of a float16 activation overflows at 256. Where squares leave
float32, too, they are taken in float64 on a CPU; elsewhere the result is NaN,
as 1/sqrt(∞) = 0 would make a constant image of any other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: positions from which on squares are not added up in one go
MANY_POSITIONS = 1024


def check_input(x: Tensor, channels: int, *per_channel: Tensor | None) -> None:
    """Check that an activation and a layer's tensors belong together.

    Kernels that take pointers rely on it: they read C values of each tensor.

    Args:
        x: activations (N, C, *).
        channels: C of the layer.
        per_channel: the layer's tensors, each (C,), (), or None.

    Raises:
        NotImplementedError: ``x`` is not floating-point, as for BatchNorm.
        RuntimeError: another number of channels, or a tensor on another device.
    """
    if not x.is_floating_point():
        raise NotImplementedError(f"expected a floating-point input, got {x.dtype}: convert it first")
    if x.ndim < 2 or x.shape[1] != channels:
        raise RuntimeError(
            f"expected {channels} channels, (N, {channels}, *), got an input of shape {tuple(x.shape)}"
        )
    for tensor in per_channel:
        if tensor is None:
            continue
        if tensor.shape not in ((), (channels,)):
            raise RuntimeError(
                f"expected a layer of {channels} channels, got a tensor of shape {tuple(tensor.shape)} in it"
            )
        if tensor.device != x.device:
            raise RuntimeError(
                f"expected the layer on the input's device, {x.device}, got {tensor.device}: "
                "move the model or the input"
            )


def example_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each example and channel over space.

    Args:
        x: activations (N, C, *); with no spatial dimension each variance is 0.

    Returns:
        ``(mean, variance)``, both (N, C), in float32 or better.
    """
    mean, centred = _centre(x)
    variance = _mean_square(centred)
    return mean.flatten(1), variance.flatten(1)


def mix_moments(
    mean: Tensor,
    variance: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    alpha: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Weigh an example's moments into the moving averages (paper Eq. 3).

        mean     = α·μᵢ + (1−α)·m
        variance = (1−α)·v + α·sᵢ + α·(1−α)·(μᵢ − m)²

    Args:
        mean, variance: the example's moments (N, C).
        running_mean, running_var: the moving averages (C,).
        alpha: weight of the example in [0, 1], a number, () or (C,).

    Returns:
        ``(mean, variance)``, both (N, C). Arguments need only broadcast
        together, so (N, C, 1, 1) with (1, C, 1, 1) is equally good.
    """
    weight = alpha.to(mean.dtype) if isinstance(alpha, Tensor) else alpha
    # lerp counts from the nearer end: at α = 1 nothing is left of m, not even its rounding.
    mixed_mean = torch.lerp(running_mean, mean, weight)
    return mixed_mean, _mix_variance(variance, running_var, mean - running_mean, weight)


def inverse_deviation(variance: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(variance + ε)``, and NaN where the variance overflowed."""
    return torch.rsqrt(variance + eps + (variance - variance))


def under_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is at work: it follows torch operations only."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def overflowed_examples(variance: Tensor) -> Tensor | None:
    """Which examples of (N, ...) have a variance that is not finite in float32; None if there are none.

    Only for those who may wait to know: in eager mode, on a CPU.
    """
    if variance.dtype != torch.float32 or variance.device.type != "cpu" or type(variance) is not Tensor:
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        return None
    if under_transform():
        return None
    if math.isfinite(variance.detach().sum()):
        return None
    finite = variance.detach().flatten(1).isfinite().all(1)
    return (~finite).nonzero()[:, 0]


def average_over_groups(mean: Tensor, variance: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Average moments over groups of contiguous channels, and repeat them over each group.

        mean_g = avg μ_c,   variance_g = avg(s_c + (μ_c − mean_g)²)

    the moments of the group's channels taken together, without cancellation;
    equal moments stay what they are.

    Args:
        mean, variance: moments of each channel, (C,) or (N, C, *).
        num_groups: groups of channels, a divisor of C.

    Returns:
        ``(mean, variance)`` in the shapes they came in.
    """
    channel = 0 if mean.ndim == 1 else 1
    shape = mean.shape
    grouped = (*shape[:channel], num_groups, shape[channel] // num_groups, *shape[channel + 1 :])
    mean, variance = mean.reshape(grouped), variance.reshape(grouped)
    # Averages as deviations from the first channel: those of equal values are exact.
    first_mean, first_variance = mean.narrow(channel + 1, 0, 1), variance.narrow(channel + 1, 0, 1)
    group_mean = first_mean + (mean - first_mean).mean(channel + 1, keepdim=True)
    spread = variance - first_variance + (mean - group_mean).square()
    group_variance = first_variance + spread.mean(channel + 1, keepdim=True)
    return group_mean.expand(grouped).reshape(shape), group_variance.expand(grouped).reshape(shape)


def example_weighted_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
    num_groups: int | None = None,
) -> Tensor:
    """Normalise every example by a mixture of its own and the moving moments.

        y = γ · (x − mean) / sqrt(variance + ε) + β,   mean, variance from Eq. 3

    Args:
        x: activations (N, C, *).
        running_mean, running_var: moving averages (C,).
        weight, bias: γ and β (C,), or None.
        alpha: weight of the example, shape () or (C,).
        eps: ε.
        num_groups: groups of contiguous channels over which both the example's
            and the moving moments are averaged before they are mixed; None
            keeps channels apart.

    Returns:
        (N, C, *), in the dtype and memory format of ``x``. Row i depends on
        row i of ``x`` only, whatever else is in the batch.

    Source: paper section 3.1, Eq. 3.
    """
    dtype = _statistics_dtype(x)

    def per_channel(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).reshape((1, -1) + (1,) * (x.ndim - 2))

    mean, centred = _centre(x)
    own_mean, own_variance = mean, _mean_square(centred)
    moving_mean, moving_variance = per_channel(running_mean), per_channel(running_var)
    if num_groups is not None:
        own_mean, own_variance = average_over_groups(own_mean, own_variance, num_groups)
        moving_mean, moving_variance = average_over_groups(moving_mean, moving_variance, num_groups)
    deviation, weighting = own_mean - moving_mean, per_channel(alpha)
    variance = _mix_variance(own_variance, moving_variance, deviation, weighting)
    scale = inverse_deviation(variance, eps)
    if weight is not None:
        scale = scale * per_channel(weight)
    # x − mean = (x − μᵢ) + (1−α)·(μᵢ − m): a large common offset is gone before
    # any scaling, and at α = 1 nothing is left of m, not even its rounding.
    shift = (1 - weighting) * deviation
    if num_groups is not None:
        shift = shift + (mean - own_mean)
    shift = shift * scale
    if bias is not None:
        shift = shift + per_channel(bias)
    if torch.is_grad_enabled():
        y = torch.addcmul(shift, centred, scale)
    else:  # `centred` is ours: reusing it saves an allocation the size of x
        y = centred.mul_(scale).add_(shift)
    y = y.to(x.dtype)
    overflowed = overflowed_examples(variance)
    if overflowed is not None:  # those and no others: companions do not matter
        wide = x[overflowed].double()
        wide = example_weighted_norm(wide, running_mean, running_var, weight, bias, alpha, eps, num_groups)
        y = y.index_copy(0, overflowed, wide.to(x.dtype))
    return y


def example_weighted_layer_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    """Normalise every position by a mixture of its channels' moments and the moving moments of all channels.

        y = γ · (x − mean) / sqrt(variance + ε) + β,   mean, variance from Eq. 3

    with μᵢ and sᵢ over the channels of one position, and m and v averaged over
    the channels: ``example_weighted_norm`` of the rows (N·H·W, C) in one group.

    Args:
        x, running_mean, running_var, weight, bias, alpha, eps: as for ``example_weighted_norm``.

    Returns:
        (N, C, *), in the dtype and memory format of ``x``.

    Raises:
        NotImplementedError, RuntimeError: as ``check_input`` does.
    """
    check_input(x, running_mean.shape[0], running_mean, running_var, weight, bias, alpha)
    dtype = _statistics_dtype(x)

    def per_channel(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).reshape((1, -1) + (1,) * (x.ndim - 2))

    # One number stands for all channels, which are alike after averaging.
    moving = average_over_groups(running_mean.to(dtype), running_var.to(dtype), 1)
    moving_mean, moving_variance = (per_channel(t[:1]) for t in moving)
    mean = x.mean(1, keepdim=True, dtype=dtype)
    centred = x - mean
    own_variance = torch.linalg.vector_norm(centred, dim=1, keepdim=True).square() / x.shape[1]
    deviation, weighting = mean - moving_mean, per_channel(alpha)
    variance = _mix_variance(own_variance, moving_variance, deviation, weighting)
    scale = inverse_deviation(variance, eps)
    shift = (1 - weighting) * deviation * scale
    y = centred * scale + shift
    if weight is not None:
        y = y * per_channel(weight)
    if bias is not None:
        y = y + per_channel(bias)
    y = y.to(x.dtype)
    overflowed = overflowed_examples(variance)
    if overflowed is not None:
        wide = x[overflowed].double()
        wide = example_weighted_layer_norm(wide, running_mean, running_var, weight, bias, alpha, eps)
        y = y.index_copy(0, overflowed, wide.to(x.dtype))
    return y


def _mix_variance(variance: Tensor, running_var: Tensor, deviation: Tensor, alpha: Tensor | float) -> Tensor:
    return (1 - alpha) * running_var + alpha * variance + alpha * (1 - alpha) * deviation * deviation


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(μᵢ, x − μᵢ)`` of shapes (N, C, 1, ...) and (N, C, *)."""
    dtype = _statistics_dtype(x)
    if x.ndim == 2:  # one position: reducing over no dimension would mean "over all" to torch
        mean = x.to(dtype)
        return mean, torch.zeros_like(mean)
    mean = x.mean(tuple(range(2, x.ndim)), keepdim=True, dtype=dtype)
    return mean, x - mean


def _mean_square(centred: Tensor) -> Tensor:
    """Mean over space of the square of (N, C, *), kept as (N, C, 1, ...)."""
    if centred.ndim == 2:
        return centred.square()
    spatial = tuple(range(2, centred.ndim))
    positions = math.prod(centred.shape[2:])
    # On a CPU vector_norm adds up in as many floats as fit a register, or channels-last in one: long sums lose
    # digits, and channels-last is slow, too. But it needs no squares in memory (docs/benchmarks.md).
    if centred.device.type == "cpu" and not torch.compiler.is_compiling():
        if not centred.is_contiguous():
            return centred.square().mean(spatial, keepdim=True)
        if positions > MANY_POSITIONS:
            if centred.shape[-1] ** 2 < positions:  # long lines, or a volume
                return centred.square().mean(spatial, keepdim=True)
            centred = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=spatial, keepdim=True)
    return norm.square() / positions
