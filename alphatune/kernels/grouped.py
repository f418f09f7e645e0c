"""The derivative of grouped normalisation, and its fast forms on a CPU.

With G groups of examples and K of channels, M values in each, everything but
three sweeps over the activation happens on small tensors (G, K) and (G, C):

    forward    mean, variance = moments of each group          one read
               y  = a·x + b,   a = γ·rstd, b = β − a·mean      one read, one write
    backward   Σ dy and Σ dy·(x − mean)·rstd, a channel at a time
               dx = a·dy + p·x + q                             over the group:
               p = −rstd²·avg(γ·dy·x̂), q = −rstd·avg(γ·dy) − p·mean

Autograd keeps x and the small tensors only.

A sweep in plain torch operations runs on any device, and compiles well. In
eager mode on a CPU it is several times as slow as torch's norm kernels. On
(N, C, H, W) in memory the sweeps borrow these: each example's channel is a row,
and a GroupNorm over rows yields their moments and sums at once. In
channels-last, where a group is a matrix whose rows are added up, they are C++
(cpu.py). Without a compiler the rows are added up in plain operations;
large groups go to BatchNorm's kernels, one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from alphatune.kernels import cpu
from alphatune.kernels.moments import inverse_deviation, under_transform

aten = torch.ops.aten
#: elements of a group from which on a call for each group costs less than plain sums over all (measured)
LARGE_GROUP = 2**17


def grouped_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, mean, variance)``, the moments (G, K) and biased; differentiable any number of times."""
    if under_transform():
        return GroupNormOps(x, size).normalise(weight, bias, num_groups, eps)
    return _GroupedNorm.apply(x, weight, bias, num_groups, size, eps)  # type: ignore[no-any-return]


