"""Grouped normalisation with a position's channels side by side: compiled, and without a compiler.

The reference is float64 NumPy for outputs and moments. For gradients it is the
float64 path, which test_ghost.py and test_batch_group.py hold against finite
differences.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from alphatune.kernels import cpu as cpu_kernels
from alphatune.kernels import grouped as grouped_kernels
from alphatune.kernels.grouped import (
    ChannelsLastGroupNormOps,
    CompiledGroupNormOps,
    GroupNormOps,
    LargeGroupGroupNormOps,
    RowGroupNormOps,
    group_norm_ops,
)
from alphatune.norms.grouping import batch_group_norm, batch_moments

compiled = pytest.mark.skipif(cpu_kernels.find_compiler() is None, reason="no C++ compiler")
CASES = [  # shape, groups of channels (None: every channel), examples of a group
    ((8, 6, 5, 7), None, 2),
    ((8, 6, 5, 7), 2, 4),
    ((7, 6, 5, 7), 3, 3),  # a ragged last group
    ((5, 6, 5, 7), None, 4),  # which is one example
    ((1, 6, 5, 7), 2, 2),  # batch 1
    ((9, 6, 1, 1), None, 3),  # one position
    ((9, 6), 2, 4),
    ((6, 1, 9, 9), None, 2),
    ((6, 3, 9, 9), None, 2),
    ((6, 67, 9, 9), None, 2),  # a line of one row, whose length is no multiple of a vector
    ((6, 300, 3, 3), 4, 2),
    ((4, 6, 3, 4, 5), 3, 2),
    ((3, 3, 97, 101), None, 2),  # several blocks, the last one ragged, and fewer groups than threads
    ((2, 67, 40, 41), 1, 2),
    ((5, 130, 20, 21), 13, 1),
    ((4, 32, 64, 64), 8, 2),  # without a compiler: BatchNorm's kernels
    ((4, 32, 64, 64), None, 2),
]


@pytest.fixture(params=[pytest.param("compiled", marks=compiled), "no compiler"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no compiler":
        monkeypatch.setattr(cpu_kernels, "load_library", lambda: None)
    return request.param


def side_by_side(x: Tensor) -> Tensor:
    """The same values with each position's channels side by side in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def everything(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, *sizes: int) -> dict[str, Tensor]:
    inputs = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y, moments = batch_group_norm(*inputs, *sizes, 1e-5)
    assert moments is not None
    dx, dweight, dbias = torch.autograd.grad(y, inputs, dy)
    names = ("y", "mean", "variance", "dx", "dweight", "dbias")
    return dict(zip(names, (y.detach(), *moments.average(x.shape[1]), dx, dweight, dbias), strict=True))


def tensors(shape: tuple[int, ...], scale: float = 2.0, offset: float = 1.0) -> tuple[Tensor, ...]:
    channels = shape[1]
    spread = (channels,) + (1,) * (len(shape) - 2)
    x = side_by_side(torch.randn(shape) * scale + offset * torch.randn(spread).sign())
    return x, torch.randn(channels), torch.randn(channels), side_by_side(torch.randn(shape))


def close(found: Tensor, expected: Tensor | np.ndarray, tolerance: float) -> None:
    """Within a tolerance in units of the largest value, or of 1."""
    wide = torch.as_tensor(expected).double()
    unit = wide.abs().max().clamp_min(1)
    torch.testing.assert_close(found.double() / unit, wide / unit, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("shape", "num_groups", "size"), CASES)
def test_equals_the_reference(form: str, shape: tuple[int, ...], num_groups: int | None, size: int) -> None:
    x, weight, bias, dy = tensors(shape)
    sizes = (num_groups or shape[1], size)
    found = everything(x, weight, bias, dy, *sizes)
    y, mean, variance = reference.batch_group_norm(
        *(t.double().numpy() for t in (x, weight, bias)), *sizes, 1e-5
    )
    assert mean is not None
    assert variance is not None
    for name, expected in (("y", y), ("mean", mean), ("variance", variance)):
        close(found[name], expected, 1e-5)
    exact = everything(*(t.double() for t in (x, weight, bias, dy)), *sizes)
    for name in ("dx", "dweight", "dbias"):
        close(found[name], exact[name], 2e-5)
    assert found["y"].stride() == found["dx"].stride() == x.stride()


