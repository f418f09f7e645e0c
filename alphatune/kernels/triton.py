"""Example-weighted inference on CUDA in one Triton kernel, its activation included.

The mathematics is that of moments.py (paper section 3.1, Eq. 3): with the
example's own moments μᵢ and sᵢ, the moving averages m and v and the weight α,

    variance = (1−α)·v + α·sᵢ + α·(1−α)·(μᵢ − m)²
    y = act(γ · ((x − μᵢ) + (1−α)·(μᵢ − m)) / sqrt(variance + ε) + β)

An example of shape (C, *) is taken as a matrix of P positions and C channels
that lies in memory by rows (channels-last) or by columns. A program owns some
channels of one example and nothing else, so no program waits for another:

    _held     all positions fit into registers: one read of x, one write
    _looped   they do not: moments in a first pass, the second one from the
              last tile to the first, what was read last being still in cache

The path and its tile follow from the shape alone; nothing is timed at run
time, so a shape gives the same result every time. α stays on the device:
another value neither compiles anew nor waits.

``import triton`` fails on a machine without it, so import this module where it
is used and not at the top of a module that is imported with alphatune.
"""

from __future__ import annotations

import functools
import math
import os
import shutil

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = (None, "relu", "silu")
#: Elements of a tile: the most that is kept in registers (32 a thread of 16
#: warps), the size when looping, and the least that is worth a program.
HELD_TILE, LOOPED_TILE, SMALL_TILE = 16384, 8192, 512


@functools.cache
def available() -> bool:
    """Whether the kernels can run here: a CUDA device and a C compiler.

    Triton needs the latter at run time. Compute capabilities before 7.5 are
    untried. That Triton is installed shows in that this module was imported.
    """
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    return bool(compiler) and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (7, 5)


def supports(x: Tensor, act: str | None) -> bool:
    """Whether ``example_weighted_norm`` takes this activation: dtype, memory format and more than one position."""
    return (
        x.dtype in DTYPES
        and act in ACTIVATIONS
        and x.ndim > 2
        and math.prod(x.shape[2:]) > 1
        and (x.is_contiguous() or x.movedim(1, -1).is_contiguous())
    )