def is_differentiated() -> bool:
    """Whether a backward pass has to leave a graph of its own (``create_graph``).

    The fast sweeps have none, and what autograd would make of them is wrong, not an error.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiable_gradients(
    y: Tensor, inputs: Sequence[Tensor], wanted: Sequence[bool], dy: Tensor
) -> Iterator[Tensor | None]:
    """The gradient of each input, with a graph of its own, and None for those that are not wanted."""
    chosen = [tensor for tensor, wants in zip(inputs, wanted, strict=True) if wants]
    found = iter(torch.autograd.grad(y, chosen, dy, create_graph=True) if chosen else ())
    return (next(found) if wants else None for wants in wanted)


class _GroupedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        num_groups: int,
        size: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, variance = group_norm_ops(x, size).normalise(weight, bias, num_groups, eps)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.num_groups, ctx.size, ctx.eps = num_groups, size, eps
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        if is_differentiated():
            y = GroupNormOps(x, ctx.size).normalise(weight, None, ctx.num_groups, ctx.eps)[0]
            gradients = differentiable_gradients(y, (x, weight), ctx.needs_input_grad[:2], dy)
            sum_dy = dy.sum([0, *range(2, dy.ndim)]).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
            return *gradients, sum_dy, *(None,) * 3
        sweeps = group_norm_ops(x, ctx.size)
        dx, dweight, dbias = sweeps.differentiate(
            dy, weight, mean, variance, ctx.eps, ctx.needs_input_grad[0]
        )
        return (
            dx,
            dweight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            dbias.to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None,
            *(None,) * 3,
        )


class GroupNormOps:
    """Passes over an activation (N, C, *) in plain torch operations; G groups of ``size`` examples."""

    def __init__(self, x: Tensor, size: int) -> None:
        self.x, self.size = x, size
        self.groups, self.channels = len(x) // size, x.shape[1]
        self.dtype = torch.promote_types(x.dtype, torch.float32)

    def normalise(
        self, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, and the moments (G, K)."""
        mean, variance = self.moments(num_groups)
        repeats = self.channels // num_groups
        scale = _repeat(inverse_deviation(variance, eps), repeats)
        if weight is not None:
            scale = scale * weight
        shift = _repeat(mean, repeats) * scale
        shift = shift.neg_() if bias is None else bias - shift
        return self.affine(scale, shift), mean, variance

    def differentiate(
        self, dy: Tensor, weight: Tensor | None, mean: Tensor, variance: Tensor, eps: float, wants_dx: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """dx (None unless wanted), dγ and dβ (C,), wanted or not."""
        rstd = torch.rsqrt(variance + eps)
        repeats = self.channels // mean.shape[1]
        scale = _repeat(rstd, repeats)
        dy = self.like_x(dy)
        sum_dy, sum_dy_xhat = self.sums(dy, _repeat(mean, repeats), scale)
        dweight, dbias = sum_dy_xhat.sum(0), sum_dy.sum(0)
        if not wants_dx:
            return None, dweight, dbias
        if weight is not None:
            sum_dy, sum_dy_xhat, scale = sum_dy * weight, sum_dy_xhat * weight, scale * weight
        factor = rstd * (-mean.numel() / self.x.numel())
        p = _add_up(sum_dy_xhat, repeats) * factor * rstd
        q = torch.addcmul(_add_up(sum_dy, repeats) * factor, p, mean, value=-1)
        return self.affine(_repeat(p, repeats), _repeat(q, repeats), dy, scale), dweight, dbias

    def moments(self, num_groups: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (G, K)."""
        # A channel first: Inductor is slow at sums over channels and examples at once.
        grouped = self.x.to(self.dtype).reshape(self.groups, self.size, self.channels, -1)
        mean = grouped.mean((1, 3))
        variance = (grouped - mean[:, None, :, None]).square().mean((1, 3))
        shape = (self.groups, num_groups, -1)
        return _pool(mean.view(shape), variance.view(shape), 2)

    def affine(
        self, scale: Tensor, shift: Tensor, other: Tensor | None = None, other_scale: Tensor | None = None
    ) -> Tensor:
        """``scale·x + shift (+ other_scale·other)`` with factors (G, C)."""
        x = self.x.to(self.dtype)
        if other is None or other_scale is None:
            scale, shift = _in_memory(scale, shift)
            return torch.addcmul(self._wide(shift), x, self._wide(scale)).to(self.x.dtype)
        scale, shift, other_scale = _in_memory(scale, shift, other_scale)
        y = torch.addcmul(self._wide(shift), x, self._wide(scale))
        return y.addcmul_(other.to(self.dtype), self._wide(other_scale)).to(self.x.dtype)

    def sums(self, dy: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """Σ dy and Σ dy·(x − mean)·rstd, both (G, C)."""
        grouped = self.x.to(self.dtype).reshape(self.groups, self.size, self.channels, -1)
        dy = dy.to(self.dtype).reshape(grouped.shape)
        mean, rstd = _in_memory(mean, rstd)
        centred = (grouped - mean[:, None, :, None]) * rstd[:, None, :, None]
        return dy.sum((1, 3)), (dy * centred).sum((1, 3))

    def _wide(self, tensor: Tensor) -> Tensor:
        """(G, C) -> (N, C, 1, ...)."""
        # A view and a copy, which Inductor turns into an index; repeat_interleave would be a gather.
        rows = tensor[:, None].expand(-1, self.size, -1).reshape(len(self.x), -1)
        return rows[(...,) + (None,) * (self.x.ndim - 2)]

    def like_x(self, tensor: Tensor) -> Tensor:
        """In the memory format of x."""
        for dimensions, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if self.x.ndim == dimensions and self.x.is_contiguous(memory_format=memory_format):
                return tensor.contiguous(memory_format=memory_format)
        return tensor.contiguous() if self.x.is_contiguous() else tensor


class CompiledGroupNormOps(GroupNormOps):
    """A position's channels side by side, in C++: a group that fits the cache is read from memory once."""

    def moments(self, num_groups: int) -> tuple[Tensor, Tensor]:
        return cpu.grouped_moments(self.x, self.size, num_groups)

    def normalise(
        self, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return cpu.grouped_norm(self.x, weight, bias, num_groups, self.size, eps)

    def differentiate(
        self, dy: Tensor, weight: Tensor | None, mean: Tensor, variance: Tensor, eps: float, wants_dx: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        return cpu.grouped_norm_backward(self.x, dy, weight, mean, variance, self.size, eps, wants_dx)


class RowGroupNormOps(GroupNormOps):
    """Contiguous (N, C, *): row (n, c) is channel n·C + c of a batch of one."""

    def __init__(self, x: Tensor, size: int) -> None:
        super().__init__(x, size)
        self.rows = x.view(1, len(x) * self.channels, -1)

    def moments(self, num_groups: int) -> tuple[Tensor, Tensor]:
        n, positions = len(self.x), self.rows.shape[2]
        # ε = 0 gives the variance back exactly; the normalised output is not used.
        _, mean, rstd = aten.native_group_norm(
            self.x, None, None, n, self.channels, positions, num_groups, 0.0
        )
        variance = rstd.square().reciprocal_()  # 0 where rstd is infinite
        return _pool(mean.view(self.groups, self.size, -1), variance.view(self.groups, self.size, -1), 1)

    def affine(
        self, scale: Tensor, shift: Tensor, other: Tensor | None = None, other_scale: Tensor | None = None
    ) -> Tensor:
        scale, shift = self._each_row(scale), self._each_row(shift)
        zeros, ones, none = torch.zeros_like(scale), torch.ones_like(scale), scale.new_empty(0)
        y = torch.empty_like(self.x)  # no view comes out, so that the next layer may write to it
        rows = y.view(self.rows.shape)
        aten.native_batch_norm.out(
            self.rows, scale, shift, zeros, ones, False, 0.0, 0.0, out=rows, save_mean=none, save_invstd=none
        )
        if other is not None and other_scale is not None:
            rows.addcmul_(other.view(rows.shape), self._each_row(other_scale).view(1, -1, 1))
        return y

    def sums(self, dy: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        rows, positions = self.rows.shape[1:]
        ones = dy.new_ones(rows)  # no use is made of them, but torch before 2.14 wants a weight
        _, sum_dy_xhat, sum_dy = aten.native_group_norm_backward(
            dy.view(self.rows.shape),
            self.rows,
            self._each_row(mean).view(1, -1),
            self._each_row(rstd).view(1, -1),
            ones,
            1,
            rows,
            positions,
            rows,
            [False, True, True],
        )
        shape = (self.groups, self.size, self.channels)
        return sum_dy.view(shape).sum(1), sum_dy_xhat.view(shape).sum(1)

    def _each_row(self, tensor: Tensor) -> Tensor:
        return tensor[:, None].expand(-1, self.size, -1).reshape(-1).contiguous()


class ChannelsLastGroupNormOps(GroupNormOps):
    """Channels-last: one group of examples is a matrix of positions × channels, summed over its rows."""

    def moments(self, num_groups: int) -> tuple[Tensor, Tensor]:
        matrices = self._matrices(self.x)
        mean = matrices.mean(1)
        centred = matrices - mean[:, None]
        variance = centred.mul_(centred).mean(1)
        shape = (self.groups, num_groups, -1)
        return _pool(mean.view(shape), variance.view(shape), 2)

    def affine(
        self, scale: Tensor, shift: Tensor, other: Tensor | None = None, other_scale: Tensor | None = None
    ) -> Tensor:
        y = torch.empty_like(self.x)
        lines = [self._lines(y), self._lines(self.x), self._tile(scale), self._tile(shift)]
        if other is None or other_scale is None:
            out, x, a, b = lines
            torch.addcmul(b, x, a, out=out)
            return y
        lines += [self._lines(other), self._tile(other_scale)]
        # Some groups at a time: they are still in the cache for the second sum.
        for out, x, a, b, o, c in zip(
            *(torch.split(part, max(1, 16 // self.size)) for part in lines), strict=True
        ):
            torch.addcmul(b, x, a, out=out).addcmul_(o, c)
        return y

    def sums(self, dy: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        dy = self._matrices(dy)
        centred = self._matrices(self.x) - mean[:, None]
        return dy.sum(1), centred.mul_(dy).sum(1).mul_(rstd)

    def _matrices(self, tensor: Tensor) -> Tensor:
        """(G, size·H·W, C)."""
        return tensor.movedim(1, -1).view(self.groups, -1, self.channels)

    def _lines(self, tensor: Tensor) -> Tensor:
        """(G, size·H, W·C), lines of the images: rows of C values alone are too short to be fast."""
        return tensor.movedim(1, -1).view(self.groups, -1, self.x.shape[3] * self.channels)

    def _tile(self, factor: Tensor) -> Tensor:
        """(G, C) -> (G, 1, W·C), factors of a line."""
        return factor.repeat(1, self.x.shape[3])[:, None]


class LargeGroupGroupNormOps(ChannelsLastGroupNormOps):
    """Channels-last with groups so large that a call of BatchNorm's kernels for each one pays."""

    def moments(self, num_groups: int) -> tuple[Tensor, Tensor]:
        each = [
            aten.batch_norm_update_stats(chunk, None, None, 0.0) for chunk in torch.split(self.x, self.size)
        ]
        mean, variance = (torch.stack(m).view(self.groups, num_groups, -1) for m in zip(*each, strict=True))
        return _pool(mean, variance, 2)

    def sums(self, dy: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        variance, ones = rstd.square().reciprocal_(), torch.ones_like(mean[0])
        each = [
            aten.native_batch_norm_backward(d, x, ones, m, v, None, None, False, 0.0, [False, True, True])
            for d, x, m, v in zip(
                torch.split(dy, self.size),
                torch.split(self.x, self.size),
                mean.unbind(),
                variance.unbind(),
                strict=True,
            )
        ]
        return torch.stack([e[2] for e in each]), torch.stack([e[1] for e in each])


def group_norm_ops(x: Tensor, size: int) -> GroupNormOps:
    """The fastest form for this activation."""
    if torch.compiler.is_compiling():
        return GroupNormOps(x, size)
    if cpu.supports_grouped(x) and cpu.load_library() is not None:
        return CompiledGroupNormOps(x, size)
    own_kernels = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if own_kernels and math.prod(x.shape[2:]) > 1:
        if x.is_contiguous():
            return RowGroupNormOps(x, size)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            large = x[:size].numel() >= LARGE_GROUP
            return LargeGroupGroupNormOps(x, size) if large else ChannelsLastGroupNormOps(x, size)
    return GroupNormOps(x, size)


def _pool(mean: Tensor, variance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Moments of equally large parts, taken together along a dimension."""
    if mean.shape[dim] == 1:
        return mean.squeeze(dim), variance.squeeze(dim)
    pooled = mean.mean(dim, keepdim=True)
    spread = variance + (mean - pooled).square_()
    return pooled.squeeze(dim), spread.mean(dim)


def _in_memory(*factors: Tensor) -> tuple[Tensor, ...]:
    """The same (G, C) factors. Inductor writes a concatenation to memory on a CPU.

    What a factor is made of it would compute anew for every value of the
    activation, in index arithmetic that does not vectorise: four times as slow.
    """
    return torch.stack(factors).unbind()


def _repeat(tensor: Tensor, repeats: int) -> Tensor:
    """(G, K) -> (G, C), a group's value for each of its channels."""
    if repeats == 1:
        return tensor
    # In one piece, where a view would do for a single group: torch's kernels take that for granted.
    return tensor[..., None].expand(-1, -1, repeats).reshape(len(tensor), -1).contiguous()


def _add_up(tensor: Tensor, repeats: int) -> Tensor:
    """(G, C) -> (G, K), the sum over each group's channels."""
    return tensor if repeats == 1 else tensor.view(len(tensor), -1, repeats).sum(2)