@compiled
@pytest.mark.parametrize(("shape", "num_groups", "size"), [((4, 3, 2, 2), 3, 2), ((3, 4, 1, 2), 2, 3)])
def test_compiled_gradient_is_that_of_the_reference(
    shape: tuple[int, ...], num_groups: int, size: int
) -> None:
    x, weight, bias, dy = tensors(shape)
    dx = everything(x, weight, bias, dy, num_groups, size)["dx"]

    def objective(at: np.ndarray) -> float:
        arrays = (t.double().numpy() for t in (weight, bias))
        y = reference.batch_group_norm(at, *arrays, num_groups, size, 1e-5)[0]
        return float((y * dy.double().numpy()).sum())

    close(dx, reference.derivative(objective, x.double().numpy()), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(4, 6, 9, 9), (4, 1, 9, 9), (4, 32, 64, 64)])
def test_a_single_group(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> None:
    """Its one mean goes to all channels, as a vector in one piece and not as a view of stride 0."""
    x, weight, bias, dy = (t.to(dtype) for t in tensors(shape))
    found = everything(x if channels_last else x.contiguous(), weight, bias, dy, 1, 4)
    z = x.double().requires_grad_()
    image = z.transpose(0, 1).reshape(1, shape[1], -1)
    y = torch.nn.functional.group_norm(image, 1, weight.double(), bias.double())
    y = y.view(shape[1], 4, *shape[2:]).transpose(0, 1)
    close(found["y"], y.detach(), 1e-5)
    close(found["dx"], torch.autograd.grad(y, z, dy.double())[0], 1e-5)


def test_form_by_format(form: str) -> None:
    channels_last = side_by_side(torch.randn(4, 6, 5, 5))
    assert type(group_norm_ops(torch.randn(4, 6, 5, 5), 2)) is RowGroupNormOps
    assert type(group_norm_ops(channels_last[:, ::2], 2)) is GroupNormOps  # gaps
    assert type(group_norm_ops(channels_last.bfloat16(), 2)) is GroupNormOps
    assert type(group_norm_ops(channels_last.double(), 2)) is ChannelsLastGroupNormOps
    fast = form == "compiled"
    assert type(group_norm_ops(channels_last, 2)) is (
        CompiledGroupNormOps if fast else ChannelsLastGroupNormOps
    )
    large = side_by_side(torch.randn(2, 32, 64, 64))
    assert type(group_norm_ops(large, 1)) is (CompiledGroupNormOps if fast else LargeGroupGroupNormOps)
    assert type(group_norm_ops(torch.randn(4, 6), 2)) is (CompiledGroupNormOps if fast else GroupNormOps)


@pytest.mark.parametrize("offset", [1e3, 1e4])
@pytest.mark.parametrize("shape", [(4, 6, 9, 9), (2, 3, 97, 101), (4, 130, 12, 12)])
def test_large_means_cost_no_more_than_their_own_rounding(
    form: str, shape: tuple[int, ...], offset: float
) -> None:
    x, weight, bias, dy = tensors(shape, scale=1.0, offset=offset)
    found = everything(x, weight, bias, dy, shape[1], 2)
    exact = everything(*(t.double() for t in (x, weight, bias, dy)), shape[1], 2)
    ulp = offset * 2**-23
    tolerance = {"compiled": 4, "no compiler": 30}[form] * ulp
    for name in ("y", "dx", "dweight", "dbias"):
        close(found[name], exact[name], tolerance)
    close(found["variance"], exact["variance"], 1e-5 if form == "compiled" else tolerance)


@compiled
def test_a_border_far_from_the_mean() -> None:
    """Padding: the rows that sums are shifted by have nothing to do with the rest."""
    x, weight, bias, dy = tensors((4, 16, 40, 40), scale=1.0, offset=0)
    x += 1000
    x[:, :, :2] = 0
    x = side_by_side(x)
    found = everything(x, weight, bias, dy, 16, 2)
    exact = everything(*(t.double() for t in (x, weight, bias, dy)), 16, 2)
    for name in found:
        close(found[name], exact[name], 1e-5)


@compiled
def test_constant_channels() -> None:
    x = side_by_side(torch.full((4, 67, 20, 30), 1234.567))
    found = everything(x, torch.ones(67), torch.arange(67.0), torch.randn_like(x), 67, 2)
    assert (found["variance"] == 0).all()
    assert torch.equal(found["y"], side_by_side(torch.arange(67.0).view(-1, 1, 1).expand(4, 67, 20, 30)))
    assert torch.isfinite(found["dx"]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(6, 3, 5, 5), (4, 3, 97, 101)])
