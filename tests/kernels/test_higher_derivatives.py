"""Gradients of gradients, and torch.func: right, or an error, never silently wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import alphatune
from alphatune.kernels import cpu as cpu_kernels
from alphatune.kernels import grouped as grouped_kernels
from alphatune.norms.batch_group import BatchGroupNorm2d
from alphatune.norms.example_weighted import ExampleWeighted
from alphatune.norms.ghost import GhostBatchNorm2d
from alphatune.norms.patching import differentiable_alpha

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ghost": lambda: GhostBatchNorm2d(4, 2, track_running_stats=False),
    "ghost, no affine": lambda: GhostBatchNorm2d(4, 2, affine=False, track_running_stats=False),
    "batch-group": lambda: BatchGroupNorm2d(2, 4, 2, track_running_stats=False),
}


@pytest.fixture(params=sorted(LAYERS))
def layer(request: pytest.FixtureRequest) -> nn.Module:
    made = LAYERS[request.param]()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def by_plain_operations(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer of (4, 4, H, W) in operations whose derivatives are torch's own."""
    groups = getattr(layer, "num_groups", 4)
    grouped = x.reshape(2, 2, groups, 4 // groups, -1)
    mean = grouped.mean((1, 3, 4), keepdim=True)
    variance = (grouped - mean).square().mean((1, 3, 4), keepdim=True)
    y = ((grouped - mean) / (variance + layer.eps).sqrt()).reshape(x.shape)
    if layer.weight is None:
        return y
    return y * layer.weight[:, None, None] + layer.bias[:, None, None]


def activations(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 4, 3, 3, dtype=dtype, requires_grad=True)


def test_gradient_penalty(layer: nn.Module) -> None:
    """The case of the review: what enters the penalty requires no gradient where it meets the layer."""
    conv, w = nn.Conv2d(4, 4, 1, bias=False).double(), torch.randn(4, 4, 3, 3).double()
    layer.double()
    x = activations().detach()
    found = []
    for norm in (layer, lambda h: by_plain_operations(layer, h)):
        h = conv(x)
        (gradient,) = torch.autograd.grad((norm(h) * w + h * w).sum(), h, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), conv.weight)[0])
    torch.testing.assert_close(*found)
    assert found[1].norm() > 0


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_of_all_inputs(layer: nn.Module, last: bool, dtype: torch.dtype) -> None:
    layer.to(dtype)
    x, weight = activations(dtype), torch.randn(4, 4, 3, 3, dtype=dtype)
    if last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    inputs = [x, *layer.parameters()]
    found = []
    for norm in (layer, lambda h: by_plain_operations(layer, h)):
        first = torch.autograd.grad((norm(x) * weight).tanh().sum(), inputs, create_graph=True)
        total = sum((g * g.detach().cos()).sum() for g in first)
        found.append(torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4 if dtype == torch.float32 else 1e-7, atol=2e-4)


def test_gradgradcheck(layer: nn.Module) -> None:
    layer.double()
    assert torch.autograd.gradgradcheck(layer, (activations(),))


def test_first_derivatives_take_the_fast_way(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = grouped_kernels.GroupNormOps.differentiate
    for kind in (grouped_kernels.GroupNormOps, grouped_kernels.CompiledGroupNormOps):
        monkeypatch.setattr(kind, "differentiate", lambda *a, **k: calls.append(1) or real(*a, **k))
    layer(activations(torch.float32)).sum().backward()
    assert calls


def test_torch_func(layer: nn.Module) -> None:
    layer.double()
    x = activations().detach()

    def loss(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda h: norm(h).tanh().sum()

    plain = loss(lambda h: by_plain_operations(layer, h))
    torch.testing.assert_close(torch.func.grad(loss(layer))(x), torch.func.grad(plain)(x))
    torch.testing.assert_close(
        torch.func.jvp(loss(layer), (x,), (x.cos(),)), torch.func.jvp(plain, (x,), (x.cos(),))
    )
    stack = torch.stack([x, 2 * x])
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(loss(layer)))(stack), torch.func.vmap(torch.func.grad(plain))(stack)
    )
    small = x[:, :, :1, :2]
    torch.testing.assert_close(torch.func.hessian(loss(layer))(small), torch.func.hessian(plain)(small))


@pytest.mark.parametrize("no_compiler", [False, True])
def test_second_derivatives_while_alpha_is_tuned(no_compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if no_compiler:
        monkeypatch.setattr(cpu_kernels, "load_library", lambda: None)
    model = nn.Sequential(nn.BatchNorm2d(4)).eval().requires_grad_(False)
    alphatune.patch_(model)
    layer = model[0]
    assert isinstance(layer, ExampleWeighted)
    x = activations(torch.float32)
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.9], requires_grad=True)
    found = []
    for every_gradient in (False, True):  # with γ's gradient wanted, too, plain operations run
        layer.weight.requires_grad_(every_gradient)
        with differentiable_alpha({layer: alpha}):
            first = torch.autograd.grad(model(x).tanh().sum(), [x, alpha], create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, alpha]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
