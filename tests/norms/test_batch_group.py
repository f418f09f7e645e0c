"""Batch-group normalisation: its two limits, its groups, its moving averages and its inference."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ghost import as_numpy, check_step, randomise_
from torch import nn

from alphatune import BatchGroupNorm2d, GhostBatchNorm2d
from alphatune.core.errors import ConfigurationError
from alphatune.norms.batch_group import BatchGroupNorm1d, BatchGroupNorm3d, BatchGroupNormAct2d
from alphatune.norms.grouping import batch_group_norm

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("num_groups", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(8, 6), (8, 6, 5), (8, 6, 3, 4), (8, 6, 2, 3, 2), (7, 6, 1, 1), (1, 6, 2, 2)]
)
def test_equals_the_reference(num_groups: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    kind = {2: BatchGroupNorm1d, 3: BatchGroupNorm1d, 4: BatchGroupNorm2d, 5: BatchGroupNorm3d}[len(shape)]
    layer = randomise_(kind(num_groups, 6, size, eps=1e-3, momentum=0.3, dtype=dtype))
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    check_step(layer, x, num_groups, size, 2e-5 if dtype == torch.float32 else 1e-10)


@given(
    examples=st.integers(1, 9),
    size=st.integers(1, 10),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    side=st.integers(1, 3),
    channels_last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_ragged_batches(
    examples: int, size: int, groups: int, per_group: int, side: int, channels_last: bool
) -> None:
    layer = randomise_(BatchGroupNorm2d(groups, groups * per_group, size, dtype=torch.float64))
    x = torch.randn(examples, groups * per_group, side, 2, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    check_step(layer, x, groups, size, 1e-9)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_one_example_per_group_is_group_norm(memory_format: torch.memory_format) -> None:
    layer = randomise_(BatchGroupNorm2d(3, 12, 1, eps=1e-3))
    group_norm = nn.GroupNorm(3, 12, eps=1e-3)
    group_norm.load_state_dict({k: v for k, v in layer.state_dict().items() if k in ("weight", "bias")})
    x = torch.randn(5, 12, 4, 6).contiguous(memory_format=memory_format).requires_grad_()
    dy = torch.randn(5, 12, 4, 6)
    ours = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], dy)
    theirs = torch.autograd.grad(group_norm(x), [x, group_norm.weight, group_norm.bias], dy)
    torch.testing.assert_close(layer(x), group_norm(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [3, 4, 20])
def test_one_channel_per_group_is_ghost(memory_format: torch.memory_format, size: int) -> None:
    layer = randomise_(BatchGroupNorm2d(6, 6, size))
    ghost = GhostBatchNorm2d(6, size)
    ghost.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(8, 6, 4, 4).contiguous(memory_format=memory_format)
    torch.testing.assert_close(layer(x), ghost(x), rtol=1e-4, atol=1e-5)
    for key, value in ghost.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)
    torch.testing.assert_close(layer.eval()(x), ghost.eval()(x))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("shape", "size"), [((3, 4, 2, 2), 2), ((3, 4, 1, 1), 1), ((2, 4, 1, 2), 1)])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients(
    shape: tuple[int, ...], size: int, affine: bool, memory_format: torch.memory_format
) -> None:
    layer = randomise_(BatchGroupNorm2d(2, 4, size, eps=1e-3, affine=affine, dtype=torch.float64))
    inputs = [torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)]
    if affine:
        inputs += [layer.weight.detach().clone(), layer.bias.detach().clone()]
    for tensor in inputs:
        tensor.requires_grad_()

    def forward(x: torch.Tensor, *affine: torch.Tensor) -> torch.Tensor:
        weight, bias = affine or (None, None)
        return batch_group_norm(x, weight, bias, 2, size, 1e-3)[0]

    assert torch.autograd.gradcheck(forward, inputs)
    dy = torch.randn(shape, dtype=torch.float64)
    (dx,) = torch.autograd.grad(layer(inputs[0]), inputs[:1], dy)
    weight, bias = as_numpy(layer.weight, layer.bias)

    def objective(at: np.ndarray) -> float:
        return float((reference.batch_group_norm(at, weight, bias, 2, size, 1e-3)[0] * dy.numpy()).sum())

    np.testing.assert_allclose(dx.numpy(), reference.derivative(objective, as_numpy(inputs[0])[0]), atol=1e-6)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_float32_gradients_and_large_offsets(memory_format: torch.memory_format, offset: float) -> None:
    x = (torch.randn(6, 8, 9, 9) + offset).contiguous(memory_format=memory_format)
    weight, bias, dy = torch.randn(8), torch.randn(8), torch.randn(6, 8, 9, 9)
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        y, moments = batch_group_norm(*inputs, 2, 3, 1e-5)
        results.append([y, *moments.average(8), *torch.autograd.grad(y, inputs, dy.to(dtype))])
    tolerance = 1e-4 if offset == 0 else 5e-3
    for single, double in zip(*results, strict=True):
        scale = double.abs().max().clamp_min(1)
        torch.testing.assert_close(single.double() / scale, double / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_memory_format_is_kept(memory_format: torch.memory_format) -> None:
    x = torch.randn(7, 8, 5, 5).contiguous(memory_format=memory_format).requires_grad_()
    layer = BatchGroupNorm2d(4, 8, 2)
    y = layer(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert y.is_contiguous(memory_format=memory_format)
    assert dx.is_contiguous(memory_format=memory_format)
    assert layer.eval()(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_half_inputs_have_float_statistics(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = (torch.randn(6, 8, 9, 9) * 30 + 300).to(dtype).contiguous(memory_format=memory_format)
    layer = BatchGroupNorm2d(4, 8, 2, averages="group")
    y = layer(x)
    expected, mean, variance = reference.batch_group_norm(as_numpy(x)[0], None, None, 4, 2, 1e-5)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.detach().float().numpy(), expected, atol=2e-2, rtol=1e-2)
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * variance, rtol=1e-4)


def test_autocast() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), BatchGroupNorm2d(3, 6, 2), nn.ReLU())
    x = torch.randn(8, 3, 8, 8)
    expected = copy.deepcopy(model)(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.25])
def test_moving_averages_hold_the_groups_moments(momentum: float | None) -> None:
    layer = BatchGroupNorm2d(2, 6, 3, momentum=momentum, averages="group")
    mean, variance = np.zeros(6), np.ones(6)
    for step in range(1, 4):
        x = torch.randn(7, 6, 3, 3) * torch.rand(6, 1, 1) * 4 + torch.randn(6, 1, 1)
        layer(x)
        _, step_mean, step_var = reference.batch_group_norm(x.numpy(), None, None, 2, 3, 1e-5)
        f = 1 / step if momentum is None else momentum
        mean, variance = (1 - f) * mean + f * step_mean, (1 - f) * variance + f * step_var
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-5)
    assert layer.num_batches_tracked == 3
    for buffer in (layer.running_mean, layer.running_var):
        assert torch.equal(buffer, buffer.view(2, 3)[:, :1].expand(2, 3).flatten())


def test_trained_state_evaluates_the_same_in_stock_batch_norm() -> None:
    layer = BatchGroupNorm2d(2, 6, 3, averages="group")
    for _ in range(3):
        layer(torch.randn(7, 6, 3, 3) * 3 + torch.randn(6, 1, 1))
    stock = nn.BatchNorm2d(6).eval()
    stock.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(4, 6, 5, 5)
    assert torch.equal(layer.eval()(x), stock(x))


def test_inference_pools_a_batch_norm_checkpoint() -> None:
    """Per-channel averages of a BatchNorm model: the group's moments are those of its mixture."""
    layer = randomise_(BatchGroupNorm2d(2, 6, 4)).eval()
    x = torch.randn(3, 6, 4, 4)
    m, v = layer.running_mean.view(2, 3).double(), layer.running_var.view(2, 3).double()
    mean = m.mean(1)
    variance = (v + m**2).mean(1) - mean**2
    expected = F.batch_norm(
        x.double(),
        mean.repeat_interleave(3),
        variance.repeat_interleave(3),
        layer.weight.double(),
        layer.bias.double(),
        eps=layer.eps,
    )
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_inference_does_not_depend_on_companions() -> None:
    layer = randomise_(BatchGroupNorm2d(2, 6, 4)).eval()
    x = torch.randn(5, 6, 4, 4)
    torch.testing.assert_close(layer(x[2:3]), layer(x)[2:3])


