"""The gradient with respect to α against differences of the paper's equations, and against plain autograd."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alphatune.kernels import alpha_gradient, moments
from alphatune.kernels import dispatch as kernels
from alphatune.norms.example_weighted import ExampleWeightedBatchNorm2d
from alphatune.norms.patching import differentiable_alpha

FORMATS = [torch.contiguous_format, torch.channels_last]


def parts(channels: int, per_channel: bool, affine: bool, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    alpha = torch.rand(channels if per_channel else (), dtype=dtype)
    return (
        torch.randn(channels, dtype=dtype),
        torch.rand(channels, dtype=dtype) + 0.1,
        torch.randn(channels, dtype=dtype) if affine else None,
        torch.randn(channels, dtype=dtype) if affine else None,
        alpha,
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from([(), (1, 1), (3,), (4, 3), (2, 3, 2)]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_equals_differences_of_the_paper(
    n: int, channels: int, space: tuple[int, ...], per_channel: bool, affine: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(n, channels, *space, dtype=torch.float64)
    m, v, w, b, a = parts(channels, per_channel, affine, torch.float64)
    dy = torch.randn_like(x)
    z, alpha = x.clone().requires_grad_(), a.clone().requires_grad_()
    y = alpha_gradient.example_weighted_norm(z, m, v, w, b, alpha, 1e-3)
    dx, da = torch.autograd.grad(y, (z, alpha), dy)

    def value(at_x: np.ndarray, at_a: np.ndarray) -> float:
        arrays = [t if t is None else t.numpy() for t in (m, v, w, b)]
        return float((reference.example_weighted(at_x, *arrays, at_a, 1e-3) * dy.numpy()).sum())

    expected = reference.example_weighted(
        x.numpy(), *[t if t is None else t.numpy() for t in (m, v, w, b)], a.numpy(), 1e-3
    )
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    wanted = reference.derivative(lambda at: value(at, a.numpy()), x.numpy())
    np.testing.assert_allclose(dx.numpy(), wanted, rtol=1e-4, atol=1e-5)
    wanted = reference.derivative(lambda at: value(x.numpy(), at), np.atleast_1d(a.numpy()))
    np.testing.assert_allclose(np.atleast_1d(da.numpy()), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 8, 7, 7), (3, 16, 20, 20), (2, 5, 1, 1)])
def test_equals_plain_autograd(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x = (torch.randn(shape) * 2 + 1).to(dtype).contiguous(memory_format=memory_format)
    m, v, w, b, a = parts(shape[1], True, True, torch.float32)
    dy = torch.randn(shape).to(dtype)
    found, wanted = [], []
    for out, norm in ((found, alpha_gradient.example_weighted_norm), (wanted, moments.example_weighted_norm)):
        z, alpha = x.clone().requires_grad_(), a.clone().requires_grad_()
        y = norm(z, m, v, w, b, alpha, 1e-5)
        out += [y.detach(), *torch.autograd.grad(y, (z, alpha), dy)]
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        unit = other.float().abs().max().clamp_min(1)
        torch.testing.assert_close(one.float() / unit, other.float() / unit, rtol=0, atol=tolerance)
    assert found[0].stride() == x.stride()


def test_large_offsets() -> None:
    x = torch.randn(4, 3, 10, 10) + 1e4
    m, v, w, b, a = torch.full((3,), 1e4), torch.ones(3), None, None, torch.tensor(0.3)
    dy = torch.randn_like(x)
    exact = []
    for dtype, norm in (
        (torch.float32, alpha_gradient.example_weighted_norm),
        (torch.float64, moments.example_weighted_norm),
    ):
        z, alpha = x.to(dtype).requires_grad_(), a.to(dtype).requires_grad_()
        y = norm(z, m.to(dtype), v.to(dtype), w, b, alpha, 1e-5)
        exact.append(torch.autograd.grad(y, (z, alpha), dy.to(dtype)))
    for one, other in zip(*exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0.01, atol=0.02)


def test_layers_take_it_where_alpha_alone_wants_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = alpha_gradient.example_weighted_norm
    monkeypatch.setattr(
        kernels.alpha_gradient, "example_weighted_norm", lambda *a: calls.append(1) or original(*a)
    )
    layer = ExampleWeightedBatchNorm2d(3, alpha=0.2).eval()
    x = torch.randn(2, 3, 4, 4)
    alpha = torch.tensor(0.1, requires_grad=True)
    with differentiable_alpha({layer: alpha}):
        layer(x).square().sum().backward()  # γ and β want a gradient too
        assert not calls
        assert layer.weight.grad is not None
        expected, alpha.grad = alpha.grad, None
        layer.requires_grad_(False)
        layer(x).square().sum().backward()
        assert calls
    torch.testing.assert_close(alpha.grad, expected)


def test_alpha_is_as_before_on_any_exit() -> None:
    layer = ExampleWeightedBatchNorm2d(3, alpha=0.2).eval()
    before = layer.alpha
    with pytest.raises(KeyError), differentiable_alpha({layer: torch.tensor(0.7, requires_grad=True)}):
        raise KeyError
    assert layer.alpha is before
    assert layer.weighs_example
    plain = ExampleWeightedBatchNorm2d(3).eval()
    with differentiable_alpha({plain: torch.tensor(0.0, requires_grad=True)}):
        assert plain.weighs_example  # or there would be no gradient at 0
    assert not plain.weighs_example