def test_nan_and_infinity_stay_in_their_group(form: str, bad: float, shape: tuple[int, ...]) -> None:
    x, weight, bias, dy = tensors(shape)
    clean = everything(x, weight, bias, dy, 3, 2)
    x[1, 2, 4, 3] = bad
    spoilt = everything(x, weight, bias, dy, 3, 2)
    assert spoilt["y"][:2, 2].isnan().all()
    assert spoilt["dx"][:2, 2].isnan().all()
    assert spoilt["mean"].isfinite().tolist() == [True, True, False]
    assert spoilt["variance"].isnan().tolist() == [False, False, True]
    for name in ("y", "dx"):
        assert torch.equal(spoilt[name][2:], clean[name][2:])
        assert torch.equal(spoilt[name][:, :2], clean[name][:, :2])


@compiled
@pytest.mark.parametrize(("shape", "num_groups", "size"), CASES)
def test_every_bit_is_the_same_with_any_number_of_threads(
    shape: tuple[int, ...], num_groups: int | None, size: int
) -> None:
    arguments = *tensors(shape), num_groups or shape[1], size
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(everything(*arguments))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, value in found[0].items():
            assert value.equal(other[name]), name


def test_without_affine_and_with_frozen_parts(form: str) -> None:
    x, weight, bias, dy = tensors((6, 6, 5, 5))
    exact = everything(*(t.double() for t in (x, torch.ones(6), torch.zeros(6), dy)), 6, 2)
    z = x.clone().requires_grad_()
    y, _ = batch_group_norm(z, None, None, 6, 2, 1e-5)
    close(y, exact["y"], 1e-5)
    close(torch.autograd.grad(y, z, dy)[0], exact["dx"], 1e-5)
    weight.requires_grad_()
    y, _ = batch_group_norm(x, weight, bias, 6, 2, 1e-5)  # x needs no gradient, as after a frozen layer
    close(torch.autograd.grad(y, weight, dy)[0], exact["dweight"], 1e-5)


def test_gradients_in_another_format(form: str) -> None:
    x, weight, bias, dy = tensors((6, 6, 5, 4))
    expected = everything(x, weight, bias, dy, 3, 2)
    for other in (dy.contiguous(), torch.cat([dy, dy], 1)[:, :6], dy.mT.contiguous().mT):
        found = everything(x, weight, bias, other, 3, 2)
        for name, value in expected.items():
            close(found[name], value, 1e-6)
    summed = everything(x, weight, bias, torch.ones(()).expand(x.shape), 6, 2)  # as sum() sends back
    close(summed["dx"], torch.zeros_like(x), 1e-5)


def test_layers_in_half_precision_take_float_activations(form: str) -> None:
    x, weight, bias, dy = tensors((6, 6, 5, 5))
    found = everything(x, weight.bfloat16(), bias.bfloat16(), dy, 6, 2)
    assert found["dweight"].dtype == found["dbias"].dtype == torch.bfloat16
    expected = everything(x, weight.bfloat16().float(), bias.bfloat16().float(), dy, 6, 2)
    close(found["y"], expected["y"], 1e-5)
    close(found["dweight"], expected["dweight"], 2**-8)


@pytest.mark.parametrize("shape", [(5, 67, 9, 9), (2, 3, 97, 101), (9, 4)])
def test_moments_of_a_batch(form: str, shape: tuple[int, ...]) -> None:
    x = tensors(shape)[0]
    mean, variance = batch_moments(x)
    axes = (0, *range(2, x.ndim))
    close(mean, x.double().numpy().mean(axes), 1e-6)
    close(variance, x.double().numpy().var(axes), 1e-5)


@compiled
def test_views_with_an_offset() -> None:
    """Slices of a batch, as ragged batches make them, need not start where the memory does."""
    x, weight, bias, dy = tensors((9, 5, 7, 7))
    found = everything(x[3:], weight, bias, dy[3:], 5, 2)
    expected = everything(x[3:].clone(), weight, bias, dy[3:].clone(), 5, 2)
    assert all(found[name].equal(expected[name]) for name in found)


def test_plain_operations_pool_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form for other devices and for torch.compile."""
    monkeypatch.setattr(grouped_kernels, "group_norm_ops", GroupNormOps)
    for shape, num_groups, size in CASES:
        if math.prod(shape) > 2**15:
            continue
        x, weight, bias, dy = tensors(shape)
        sizes = (num_groups or shape[1], size)
        found = everything(x, weight, bias, dy, *sizes)
        exact = everything(*(t.double() for t in (x, weight, bias, dy)), *sizes)
        for name, value in exact.items():
            close(found[name], value, 2e-5)
