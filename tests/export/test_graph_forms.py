"""Example weighting in exported graphs, which mixes raw moments: against the reference, and where it would lose digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_moments import expected, layer_tensors
from tiny import tiny

import alphatune
from alphatune.export.program import export_program
from alphatune.kernels.graph import MOST_LOST, is_accurate, norm_for_onnx, norm_for_torch

FORMS = (norm_for_onnx, norm_for_torch)
EPS = 1e-5


@pytest.mark.parametrize("norm", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 4, 6, 5), (2, 3, 4, 3, 5), (1, 1, 1, 1), (4, 3, 1, 1)])
def test_equals_the_reference(shape: tuple[int, ...], alpha: float, norm: object) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    tensors = layer_tensors(shape[1])
    y = norm(x, *tensors.values(), torch.tensor(alpha), EPS)  # type: ignore[operator]
    np.testing.assert_allclose(y, expected(x, tensors, alpha, EPS), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("norm", FORMS)
def test_one_weight_a_channel_and_no_affine(norm: object) -> None:
    x, tensors = torch.randn(2, 4, 3, 3), layer_tensors(4)
    tensors |= {"weight": None, "bias": None}  # type: ignore[dict-item]
    alphas = torch.tensor([0.0, 0.1, 0.5, 0.9])
    y = norm(x, *tensors.values(), alphas, EPS)  # type: ignore[operator]
    for channel, alpha in enumerate(alphas.tolist()):
        wanted = expected(x, tensors, alpha, EPS)[:, channel]
        np.testing.assert_allclose(y[:, channel], wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("norm", FORMS)
@given(
    alpha=st.floats(0, 0.984375, width=32),
    offset=st.floats(-9, 9),
    own=st.floats(-1e4, 1e4),
    spread=st.floats(0, 100),
    seed=st.integers(0, 99),
)
def test_digits_are_left_wherever_it_is_allowed(
    norm: object, alpha: float, offset: float, own: float, spread: float, seed: int
) -> None:
    """However far an example is from the population, constant or not."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy((own + spread * rng.normal(size=(1, 1, 5, 5))).astype(np.float32))
    tensors = {
        "running_mean": torch.tensor([offset]),
        "running_var": torch.ones(1),
        "weight": torch.ones(1),
        "bias": torch.zeros(1),
    }
    weight = torch.tensor(alpha)
    if not is_accurate(tensors["running_mean"], tensors["running_var"], weight, EPS):
        return
    y = norm(x, *tensors.values(), weight, EPS)  # type: ignore[operator]
    wanted = expected(x, tensors, alpha, EPS)
    # The variance is known to MOST_LOST units of the last place, and so the result to half as many.
    near = 2 * MOST_LOST * np.finfo(np.float32).eps
    np.testing.assert_allclose(y, wanted, rtol=near, atol=near * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("norm", FORMS)
def test_squares_that_overflow_are_nan(norm: object) -> None:
    x, tensors = torch.randn(2, 3, 4, 4), layer_tensors(3)
    x[1, 2] *= 1e25
    y = norm(x, *tensors.values(), torch.tensor(0.1), EPS)  # type: ignore[operator]
    assert y[1, 2].isnan().all()
    y[1, 2] = 0
    assert y.isfinite().all()


def test_where_it_is_not_allowed() -> None:
    one = torch.ones(2)
    assert is_accurate(one, one, torch.tensor(0.5), EPS)
    assert is_accurate(one, one, torch.tensor([0.0, 0.98]), EPS)
    assert not is_accurate(one, one, torch.tensor(1.0), EPS)
    assert not is_accurate(one, one, torch.tensor([0.0, 0.995]), EPS)
    assert not is_accurate(torch.tensor([0.0, 20.0]), one, torch.tensor(0.5), EPS)


def test_a_layer_with_a_large_offset_is_centred_first_in_the_graph() -> None:
    model = tiny().eval()
    alphatune.patch_(model, 0.1)
    norms = [layer for layer in model.modules() if hasattr(layer, "weighs_example")]
    norms[0].running_mean.fill_(1000.0)
    program = export_program(model, (3, 12, 12), dynamic_size=False, norm=norm_for_onnx)
    counts = [str(node.target) for node in program.graph.nodes]
    assert sum("batch_norm" in name for name in counts) == len(norms) - 1
    assert not any("norm_in_graph" in vars(layer) for layer in norms)
