"""The race drops the best α no more often than it says."""

from __future__ import annotations

import numpy as np
import pytest

from alphatune.statistics.racing import rule_out

LOOKS = (0.05, 0.15, 0.3, 0.45)


def loss_like(rng: np.random.Generator, n: int) -> np.ndarray:
    """Smooth curves with heavy-tailed differences; many α are nearly as good as the best."""
    t = np.linspace(0, 1, 15)
    slope, bend = rng.standard_t(3, n), 2 + rng.exponential(1, n)
    return slope * (t[:, None] - 0.4) * 2 - bend * (t[:, None] - 0.4) ** 2


def accuracy_like(rng: np.random.Generator, n: int) -> np.ndarray:
    """Right up to some α, wrong after it, and a few the other way: rare flips."""
    t = np.linspace(0, 1, 15)[:, None]
    flips = rng.random(n) < 0.06
    turn, right_first = rng.random(n), rng.random(n) < 0.5
    return np.where(flips, (t < turn) == right_first, rng.random(n) < 0.8).astype(np.float32)


@pytest.mark.parametrize("kind", [loss_like, accuracy_like])
@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_the_best_survives(kind, delta: float) -> None:
    rng, lost, repetitions, n = np.random.default_rng(0), 0, 1000, 2000
    for _ in range(repetitions):
        values = kind(rng, n)
        means = values.mean(1)
        best = np.flatnonzero(means == means.max())
        order = rng.permutation(n)
        alive = np.ones(len(values), bool)
        for look in LOOKS:
            alive &= rule_out(values[:, order[: int(look * n)]], n, delta, len(LOOKS))
        lost += not alive[best].any()
    assert lost / repetitions <= delta + 2 * np.sqrt(delta / repetitions)


def test_a_race_drops_what_is_clearly_worse() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400) + np.linspace(0, 1, 5)[:, None]
    alive = rule_out(values, 4000, 0.05, 4)
    assert alive.tolist() == [False, False, False, False, True]


def test_zero_delta_and_few_examples_drop_nothing() -> None:
    values = np.random.default_rng(0).normal(size=(5, 400)) + np.arange(5)[:, None]
    assert rule_out(values, 4000, 0.0, 4)[0].all()
    assert rule_out(values[:, :50], 4000, 0.05, 4).all()


def test_nothing_is_left_to_chance_when_all_are_seen() -> None:
    values = np.array([[0.0, 1.0] * 100, [1.0, 0.0] * 100, [0.0, 0.9] * 100])
    assert rule_out(values, 200, 0.05, 4).tolist() == [True, True, False]
