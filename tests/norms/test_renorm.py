"""Batch Renormalisation: Algorithm 1, its schedule and its gradient."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference
import torch
from test_ghost import as_numpy, randomise_
from torch import nn

from alphatune import BatchRenorm2d
from alphatune.core.errors import ConfigurationError
from alphatune.norms.renorm import BatchRenorm1d, BatchRenorm3d, BatchRenormAct2d

WIDE_OPEN = {"start": 0, "r_end": 0, "d_end": 0}


@pytest.mark.parametrize("shape", [(8, 4), (8, 4, 5), (8, 4, 3, 3), (8, 4, 2, 2, 2), (2, 4, 1, 1)])
@pytest.mark.parametrize(("r_max", "d_max"), [(3.0, 5.0), (1.2, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_the_reference(
    shape: tuple[int, ...], r_max: float, d_max: float, channels_last: bool
) -> None:
    kind = {2: BatchRenorm1d, 3: BatchRenorm1d, 4: BatchRenorm2d, 5: BatchRenorm3d}[len(shape)]
    layer = randomise_(kind(4, r_max, d_max, **WIDE_OPEN, eps=1e-3, momentum=0.3))
    x = torch.randn(shape) * 2 + 1
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    moving = as_numpy(layer.running_mean, layer.running_var)
    stock = nn.BatchNorm1d(4, momentum=0.3) if x.ndim < 4 else nn.BatchNorm2d(4, momentum=0.3)
    stock.load_state_dict(layer.state_dict())
    expected = reference.batch_renorm(
        *as_numpy(x, layer.weight, layer.bias), *moving, r_max, d_max, layer.eps
    )
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    stock(x.flatten(3) if x.ndim == 5 else x)  # the averages move as BatchNorm's do
    torch.testing.assert_close(layer.running_mean, stock.running_mean)
    torch.testing.assert_close(layer.running_var, stock.running_var)


@pytest.mark.parametrize("affine", [True, False])
def test_gradient_passes_r_and_d_by(affine: bool) -> None:
    """Against the reference with r and d held at their values: γ·(x̂·r + d) + β."""
    layer = randomise_(BatchRenorm2d(2, 1.5, 0.5, **WIDE_OPEN, eps=1e-3, affine=affine, dtype=torch.float64))
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    mean, variance = as_numpy(layer.running_mean, layer.running_var)
    weight = np.ones(2) if layer.weight is None else as_numpy(layer.weight)[0]
    sigma = np.sqrt(variance + 1e-3)
    at = as_numpy(x)[0]
    r = np.clip(np.sqrt(at.var((0, 2, 3)) + 1e-3) / sigma, 1 / 1.5, 1.5)
    d = np.clip((at.mean((0, 2, 3)) - mean) / sigma, -0.5, 0.5)

    def objective(at: np.ndarray) -> float:
        normalised = reference.batch_group_norm(at, None, None, 2, 100, 1e-3)[0]
        y = weight[:, None, None] * (normalised * r[:, None, None] + d[:, None, None])
        return float((y * dy.numpy()).sum())

    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    np.testing.assert_allclose(dx.numpy(), reference.derivative(objective, at), atol=1e-6)
    if affine:
        dweight, dbias = torch.autograd.grad(y, [layer.weight, layer.bias], dy)
        unscaled = (y - layer.bias.view(-1, 1, 1)) / layer.weight.view(-1, 1, 1)
        torch.testing.assert_close(dweight, (dy * unscaled).sum((0, 2, 3)))
        torch.testing.assert_close(dbias, dy.sum((0, 2, 3)))


def test_schedule() -> None:
    layer = BatchRenorm2d(4, start=10, r_end=30, d_end=20)
    for steps, r_max, d_max in ((0, 1, 0), (10, 1, 0), (15, 1.5, 2.5), (20, 2, 5), (30, 3, 5), (99, 3, 5)):
        layer.num_batches_tracked.fill_(steps)
        assert [limit.item() for limit in layer.limits()] == pytest.approx([r_max, d_max])


def test_before_its_start_it_is_batch_norm() -> None:
    layer, stock = randomise_(BatchRenorm2d(4)), nn.BatchNorm2d(4)
    stock.load_state_dict(layer.state_dict(), strict=True)
    for _ in range(2):
        x = torch.randn(8, 4, 5, 5) + 2
        torch.testing.assert_close(layer(x), stock(x))
    for key, value in stock.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)


def test_with_open_limits_training_is_inference() -> None:
    """What the method is for: r and d turn the batch's statistics into the moving ones."""
    layer = randomise_(BatchRenorm2d(4, 1e6, 1e6, **WIDE_OPEN))
    x = torch.randn(8, 4, 5, 5)
    expected = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act", [False, True])
def test_eval_is_batch_norms(act: bool) -> None:
    layer = randomise_((BatchRenormAct2d if act else BatchRenorm2d)(4, **WIDE_OPEN)).eval()
    stock = nn.BatchNorm2d(4).eval()
    stock.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(8, 4, 5, 5)
    assert torch.equal(layer(x), stock(x).relu() if act else stock(x))


@pytest.mark.parametrize("steps", [0, 100000])
def test_one_value_per_channel(steps: int) -> None:
    layer = randomise_(BatchRenorm2d(4))
    layer.num_batches_tracked.fill_(steps)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(1, 4, 1, 1, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    torch.testing.assert_close(y, copy.deepcopy(layer).eval()(x))


@pytest.mark.parametrize("momentum", [None, 0.0])
def test_momentum(momentum: float | None) -> None:
    layer, stock = BatchRenorm2d(4, momentum=momentum), nn.BatchNorm2d(4, momentum=momentum)
    for _ in range(3):
        x = torch.randn(6, 4, 3, 3) + 1
        layer(x)
        stock(x)
    torch.testing.assert_close(layer.running_mean, stock.running_mean)
    torch.testing.assert_close(layer.running_var, stock.running_var)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs(dtype: torch.dtype) -> None:
    layer = randomise_(BatchRenorm2d(4, **WIDE_OPEN))
    x = (torch.randn(8, 4, 5, 5) * 30 + 300).to(dtype).requires_grad_()
    moving = as_numpy(layer.running_mean, layer.running_var)
    expected = reference.batch_renorm(
        *as_numpy(x, layer.weight, layer.bias), *moving, layer.r_max, layer.d_max, layer.eps
    )
    y = layer(x)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    np.testing.assert_allclose(y.detach().float().numpy(), expected, rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"r_max": 0.5},
        {"d_max": -1},
        {"start": -1},
        {"start": 10, "r_end": 5},
        {"start": 10, "d_end": 5},
        {"start": 1.5},
        {"track_running_stats": False},
        {"r_max": float("nan")},
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict) -> None:
    with pytest.raises(ConfigurationError):
        BatchRenorm2d(4, **arguments)


@pytest.mark.slow
def test_compiled_layer_is_the_same() -> None:
    torch._dynamo.reset()
    layer = randomise_(BatchRenorm2d(4, **WIDE_OPEN))
    other = copy.deepcopy(layer)
    x = torch.randn(8, 4, 5, 5)
    torch.testing.assert_close(layer(x), torch.compile(other, fullgraph=True)(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.running_var, other.running_var)
