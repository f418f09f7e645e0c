"""Interpolation in α against SciPy and exact polynomials."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.interpolate import BarycentricInterpolator

from alphatune.core.versions import is_at_least
from alphatune.statistics.interpolation import interpolation_weights, lobatto_nodes

counts = st.integers(2, 17)
highs = st.floats(0.01, 1.0)


@given(counts, highs)
def test_nodes_span_the_range_and_increase(count: int, high: float) -> None:
    nodes = lobatto_nodes(count, high)
    assert nodes[0] == 0
    assert nodes[-1] == high
    assert len(nodes) == count
    assert (np.diff(nodes) > 0).all()


@given(highs)
def test_nodes_are_nested(high: float) -> None:
    assert set(lobatto_nodes(5, high)) <= set(lobatto_nodes(9, high))


@given(counts, highs)
def test_polynomials_below_the_number_of_nodes_are_exact(count: int, high: float) -> None:
    nodes, points = np.array(lobatto_nodes(count, high)), np.linspace(0, high, 57)
    weights = interpolation_weights(nodes, points)
    for degree in range(count):
        f = np.polynomial.chebyshev.Chebyshev.basis(degree, domain=[0, high])
        np.testing.assert_allclose(weights @ f(nodes), f(points), atol=1e-10)


@pytest.mark.filterwarnings("error")
@example(2, 1.0)  # weights of the formula that add up to 0
@given(counts, highs)
def test_a_node_takes_its_own_value(count: int, high: float) -> None:
    nodes = lobatto_nodes(count, high)
    assert (interpolation_weights(nodes, nodes) == np.eye(count)).all()


@given(counts, highs, st.integers(0, 1000))
def test_equals_scipy(count: int, high: float, seed: int) -> None:
    nodes, points = np.array(lobatto_nodes(count, high)), np.linspace(0, high, 41)
    values = np.random.default_rng(seed).normal(size=count)
    order = {"rng" if is_at_least("scipy", "1.15") else "random_state": 0}
    expected = BarycentricInterpolator(nodes, values, **order)(points)
    np.testing.assert_allclose(interpolation_weights(nodes, points) @ values, expected, atol=1e-10)


def test_nodes_need_not_be_those_of_lobatto() -> None:
    nodes, points = [0.0, 0.03, 0.1, 0.25, 0.3], np.linspace(0, 0.3, 41)
    values = np.random.default_rng(0).normal(size=5)
    expected = BarycentricInterpolator(nodes, values)(points)
    np.testing.assert_allclose(interpolation_weights(nodes, points) @ values, expected, rtol=1e-10)


@pytest.mark.parametrize(("count", "error"), [(3, 2e-2), (5, 1e-4), (9, 1e-9)])
def test_smooth_functions_converge(count: int, error: float) -> None:
    nodes, points = np.array(lobatto_nodes(count, 1.0)), np.linspace(0, 1, 101)
    assert np.abs(interpolation_weights(nodes, points) @ np.exp(nodes) - np.exp(points)).max() < error
