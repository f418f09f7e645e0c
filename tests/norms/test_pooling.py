"""Exact pooling: the moments of all values, whatever batches they came in."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from alphatune.norms.pooling import Moments, merge, moments_of


def pooled(x: torch.Tensor, size: int) -> Moments:
    parts = [moments_of(part) for part in x.split(size)]
    whole = parts[0]
    for part in parts[1:]:
        whole = merge(whole, part)
    return whole


def assert_exact(x: torch.Tensor, size: int) -> None:
    found = pooled(x, size)
    mean, variance = reference.pooled_moments([x.double().numpy()])
    assert found.count == x.numel() // x.shape[1]
    assert found.mean.dtype == found.deviations.dtype == torch.float64
    deviation = np.sqrt(variance)
    np.testing.assert_allclose((found.mean.numpy() - mean) / deviation, 0, atol=1e-5)
    np.testing.assert_allclose(found.unbiased_variance.numpy(), variance, rtol=1e-5)
    np.testing.assert_allclose(found.variance.numpy(), variance * (1 - 1 / found.count), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 64, 150])
@pytest.mark.parametrize("shape", [(150, 5), (150, 5, 9), (150, 5, 6, 7), (150, 5, 2, 3, 4)])
def test_batches_of_any_size_equal_the_reference(size: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * 3 + 1
    x += (
        torch.randn(150, 5, *[1] * (len(shape) - 2)) * 2
    )  # examples differ: there is a variance between batches
    assert_exact(x, size)


@pytest.mark.parametrize("size", [1, 7, 64, 150])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_offsets_lose_no_digits(size: int, memory_format: torch.memory_format) -> None:
    x = (torch.randn(150, 3, 8, 8) + torch.tensor([1e4, -1e4, 3e3]).view(3, 1, 1)).contiguous(
        memory_format=memory_format
    )
    assert_exact(x, size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_other_formats_are_pooled_as_what_they_hold(dtype: torch.dtype, size: int) -> None:
    assert_exact((torch.randn(100, 4, 6, 6) * 40 + 300).to(dtype), size)


def test_what_averaging_variances_leaves_out() -> None:
    """Batches whose means differ: the variance between them counts."""
    low, high = torch.zeros(4, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    whole = merge(moments_of(low), moments_of(high))
    assert whole.mean.item() == 1.0
    assert whole.variance.item() == pytest.approx(2.0)  # both batches have none


def test_the_order_of_merging_does_not_matter() -> None:
    parts = [moments_of(torch.randn(n, 3, 4) * n) for n in (1, 5, 2)]
    ab_c = merge(merge(parts[0], parts[1]), parts[2])
    c_ba = merge(parts[2], merge(parts[1], parts[0]))
    torch.testing.assert_close(ab_c.mean, c_ba.mean, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(ab_c.deviations, c_ba.deviations, rtol=1e-13, atol=0)


def test_inputs_are_not_written_to_and_need_no_gradient() -> None:
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    before = x.detach().clone()
    assert not moments_of(x).mean.requires_grad
    assert torch.equal(x.detach(), before)
