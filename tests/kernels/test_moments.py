"""Moments and their mixture against the float64 reference, in value and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alphatune.kernels.moments import example_moments, example_weighted_norm, mix_moments

SHAPES = [(3, 5), (3, 5, 7), (2, 4, 6, 5), (2, 3, 4, 3, 5), (1, 1, 1, 1), (4, 3, 1, 1), (2, 6, 1, 9)]


def layer_tensors(channels: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    return {
        "running_mean": torch.randn(channels, generator=generator).to(dtype),
        "running_var": (torch.rand(channels, generator=generator) + 0.3).to(dtype),
        "weight": torch.randn(channels, generator=generator).to(dtype),
        "bias": torch.randn(channels, generator=generator).to(dtype),
    }


def expected(x: torch.Tensor, tensors: dict[str, torch.Tensor], alpha: float, eps: float) -> np.ndarray:
    arrays = {k: None if v is None else v.double().numpy() for k, v in tensors.items()}
    return reference.example_weighted(x.double().numpy(), **arrays, alpha=alpha, eps=eps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("grad", [True, False])
def test_equals_the_reference(shape: tuple[int, ...], alpha: float, grad: bool) -> None:
    x, tensors = torch.randn(shape) * 3 + 1, layer_tensors(shape[1])
    with torch.set_grad_enabled(grad):
        y = example_weighted_norm(x, **tensors, alpha=torch.tensor(alpha), eps=1e-3)
    assert y.shape == x.shape
    np.testing.assert_allclose(
        y.numpy(), expected(x, tensors, float(np.float32(alpha)), 1e-3), rtol=2e-5, atol=2e-5
    )


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    alpha=st.floats(0, 1, width=32),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    offset=st.sampled_from([-100.0, 0.0, 30.0]),
    eps=st.sampled_from([1e-5, 1e-3]),
    affine=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_the_reference_in_float64(
    shape: list[int],
    alpha: float,
    scale: float,
    offset: float,
    eps: float,
    affine: bool,
    channels_last: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64) * scale + offset
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    tensors: dict = layer_tensors(shape[1], torch.float64)
    if not affine:
        tensors["weight"] = tensors["bias"] = None
    y = example_weighted_norm(x, **tensors, alpha=torch.tensor(alpha), eps=eps)
    # The reference subtracts squares, so its own error grows with offset² / variance.
    np.testing.assert_allclose(y.numpy(), expected(x, tensors, alpha, eps), rtol=1e-6, atol=1e-6)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 3, 4, 4)])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_gradient_is_the_derivative(shape: tuple[int, ...], alpha: float) -> None:
    tensors = {k: v.requires_grad_() for k, v in layer_tensors(shape[1], torch.float64).items()}
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.full((shape[1],), alpha, dtype=torch.float64, requires_grad=True)

    def f(x: torch.Tensor, alpha: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return example_weighted_norm(x, *rest, alpha=alpha, eps=1e-3)

    assert torch.autograd.gradcheck(f, (x, weight, *tensors.values()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_do_not_overflow_in_low_precision(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 3, 8, 8) * 40 + 400).to(dtype)  # squares beyond float16's 65504
    tensors = layer_tensors(3)
    y = example_weighted_norm(x, **tensors, alpha=torch.tensor(0.5), eps=1e-5)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.float().numpy(), expected(x, tensors, 0.5, 1e-5), rtol=2e-2, atol=1e-2)


def test_a_large_offset_costs_no_digits() -> None:
    """E[x²] − mean² in float32 would leave no correct digit of the variance here."""
    x = torch.randn(2, 3, 16, 16) + 1e4
    tensors = layer_tensors(3) | {"running_mean": torch.full((3,), 1e4)}
    y = example_weighted_norm(x, **tensors, alpha=torch.tensor(0.3), eps=1e-5)
    np.testing.assert_allclose(
        y.numpy(), expected(x, tensors, float(np.float32(0.3)), 1e-5), rtol=1e-3, atol=2e-3
    )


def test_example_moments_are_biased_and_over_space_only() -> None:
    x = torch.randn(3, 4, 5, 6)
    mean, variance = example_moments(x)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    torch.testing.assert_close(variance, x.var((2, 3), correction=0))
    mean, variance = example_moments(torch.randn(3, 4))
    assert mean.shape == variance.shape == (3, 4)
    assert not variance.any()


def test_mixing_keeps_the_cross_term() -> None:
    mean, variance = mix_moments(
        torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([1.0]), torch.tensor([4.0]), 0.25
    )
    assert mean.item() == 1.5
    assert variance.item() == 0.75 * 4 + 0.25 * 2 + 0.25 * 0.75 * (3 - 1) ** 2


def test_mixed_variance_is_never_negative() -> None:
    x = torch.full((2, 3, 4, 4), 1e4)  # constant images: E[x²] − mean² rounds to a negative number
    mean, variance = example_moments(x)
    _, mixed = mix_moments(mean, variance, torch.zeros(3), torch.zeros(3), 1.0)
    assert bool((mixed >= 0).all())