def example_weighted_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
    act: str | None = None,
) -> Tensor:
    """Normalise every example by a mixture of its own and the moving moments.

        y = act(γ · (x − mean) / sqrt(variance + ε) + β),   mean, variance from Eq. 3

    For inference only: the result has no gradient.

    Args:
        x: activations (N, C, *) that ``supports`` accepts.
        running_mean, running_var: moving averages (C,), contiguous, of any float dtype.
        weight, bias: γ and β (C,), or None.
        alpha: weight of the example, shape () or (C,), on the device of ``x``.
        eps: ε.
        act: "relu", "silu" or None, applied before rounding to the dtype of ``x``.

    Returns:
        (N, C, *), in the dtype and memory format of ``x``; computed in float32.

    Source: paper section 3.1, Eq. 3.
    """
    y = torch.empty_like(x)
    channels, positions, by_rows = x.shape[1], math.prod(x.shape[2:]), not x.is_contiguous()
    block_p, block_c = _tile(positions, channels, by_rows, x.element_size())
    # Contiguous runs in units: the compiler sees their alignment, and loads 14×14 = 49·4 positions by fours.
    outer, inner = (positions, channels) if by_rows else (channels, positions)
    unit = math.gcd(inner, 16)
    kernel = _held if block_p >= positions else _looped
    programs = len(x) * triton.cdiv(channels, block_c)
    alpha_stride = alpha.stride(0) if alpha.ndim else 0
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(programs,)](
            x, y, running_mean, running_var, weight, bias, alpha, alpha_stride, float(eps), outer, inner // unit,
            UNIT=unit, BY_ROWS=by_rows, ACT=act, BLOCK_P=block_p, BLOCK_C=block_c,
            num_warps=min(max(block_p * block_c // 512, 1), 16),
        )  # fmt: skip
    return y


def _tile(positions: int, channels: int, by_rows: bool, itemsize: int) -> tuple[int, int]:
    """Positions and channels of a tile: all positions if they can be held."""
    block_p, most = triton.next_power_of_2(positions), triton.next_power_of_2(channels)
    block_c = 1
    for contiguous_bytes in (128, 64):  # a line of the cache, or half of one
        least = contiguous_bytes // itemsize if by_rows else 1
        block_c = min(max(SMALL_TILE // block_p, least), most)
        if block_p * block_c <= HELD_TILE:
            return block_p, block_c
    return LOOPED_TILE // block_c, block_c


@triton.jit  # type: ignore[untyped-decorator]
def _place(outer, units, UNIT: tl.constexpr, BY_ROWS: tl.constexpr, BLOCK_C: tl.constexpr):  # type: ignore[no-untyped-def]
    """``(start, channel, C, P, stride_c, stride_p)`` of the program's example and first channel."""
    C, P = (units * UNIT, outer) if BY_ROWS else (outer, units * UNIT)
    stride_c, stride_p = (1, C) if BY_ROWS else (P, 1)
    blocks = tl.cdiv(C, BLOCK_C)
    example = tl.program_id(0) // blocks
    channel = (tl.program_id(0) % blocks) * BLOCK_C
    # Where a tile starts is 64 bits wide, the offsets inside of it need 32.
    start = example.to(tl.int64) * C * P + channel.to(tl.int64) * stride_c
    return start, channel, C, P, stride_c, stride_p


@triton.jit
def _scale_and_shift(own_mean, own_var, pivot, channel, inside, mean, var, weight, bias, alpha, alpha_stride, eps):  # type: ignore[no-untyped-def]  # fmt: skip
    """Eq. 3: ``y = (x − μᵢ)·scale + shift``, where μᵢ is given as ``own_mean + pivot``."""
    a = tl.load(alpha + channel * alpha_stride, inside, 0.0).to(tl.float32)
    deviation = (pivot - tl.load(mean + channel, inside, 0.0).to(tl.float32)) + own_mean
    v = tl.load(var + channel, inside, 0.0).to(tl.float32)
    variance = (1 - a) * v + a * own_var + a * (1 - a) * deviation * deviation
    scale = tl.rsqrt(variance + eps + (variance - variance))  # NaN, and not 0, where squares overflowed
    if weight is not None:
        scale *= tl.load(weight + channel, inside, 0.0).to(tl.float32)
    shift = (1 - a) * deviation * scale
    if bias is not None:
        shift += tl.load(bias + channel, inside, 0.0).to(tl.float32)
    return scale, shift


@triton.jit  # type: ignore[untyped-decorator]
def _write(pointer, y, inside, ACT: tl.constexpr):  # type: ignore[no-untyped-def]
    if ACT == "relu":
        y = tl.where(y < 0, 0.0, y)  # and not the maximum with 0, which hides NaN
    elif ACT == "silu":
        y = y / (1 + tl.exp(-y))
    tl.store(pointer, y.to(pointer.dtype.element_ty), inside)


# Both kernels take moments of d = x − pivot, the pivot being the channel's value
# at the first position. It lies within sqrt(P) deviations of the mean, so a common
# offset is gone before anything is rounded; 0 or m as a pivot would not do that.


@triton.jit(do_not_specialize=["alpha_stride", "outer", "units"])  # type: ignore[untyped-decorator]
def _held(  # type: ignore[no-untyped-def]
    x, y, mean, var, weight, bias, alpha, alpha_stride, eps, outer, units,
    UNIT: tl.constexpr, BY_ROWS: tl.constexpr, ACT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    start, channel, C, P, stride_c, stride_p = _place(outer, units, UNIT, BY_ROWS, BLOCK_C)
    p, c = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C)
    in_channels = channel + c < C
    inside = (p < P)[:, None] & in_channels[None, :]
    offsets = p[:, None] * stride_p + c[None, :] * stride_c
    pivot = tl.load(x + start + c * stride_c, in_channels, 0.0).to(tl.float32)
    d = tl.load(x + start + offsets, inside, 0.0).to(tl.float32) - pivot[None, :]
    own_mean = tl.sum(tl.where(inside, d, 0.0), 0) / P
    d = tl.where(inside, d - own_mean[None, :], 0.0)
    own_var = tl.sum(d * d, 0) / P
    scale, shift = _scale_and_shift(
        own_mean, own_var, pivot, channel + c, in_channels, mean, var, weight, bias, alpha, alpha_stride, eps
    )
    _write(y + start + offsets, d * scale[None, :] + shift[None, :], inside, ACT)


@triton.jit(do_not_specialize=["alpha_stride", "outer", "units"])  # type: ignore[untyped-decorator]
def _looped(  # type: ignore[no-untyped-def]
    x, y, mean, var, weight, bias, alpha, alpha_stride, eps, outer, units,
    UNIT: tl.constexpr, BY_ROWS: tl.constexpr, ACT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    start, channel, C, P, stride_c, stride_p = _place(outer, units, UNIT, BY_ROWS, BLOCK_C)
    p, c = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C)
    in_channels = channel + c < C
    offsets = p[:, None] * stride_p + c[None, :] * stride_c
    pivot = tl.load(x + start + c * stride_c, in_channels, 0.0).to(tl.float32)
    tiles = tl.cdiv(P, BLOCK_P)
    # Welford's recurrence, each place of the tile for itself: no reduction in the loop.
    place_mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    place_squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for i in range(tiles):
        inside = (p < P - i * BLOCK_P)[:, None] & in_channels[None, :]
        d = tl.load(x + start + offsets, inside, 0.0).to(tl.float32) - pivot[None, :]
        step = tl.where(inside, d - place_mean, 0.0)
        place_mean += step * (1.0 / (i + 1))
        place_squares += step * (d - place_mean)
        start += BLOCK_P * stride_p
    # Chan's merge of all places; the last tile may have reached only some of them.
    count = tl.where(p < P - (tiles - 1) * BLOCK_P, tiles, tiles - 1).to(tl.float32)[:, None]
    own_mean = tl.sum(count * place_mean, 0) / P
    place_mean -= own_mean[None, :]
    own_var = tl.sum(place_squares + count * place_mean * place_mean, 0) / P
    scale, shift = _scale_and_shift(
        own_mean, own_var, pivot, channel + c, in_channels, mean, var, weight, bias, alpha, alpha_stride, eps
    )
    for i in range(tiles):
        start -= BLOCK_P * stride_p
        inside = (p < P - (tiles - 1 - i) * BLOCK_P)[:, None] & in_channels[None, :]
        d = tl.load(x + start + offsets, inside, 0.0).to(tl.float32) - pivot[None, :]
        _write(y + start + offsets, (d - own_mean[None, :]) * scale[None, :] + shift[None, :], inside, ACT)