def test_without_moving_averages_the_test_batch_is_grouped() -> None:
    layer = randomise_(BatchGroupNorm2d(2, 6, 2, track_running_stats=False))
    x = torch.randn(5, 6, 4, 4)
    assert torch.equal(layer.eval()(x), copy.deepcopy(layer).train()(x))
    check_step(layer.train(), x, 2, 2, 2e-5)


def test_activation_is_kept() -> None:
    layer, plain = BatchGroupNormAct2d(2, 6, 2, act_layer=nn.SiLU), BatchGroupNorm2d(2, 6, 2)
    x = torch.randn(5, 6, 4, 4)
    for training in (True, False):
        assert torch.equal(layer.train(training)(x), F.silu(plain.train(training)(x)))


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ConfigurationError, match="divide"):
        BatchGroupNorm2d(4, 6, 2)
    for groups, examples in ((0, 2), (2, 0)):
        with pytest.raises(ConfigurationError, match="at least 1"):
            BatchGroupNorm2d(groups, 6, examples)
    layer = BatchGroupNorm2d(2, 6, 3)
    assert "num_groups=2, examples_per_group=3" in repr(layer)
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(6).state_dict())
    for training in (True, False):
        with pytest.raises(ValueError, match="4D"):
            layer.train(training)(torch.randn(2, 6))


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", FORMATS)
def test_compiled_layer_is_the_same(memory_format: torch.memory_format) -> None:
    torch._dynamo.reset()
    layer = randomise_(BatchGroupNorm2d(2, 6, 2))
    other = copy.deepcopy(layer)
    x, dy = torch.randn(8, 6, 5, 5).contiguous(memory_format=memory_format), torch.randn(8, 6, 5, 5)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(a).backward(dy)
    torch.compile(other, fullgraph=True)(b).backward(dy)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.running_var, other.running_var)


@pytest.mark.parametrize("num_groups", [8, 32])
def test_large_groups_in_channels_last(num_groups: int) -> None:
    """Groups of 2¹⁸ elements, several blocks of a kernel: each is what batch or group norm makes of it alone."""
    x = torch.randn(4, 32, 64, 64).contiguous(memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn(x.shape).contiguous(memory_format=torch.channels_last)
    layer = BatchGroupNorm2d(num_groups, 32, 2)
    layer.weight.data.uniform_(0.5, 2)
    y = layer(x)
    y.backward(dy)
    copy = x.detach().double().requires_grad_()
    # Two examples side by side are one image, in which a group of channels is normalised.
    pairs = torch.cat([copy[0::2], copy[1::2]], dim=2)
    expected = F.group_norm(pairs, num_groups, layer.weight.double(), None, layer.eps)
    expected = torch.stack(expected.split(64, dim=2), dim=1).reshape(x.shape)
    expected.backward(dy.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), copy.grad, rtol=1e-4, atol=1e-5)
