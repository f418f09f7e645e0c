"""Choosing α: cross-fitting and its statistics; test_honest_statistics.py has the rate of false alarms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from alphatune.core.errors import ConfigurationError
from alphatune.core.metrics import INFO
from alphatune.statistics.calibration_error import calibration_shares
from alphatune.statistics.gain import paired_difference
from alphatune.statistics.scores import Scores, summarise
from alphatune.tuning.alphas import AUTO, resolve_alphas
from alphatune.tuning.objective import Objective
from alphatune.tuning.selection import Confirmed, cross_fitted_gain, select
from alphatune.tuning.sweep import Sweep


def sweep_of(loss: np.ndarray, correct: np.ndarray, alphas: tuple[float, ...]) -> Sweep:
    """A sweep from (alphas, n) arrays of loss and correctness."""
    n = loss.shape[1]
    ids = np.arange(n)
    confidence = np.clip(np.exp(-loss), 0.01, 1).astype(np.float32)
    return Sweep(
        alphas,
        tuple(
            Scores(ids, ids.astype(np.int32) % 10, ids.astype(np.int32) % 10, x.astype(np.float32), c, c, p)
            for x, c, p in zip(loss, correct, confidence, strict=True)
        ),
    )


def simulate(n: int, effect: float, seed: int, alphas: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1)) -> Sweep:
    """Paired scores whose mean moves by ``effect`` at the third α, smoothly in between.

    The differences of neighbouring α are strongly correlated, as real ones are.
    """
    rng = np.random.default_rng(seed)
    shape = np.interp(alphas, [0, alphas[2], 1], [0, 1, -0.3])
    difficulty = rng.gamma(1.0, 0.8, n)
    own = (
        rng.standard_normal((n, 1)) * np.asarray(alphas) * 3
        + rng.standard_normal((n, 1)) * np.asarray(alphas) ** 2 * 5
    )
    loss = difficulty[:, None] + own - effect * shape
    # 80 % are right; 5 % of those turn wrong on the way to the largest α, and as
    # many wrong answers turn right, plus the effect.
    right, turned = rng.random((n, 1)) < 0.8, rng.random((n, 1))
    change = 0.05 * np.asarray(alphas) / max(alphas)
    correct = np.where(right, turned >= change, turned < 4 * change + 5 * effect * shape)
    return sweep_of(loss.T, correct.T, alphas)


def test_optimum_and_ties() -> None:
    loss = np.array([[1.0, 1.0], [0.5, 0.7], [0.5, 0.7]])
    sweep = sweep_of(loss, np.array([[True, False]] * 3), (0.0, 0.1, 0.2))
    choices = sweep.choices()
    assert choices.best(Objective("loss")) == sweep.alphas[1]  # among equals the smaller α
    assert choices.best(Objective("top1")) == sweep.alphas[0]


def test_a_large_effect_is_found() -> None:
    decision = select(simulate(3000, 0.3, 0), "loss")
    assert decision.alpha == 0.05
    assert decision.gain is not None
    assert decision.gain.significant
    assert decision.gain.ci[0] < 0.3 < decision.gain.ci[1] + 0.05
    assert decision.gain.fold_alphas == (0.05,) * 10


def test_no_effect_keeps_zero_unless_told_otherwise() -> None:
    sweep = simulate(400, 0.0, 3)
    kept = select(sweep, "loss")
    assert kept.alpha == 0
    taken = select(sweep, "loss", accept="best")
    assert taken.alpha == taken.best["loss"]


def test_a_harmful_alpha_is_not_chosen() -> None:
    decision = select(simulate(3000, -0.5, 1), "loss", accept="best")
    assert decision.alpha == 0
    assert "no α > 0" in decision.reason


@pytest.mark.parametrize("n", [1, 5, 19])
def test_too_few_examples_to_judge(n: int) -> None:
    decision = select(simulate(n, 0.3, 0), "loss")
    assert decision.alpha == 0
    assert decision.gain is None
    assert str(n) in decision.reason


def test_gain_is_cross_fitted() -> None:
    """By hand: each example is scored at the α that the other folds chose."""
    sweep = simulate(60, 0.1, 5)
    gain = cross_fitted_gain(sweep.choices(), "loss", seed=7, folds=4)
    from alphatune.tuning.selection import _stratified_folds

    fold = _stratified_folds(sweep.baseline.targets, 4, np.random.default_rng(7))
    total = 0.0
    for i in range(60):
        others = [j for j in range(60) if fold[j] != fold[i]]
        means = [np.mean([float(s.loss[j]) for j in others]) for s in sweep.scores]
        chosen = int(np.argmin(means))
        total += float(sweep.scores[0].loss[i]) - float(sweep.scores[chosen].loss[i])
    assert gain.delta == pytest.approx(total / 60, abs=1e-6)


def test_folds_are_stratified_and_seeded() -> None:
    from alphatune.tuning.selection import _stratified_folds

    targets = np.repeat([0, 1, 2], [40, 40, 20]).astype(np.int32)
    fold = _stratified_folds(targets, 10, np.random.default_rng(0))
    for c, share in ((0, 4), (1, 4), (2, 2)):
        assert np.bincount(fold[targets == c], minlength=10).tolist() == [share] * 10
    assert not np.array_equal(fold, _stratified_folds(targets, 10, np.random.default_rng(1)))


def test_mcnemar_counts_the_examples_that_changed_sides() -> None:
    correct = np.zeros((2, 100), dtype=bool)
    correct[0, :50] = True
    correct[1, 3:62] = True  # 3 lost, 12 won
    gain = cross_fitted_gain(sweep_of(np.ones((2, 100)), correct, (0.0, 0.1)).choices(), "top1")
    assert gain.delta == pytest.approx(0.09)
    assert gain.p == pytest.approx(stats.binomtest(12, 15).pvalue)
    assert "12 better, 3 worse" in gain.method


@pytest.mark.parametrize("metric", ["loss", "top1", "ece"])
def test_those_that_had_no_say_confirm(metric: str) -> None:
    """The mean is that of all: fold by fold of those that choose, and the others at what all of them chose."""
    sweep = simulate(3000, 0.3, 0)
    if metric == "ece":  # too sure but at the third α
        correct = np.tile(np.random.default_rng(0).random(3000) < 0.7, (4, 1))
        loss = np.array([0.02, 0.05, -np.log(0.7), 0.1])[:, None] * np.ones(3000)
        sweep = sweep_of(loss, correct, sweep.alphas)
    choosing, others = np.arange(1800), np.arange(1800, 3000)
    choices = Sweep(sweep.alphas, tuple(scores.take(choosing) for scores in sweep.scores)).choices()
    before, after = (sweep.scores[i].take(others) for i in (0, 2))
    chosen = sweep.scores[2].take(choosing)
    gain = cross_fitted_gain(choices, metric, confirmed=Confirmed(0.05, chosen, before, after))
    alone = cross_fitted_gain(choices, metric)
    assert choices.best(Objective(metric)) == 0.05
    assert set(gain.fold_alphas) == {0.05}  # so that all examples were scored there
    assert gain.examples == 3000
    assert gain.significant
    if metric == "ece":
        expected = summarise(sweep.scores[0]).ece - summarise(sweep.scores[2]).ece
    else:
        difference = getattr(sweep.scores[2], metric).astype(float) - getattr(sweep.scores[0], metric)
        expected = INFO[metric].sign * difference.mean()
    assert gain.delta == pytest.approx(expected, abs=1e-6)
    if metric != "ece":
        assert gain.ci[1] - gain.ci[0] < alone.ci[1] - alone.ci[0]


def test_what_a_fold_chose_goes_no_farther_than_guards_allow() -> None:
    sweep = simulate(2000, 0.3, 0, alphas=(0.0, 0.02, 0.04, 0.05, 0.1))
    chosen = sweep.scores[1]
    none = chosen.take(slice(0, 0))
    gain = cross_fitted_gain(
        sweep.choices(), "loss", confirmed=Confirmed(0.02, chosen, none, none, share=0.5)
    )
    assert set(gain.fold_alphas) <= {0.02, 0.04}


def test_interpolated_scores_are_put_right_at_what_was_chosen() -> None:
    """Off by a little for all, and wrong for some examples; the gain is that of the exact scores all the same."""
    sweep = simulate(2000, 0.3, 0)
    exact = sweep.scores[2]
    off = replace(exact, loss=exact.loss * 1.02 - 0.01, top1=exact.top1 ^ (np.arange(2000) % 97 == 0))
    rough = Sweep(sweep.alphas, (*sweep.scores[:2], off, sweep.scores[3])).choices()
    none = exact.take(slice(0, 0))
    for metric in ("loss", "top1"):
        gain = cross_fitted_gain(rough, metric, confirmed=Confirmed(0.05, exact, none, none))
        assert set(gain.fold_alphas) == {0.05}
        true = getattr(exact, metric).astype(float) - getattr(sweep.baseline, metric)
        assert gain.delta == pytest.approx(INFO[metric].sign * true.mean(), abs=1e-6)


def test_nothing_changes() -> None:
    sweep = sweep_of(np.ones((2, 50)), np.ones((2, 50), dtype=bool), (0.0, 0.1))
    for metric in ("top1", "top5", "loss", "ece"):
        gain = cross_fitted_gain(sweep.choices(), metric)
        assert (gain.delta, gain.ci, gain.p, gain.significant) == (0.0, (0.0, 0.0), 1.0, False)


def test_calibration_metric() -> None:
    rng = np.random.default_rng(0)
    correct = np.tile(rng.random(2000) < 0.7, (2, 1))
    loss = np.stack([np.full(2000, 0.02), np.full(2000, -np.log(0.7))])  # confidence 0.98, then 0.7
    decision = select(sweep_of(loss, correct, (0.0, 0.1)), "ece")
    assert decision.alpha == 0.1
    assert decision.gain is not None
    assert decision.gain.delta == pytest.approx(0.28, abs=0.03)


def test_the_mean_of_the_shares_is_the_calibration_error() -> None:
    scores = simulate(700, 0.1, 3).scores[2]
    assert calibration_shares(scores.confidence, scores.top1).mean() == pytest.approx(
        summarise(scores).ece, abs=1e-9
    )


def test_same_seed_same_numbers() -> None:
    sweep = simulate(300, 0.05, 2)
    assert select(sweep, "loss", seed=4) == select(sweep, "loss", seed=4)
    assert select(sweep, "top1", seed=4) == select(sweep, "top1", seed=4)


def test_paired_difference_is_a_change_of_the_metric() -> None:
    sweep = simulate(2000, 0.3, 0)
    low, high = paired_difference(sweep.scores[2], sweep.baseline, "loss")
    assert low < -0.3 < high < 0  # the loss falls


# --- the grid --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", AUTO),
        ("0.02,0.01", (0.0, 0.01, 0.02)),
        ("0,0.02,0.1", (0.0, 0.02, 0.1)),
        ("0:0.3:4", (0.0, 0.1, 0.2, 0.3)),
        ("0.1", (0.0, 0.1)),
        ([0.5, 0.5], (0.0, 0.5)),
        (0.5, (0.0, 0.5)),
        (np.float64(0.5), (0.0, 0.5)),
        (np.float32(0.5), (0.0, 0.5)),
        (np.array([0.5, 0.25]), (0.0, 0.25, 0.5)),
        (torch.tensor([0.5, 0.25]), (0.0, 0.25, 0.5)),
    ],
)
def test_grids(given: object, expected: tuple[float, ...]) -> None:
    assert resolve_alphas(given) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1.1", "-0.1", "0,x", "0:1", "0:1:1", "0:1:x", "nan", "", "0:2:3"])
def test_impossible_grids(text: str) -> None:
    with pytest.raises(ConfigurationError, match="alpha"):
        resolve_alphas(text)


@pytest.mark.parametrize("given", [["x"], None, [[0.1], [0.2, 0.3]], np.ones((2, 2)), iter([0.1]), [1j]])
def test_what_is_no_list_of_numbers(given: object) -> None:
    with pytest.raises(ConfigurationError, match="alpha"):
        resolve_alphas(given)  # type: ignore[arg-type]
