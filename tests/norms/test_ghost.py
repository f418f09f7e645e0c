"""Ghost BatchNorm: statistics over consecutive groups, one step of the averages, BatchNorm's inference."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn

from alphatune import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from alphatune.core.errors import ConfigurationError
from alphatune.norms.ghost import GhostBatchNormAct2d
from alphatune.norms.grouping import batch_group_norm

BY_DIMENSIONS = {2: GhostBatchNorm1d, 3: GhostBatchNorm1d, 4: GhostBatchNorm2d, 5: GhostBatchNorm3d}
SHAPES = [(8, 4), (8, 4, 9), (8, 4, 3, 5), (8, 4, 2, 3, 2), (7, 3, 4, 4), (5, 6, 1, 1), (1, 4, 2, 2)]


def randomise_(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor, low, high in (
            (layer.running_mean, -1, 1), (layer.running_var, 0.3, 2), (layer.weight, -2, 2), (layer.bias, -1, 1),
        ):  # fmt: skip
            if tensor is not None:
                tensor.uniform_(low, high)
    return layer


def as_numpy(*tensors: torch.Tensor | None) -> list[np.ndarray | None]:
    return [None if t is None else t.detach().double().numpy().copy() for t in tensors]


def check_step(layer: nn.Module, x: torch.Tensor, num_groups: int, size: int, tolerance: float) -> None:
    """Output and moving averages of one training step against the reference."""
    weight, bias, mean, variance = as_numpy(layer.weight, layer.bias, layer.running_mean, layer.running_var)
    y = layer(x)
    values = x.detach().double().numpy()
    expected, step_mean, step_var = reference.batch_group_norm(
        values, weight, bias, num_groups, size, layer.eps, mean, variance
    )
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)
    if mean is not None and layer.averages == "paper":
        mean, variance = reference.averages_of_raw_moments([values], layer.momentum, mean, variance)
    elif mean is not None and step_mean is not None:
        f = layer.momentum
        mean, variance = (1 - f) * mean + f * step_mean, (1 - f) * variance + f * step_var
    if mean is not None:
        for buffer, value in ((layer.running_mean, mean), (layer.running_var, variance)):
            np.testing.assert_allclose(buffer.double().numpy(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("averages", ["paper", "group"])
def test_equals_the_reference(shape: tuple[int, ...], size: int, dtype: torch.dtype, averages: str) -> None:
    kind = BY_DIMENSIONS[len(shape)]
    layer = randomise_(kind(shape[1], size, eps=1e-3, momentum=0.3, dtype=dtype, averages=averages))
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    check_step(layer, x, shape[1], size, 2e-5 if dtype == torch.float32 else 1e-10)


@given(
    examples=st.integers(1, 13),
    size=st.integers(1, 14),
    channels=st.integers(1, 4),
    positions=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels_last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_ragged_batches(
    examples: int, size: int, channels: int, positions: tuple[int, int], channels_last: bool
) -> None:
    layer = randomise_(GhostBatchNorm2d(channels, size, dtype=torch.float64))
    x = torch.randn(examples, channels, *positions, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    check_step(layer, x, channels, size, 1e-9)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 2, 2, 2), (3, 2, 1, 1)])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients(
    shape: tuple[int, ...], size: int, affine: bool, memory_format: torch.memory_format
) -> None:
    layer = randomise_(GhostBatchNorm2d(shape[1], size, eps=1e-3, affine=affine, dtype=torch.float64))
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()
    inputs = [torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)]
    if affine:
        inputs += [layer.weight.detach().clone(), layer.bias.detach().clone()]
    for tensor in inputs:
        tensor.requires_grad_()

    def forward(x: torch.Tensor, *affine: torch.Tensor) -> torch.Tensor:
        weight, bias = affine or (None, None)
        return batch_group_norm(x, weight, bias, shape[1], size, 1e-3, mean, variance)[0]

    assert torch.autograd.gradcheck(forward, inputs)
    # and against the reference, which knows nothing of autograd
    dy = torch.randn(shape, dtype=torch.float64)
    (dx,) = torch.autograd.grad(layer(inputs[0]), inputs[:1], dy)
    weight, bias = as_numpy(layer.weight, layer.bias)

    def objective(at: np.ndarray) -> float:
        out = reference.batch_group_norm(at, weight, bias, shape[1], size, 1e-3, *as_numpy(mean, variance))[0]
        return float((out * dy.numpy()).sum())

    np.testing.assert_allclose(dx.numpy(), reference.derivative(objective, as_numpy(inputs[0])[0]), atol=1e-6)


def test_gradients_of_a_layer_in_a_model_are_finite_and_reach_every_parameter() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), GhostBatchNorm2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    model(torch.randn(8, 3, 6, 6)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_frozen_weight_or_input_costs_no_gradient() -> None:
    layer = GhostBatchNorm2d(4, 2)
    layer.weight.requires_grad_(False)
    layer(torch.randn(6, 4, 3, 3)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    layer.requires_grad_(False)
    assert not layer(torch.randn(6, 4, 3, 3)).requires_grad
    x = torch.randn(6, 4, 3, 3, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("mode", ["batch fits", "eval"])
@pytest.mark.parametrize("act", [False, True])
def test_is_batch_norm_bit_for_bit(mode: str, act: bool) -> None:
    ghost = (GhostBatchNormAct2d if act else GhostBatchNorm2d)(6, 4, averages="group")
    stock = (BatchNormAct2d if act else nn.BatchNorm2d)(6)
    randomise_(ghost)
    stock.load_state_dict(ghost.state_dict(), strict=True)
    x = torch.randn(4 if mode == "batch fits" else 9, 6, 5, 7)
    if mode == "eval":
        ghost.eval()
        stock.eval()
    assert torch.equal(ghost(x), stock(x))
    for key, value in stock.state_dict().items():
        assert torch.equal(ghost.state_dict()[key], value), key


def test_groups_are_consecutive_examples() -> None:
    """Two domains in turn: examples 0-3 and 4-7 differ by far more than within."""
    x = torch.cat([torch.randn(4, 2, 5, 5), torch.randn(4, 2, 5, 5) * 30 + 100])
    y = GhostBatchNorm2d(2, 4)(x)
    for half in (y[:4], y[4:]):
        torch.testing.assert_close(half.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(half.var((0, 2, 3), correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_averages_move_once_a_step() -> None:
    """Not once a group: 100 groups at momentum 0.1 would leave nothing of the start."""
    layer = GhostBatchNorm2d(2, 1)
    x = torch.randn(100, 2, 4, 4) + 7
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean((0, 2, 3)))
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1])
def test_momentum(momentum: float | None) -> None:
    layer = GhostBatchNorm2d(3, 4, momentum=momentum, averages="group")
    means, variances = [], []
    expected_mean, expected_var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = torch.randn(10, 3, 4, 4) * 2 + 1
        layer(x)
        _, mean, variance = reference.batch_group_norm(x.numpy(), None, None, 3, 4, 1e-5)
        means.append(mean)
        variances.append(variance)
        f = 1 / len(means) if momentum is None else momentum
        expected_mean, expected_var = (
            (1 - f) * expected_mean + f * mean,
            (1 - f) * expected_var + f * variance,
        )
    np.testing.assert_allclose(layer.running_mean.numpy(), expected_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), expected_var, rtol=1e-5)
    if momentum is None:
        np.testing.assert_allclose(layer.running_mean.numpy(), np.mean(means, 0), rtol=1e-5)
    if momentum == 0.0:
        assert torch.equal(layer.running_mean, torch.zeros(3))
    assert layer.num_batches_tracked == 3


def test_a_lone_example_without_a_variance() -> None:
    """100 examples of one position in groups of 32: the last four are a group; 97: the last is alone."""
    for examples in (100, 97):
        layer = randomise_(GhostBatchNorm2d(5, 32))
        check_step(layer, torch.randn(examples, 5, 1, 1) * 3, 5, 32, 2e-5)
    layer = randomise_(GhostBatchNorm1d(5, 32))
    x = torch.randn(97, 5, requires_grad=True)
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()
    y = layer(x)
    (dx,) = torch.autograd.grad(y[96].sum(), x)  # no gradient through statistics: a mere scale
    torch.testing.assert_close(dx[96], layer.weight * torch.rsqrt(variance + layer.eps))
    torch.testing.assert_close(y[96], dx[96] * (x[96] - mean) + layer.bias)


@pytest.mark.parametrize("size", [1, 32])
def test_a_batch_of_one_value_neither_crashes_nor_moves_the_averages(size: int) -> None:
    layer = randomise_(GhostBatchNorm2d(5, size, averages="group"))
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(1, 5, 1, 1, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    torch.testing.assert_close(y, copy.deepcopy(layer).eval()(x))
    assert torch.isfinite(layer.weight.grad).all()


def test_without_moving_averages() -> None:
    layer = randomise_(GhostBatchNorm2d(4, 2, track_running_stats=False))
    check_step(layer, torch.randn(7, 4, 1, 1), 4, 2, 2e-5)
    lone = layer(torch.randn(1, 4, 1, 1))
    torch.testing.assert_close(lone.flatten(), layer.bias)
    assert layer.state_dict().keys() == {"weight", "bias"}
    stock = nn.BatchNorm2d(4, track_running_stats=False).eval()
    stock.load_state_dict(layer.state_dict())
    x = torch.randn(6, 4, 3, 3)
    assert torch.equal(layer.eval()(x), stock(x))


def test_tracking_switched_off_later() -> None:
    """As fine-tuning recipes do: the batch still normalises, the averages stay."""
    layer = randomise_(GhostBatchNorm2d(4, 2))
    layer.track_running_stats = False
    before = layer.running_mean.clone()
    x = torch.randn(6, 4, 3, 3)
    expected = batch_group_norm(x, layer.weight, layer.bias, 4, 2, layer.eps)[0]
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [2, 4, 3])
def test_memory_format_is_kept(memory_format: torch.memory_format, size: int) -> None:
    layer = GhostBatchNorm2d(6, size)
    x = torch.randn(8, 6, 5, 5).contiguous(memory_format=memory_format).requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert y.is_contiguous(memory_format=memory_format)
    assert dx.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [2, 4, 3])
def test_odd_strides(channels_last: bool, size: int) -> None:
    """Slices and expanded gradients, as surrounding layers produce them."""
    x = torch.randn(8, 12, 7, 5)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x = x[:, ::2, 1:, :]
    check_step(randomise_(GhostBatchNorm2d(6, size)), x, 6, size, 2e-5)
    layer = GhostBatchNorm2d(6, size)
    for scale in (1.0, torch.ones(8, 6, 6, 5)):  # sum() sends back an expanded gradient
        z = x.clone().requires_grad_()
        (layer(z) * scale).sum().backward()
        torch.testing.assert_close(z.grad, torch.zeros_like(z), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [4, 3])
def test_large_offset_keeps_its_digits(channels_last: bool, size: int) -> None:
    x = torch.randn(8, 6, 9, 9) + 1000
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer = GhostBatchNorm2d(6, size, averages="group")
    x = x.requires_grad_()
    y = layer(x)
    expected, mean, variance = reference.batch_group_norm(as_numpy(x)[0], None, None, 6, size, 1e-5)
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-3)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * variance, rtol=1e-5)
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean, rtol=1e-6)
    dy = torch.randn_like(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    exact = x.detach().double().requires_grad_()
    (expected_dx,) = torch.autograd.grad(
        batch_group_norm(exact, None, None, 6, size, 1e-5)[0], exact, dy.double()
    )
    torch.testing.assert_close(dx.double(), expected_dx, atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [4, 3])
def test_half_inputs_have_float_statistics(dtype: torch.dtype, channels_last: bool, size: int) -> None:
    """Values of 300 in float16: their squares overflow, and 8 bits of mantissa lose a mean."""
    layer = GhostBatchNorm2d(6, size, averages="group")
    x = (torch.randn(8, 6, 9, 9) * 30 + 300).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = layer(x)
    expected, mean, variance = reference.batch_group_norm(as_numpy(x)[0], None, None, 6, size, 1e-5)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.detach().float().numpy(), expected, atol=2e-2, rtol=1e-2)
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * variance, rtol=1e-4)
    dy = torch.randn(x.shape, dtype=dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx.dtype == dtype
    exact = x.detach().double().requires_grad_()
    (expected_dx,) = torch.autograd.grad(
        batch_group_norm(exact, None, None, 6, size, 1e-5)[0], exact, dy.double()
    )
    torch.testing.assert_close(dx.double(), expected_dx, atol=1e-3, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), GhostBatchNorm2d(6, 4), nn.ReLU())
    x = torch.randn(8, 3, 8, 8)
    expected = copy.deepcopy(model)(x)
    with torch.autocast("cpu", dtype):
        y = model(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    y.float().square().sum().backward()
    assert model[1].weight.grad.dtype == torch.float32


def test_a_half_precision_layer() -> None:
    layer = GhostBatchNorm2d(6, 4).bfloat16()
    y = layer(torch.randn(8, 6, 4, 4).bfloat16())
    y.sum().backward()
    assert y.dtype == layer.weight.grad.dtype == layer.running_var.dtype == torch.bfloat16


def test_activation_and_drop_are_kept() -> None:
    layer = GhostBatchNormAct2d(6, 2, act_layer=nn.ReLU, drop_layer=nn.Dropout)
    plain = GhostBatchNorm2d(6, 2)
    x = torch.randn(4, 6, 3, 3)
    layer.drop.eval()
    assert torch.equal(layer(x), plain(x).relu())
    layer.drop.train()
    assert int((layer(x) == 0).sum()) > int((plain(x).relu() == 0).sum())


def test_in_place_activation_after_it() -> None:
    """y belongs to whoever comes next: ReLU(inplace=True) must not spoil the backward pass."""
    x = torch.randn(8, 4, 3, 3, requires_grad=True)
    weight = torch.randn(8, 4, 3, 3)
    grads = [
        torch.autograd.grad((nn.ReLU(inplace)(GhostBatchNorm2d(4, 2)(x)) * weight).sum(), x)[0]
        for inplace in (False, True)
    ]
    assert torch.equal(*grads)


def test_input_is_not_written_to() -> None:
    x = torch.randn(7, 4, 3, 3)
    before = x.clone()
    GhostBatchNorm2d(4, 2)(x)
    assert torch.equal(x, before)


def test_empty_batch() -> None:
    assert GhostBatchNorm2d(4, 2).eval()(torch.zeros(0, 4, 3, 3)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_sizes_that_cannot_be_are_refused(size: object) -> None:
    with pytest.raises(ConfigurationError, match="ghost_batch_size"):
        GhostBatchNorm2d(4, size)


def test_wrong_dimensions_are_refused_as_by_the_stock_layer() -> None:
    with pytest.raises(ValueError, match="4D"):
        GhostBatchNorm2d(4, 1)(torch.randn(2, 4, 4))


def test_repr_and_state_dict() -> None:
    layer = GhostBatchNorm2d(4, 16)
    assert "ghost_batch_size=16" in repr(layer)
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(4).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_layer_is_the_same(channels_last: bool) -> None:
    torch._dynamo.reset()
    layer = randomise_(GhostBatchNorm2d(6, 4))
    other = copy.deepcopy(layer)
    x = torch.randn(8, 6, 5, 5)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    dy = torch.randn(8, 6, 5, 5)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(a).backward(dy)
    torch.compile(other, fullgraph=True)(b).backward(dy)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.running_mean, other.running_mean)
    torch.testing.assert_close(layer.running_var, other.running_var)
