"""Choosing over several conditions: the statistics are paired by image, and guards hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from alphatune.core.errors import ConfigurationError
from alphatune.statistics.conditions import (
    by_image,
    conditions_of,
    count_images,
    example_ids,
    first_of_image,
    images_of,
    mean_over_conditions,
)
from alphatune.statistics.gain import paired_difference, paired_gain
from alphatune.statistics.scores import Scores, summarise
from alphatune.tuning.objective import LIKELY, MOST_COST, Guard, Objective, parse_guards
from alphatune.tuning.ordering import halves_of, image_order, whole_images
from alphatune.tuning.selection import cross_fitted_gain, select
from alphatune.tuning.sweep import Sweep

NAMES = ("clean", "noise", "blur")


def composite(images: int, conditions: int, own: tuple[int, ...] = ()) -> NDArray[np.int64]:
    """Ids of so many images under each condition, and of further data sets of their own."""
    parts = [example_ids(k, np.arange(images)) for k in range(1, conditions + 1)]
    start = images
    for k, n in enumerate(own, conditions + 1):
        parts.append(example_ids(k, np.arange(start, start + n)))
        start += n
    return np.concatenate(parts)


def scores_of(ids: NDArray[np.int64], loss: NDArray[np.float64], correct: NDArray[np.bool_]) -> Scores:
    n = len(ids)
    return Scores(
        ids, np.zeros(n, np.int32), np.zeros(n, np.int32), loss.astype(np.float32), correct, correct,
        np.full(n, 0.5, np.float32),
    )  # fmt: skip


def simulated(images: int, shifts: tuple[float, ...], alphas: int, seed: int, *, sure: float = 0.0) -> Sweep:
    """Scores whose right answers change with α by so much under each condition, strongest in the middle.

    Examples of one image share most of their luck.
    """
    rng = np.random.default_rng(seed)
    ids = composite(images, len(shifts))
    shared = rng.random(images)
    own = rng.random(len(ids))
    luck = np.where(own < 0.6, shared[images_of(ids)], rng.random(len(ids)))
    swept = []
    for a in range(alphas):
        strength = np.sin(np.pi * a / (alphas - 1)) if a else 0.0
        share = 0.6 + 0.2 * (conditions_of(ids) == 1) + strength * np.asarray(shifts)[conditions_of(ids) - 1]
        moved = (rng.random(len(ids)) < 0.05) if a else np.zeros(len(ids), bool)
        u = np.where(moved, rng.random(len(ids)), luck)
        swept.append(scores_of(ids, 1.0 - share + 0.3 * u + sure, u < share))
    return Sweep(tuple(np.round(np.linspace(0, 0.3, alphas), 3)), tuple(swept))


# --- images under conditions ------------------------------------------------------------------


def test_one_number_an_image_has_the_mean_over_the_conditions() -> None:
    rng = np.random.default_rng(0)
    ids = composite(40, 3, own=(25, 7))
    values = rng.normal(size=(4, len(ids)))
    expected = np.mean([[row[conditions_of(ids) == k].mean() for k in range(1, 6)] for row in values], axis=1)
    assert np.allclose(mean_over_conditions(values, ids), expected, atol=1e-12)
    per_image = by_image(values, ids)
    assert per_image.shape == (4, 40 + 25 + 7) == (4, count_images(ids))
    assert np.allclose(per_image.mean(axis=1), expected, atol=1e-12)
    only = by_image(values, ids, only=4)
    assert np.allclose(only.mean(axis=1), [row[conditions_of(ids) == 4].mean() for row in values], atol=1e-12)


def test_plain_examples_are_left_as_they_are() -> None:
    values, ids = np.random.default_rng(0).normal(size=30), np.arange(30) * 3
    assert by_image(values, ids) is values
    assert mean_over_conditions(values, ids) == values.mean()
    assert (first_of_image(ids) == np.arange(30)).all()


def test_metrics_are_means_over_conditions() -> None:
    ids = composite(10, 1, own=(30,))
    correct = np.r_[np.ones(10, bool), np.zeros(30, bool)]
    metrics = summarise(scores_of(ids, np.r_[np.zeros(10), np.ones(30)], correct))
    assert (metrics.top1, metrics.loss, metrics.n) == (0.5, 0.5, 40)


def test_the_same_image_under_many_conditions_is_no_more_evidence() -> None:
    """Copies of one condition must leave interval and p as they were with one."""
    rng = np.random.default_rng(1)
    n = 400
    before, after = rng.random(n) < 0.6, rng.random(n) < 0.63
    one = composite(n, 1)
    many = composite(n, 5)
    alone = paired_gain(scores_of(one, 1.0 - after, after), scores_of(one, 1.0 - before, before), "loss")
    after, before = np.tile(after, 5), np.tile(before, 5)
    copied = paired_gain(scores_of(many, 1.0 - after, after), scores_of(many, 1.0 - before, before), "loss")
    assert np.allclose(alone.ci, copied.ci, rtol=1e-9)
    assert copied.p == pytest.approx(alone.p)
    assert copied.examples == alone.examples == n


def test_intervals_hold_where_conditions_share_their_images() -> None:
    """Taking 5 conditions for 5 times as many examples would cover about two thirds."""
    rng = np.random.default_rng(2)
    ids, inside = composite(150, 5), 0
    for _ in range(400):
        effect = rng.normal(0.1, 0.5, 150)
        loss = rng.normal(1.0, 0.3, len(ids))
        after = loss - effect[images_of(ids)] + rng.normal(0, 0.1, len(ids))
        correct = np.ones(len(ids), bool)
        low, high = paired_difference(scores_of(ids, after, correct), scores_of(ids, loss, correct), "loss")
        inside += low <= -0.1 <= high
    assert inside / 400 > 0.92


# --- drawing images ---------------------------------------------------------------------------


@pytest.mark.parametrize("own", [(), (31,)])
def test_no_image_is_in_two_parts(own: tuple[int, ...]) -> None:
    ids = composite(50, 4, own)
    targets = (images_of(ids) % 5).astype(np.int64)
    order = image_order(targets, ids, 3)
    assert sorted(order) == list(range(len(ids)))
    for stop in range(1, len(ids)):
        cut = whole_images(order, ids, stop)
        assert cut >= stop
        assert not set(images_of(ids[order[:cut]])) & set(images_of(ids[order[cut:]]))
    one, other = halves_of(targets, ids, 3)
    assert sorted([*one, *other]) == list(range(len(ids)))
    assert not set(images_of(ids[one])) & set(images_of(ids[other]))
    for k in np.unique(conditions_of(ids)):  # each condition, and class, is halved
        counts = [(conditions_of(ids[half]) == k).sum() for half in (one, other)]
        assert abs(counts[0] - counts[1]) <= 5
    assert (order != image_order(targets, ids, 4)).any()


# --- the objective ----------------------------------------------------------------------------


def test_mean_and_worst_choose_what_a_loop_would() -> None:
    rng = np.random.default_rng(3)
    ids = composite(60, 3)
    top1 = rng.random((7, len(ids))) < rng.random((7, 1))
    table = {"top1": top1}
    means = np.array([[row[conditions_of(ids) == k].mean() for k in (1, 2, 3)] for row in top1])
    assert Objective("top1").best(table.__getitem__, ids) == means.mean(axis=1).argmax()
    worst = Objective("top1", "worst")
    assert worst.best(table.__getitem__, ids) == means.min(axis=1).argmax()
    assert np.allclose(worst.per_image(top1, ids).mean(axis=1), means.min(axis=1), atol=1e-12)


def test_a_guard_rules_out_what_lies_beyond_the_first_that_fails() -> None:
    ids = composite(2000, 2)
    clean = conditions_of(ids) == 1
    rng = np.random.default_rng(4)
    u = rng.random(len(ids))
    costs, gains = [0, 0.0, 0.05, 0.0, 0.1], [0, 0.02, 0.3, 0.1, 0.3]
    top1 = np.stack([u < np.where(clean, 0.8 - c, 0.5 + g) for c, g in zip(costs, gains, strict=True)])
    guarded = Objective("top1", guards=(Guard(1, "top1"),))
    assert Objective("top1").best({"top1": top1}.__getitem__, ids) == 2
    assert guarded.allowed({"top1": top1}.__getitem__, ids, "deploy").tolist() == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert guarded.best({"top1": top1}.__getitem__, ids) == 3
    margin = Objective("top1", guards=(Guard(1, "top1", 0.02),))
    assert margin.allowed({"top1": top1}.__getitem__, ids, "deploy").tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert margin.best({"top1": top1}.__getitem__, ids) == 1
    (judged,) = guarded.judge(scores_of(ids, u, top1[2]), scores_of(ids, u, top1[0]), "deploy")
    _, cost, bound, passed = judged
    assert cost == pytest.approx((top1[0] & clean).sum() / 2000 - (top1[2] & clean).sum() / 2000)
    assert not passed
    assert 0 < bound < cost


def test_a_guard_with_a_margin_passes_only_what_surely_keeps_to_it() -> None:
    """Normal differences, whose interval is known: mean ± 1.645 standard errors."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=5000)
    z = (z - z.mean()) / z.std(ddof=1)

    def passing(cost: float, error: float, margin: float | None) -> list[str]:
        worse = cost + error * np.sqrt(5000) * z
        guard = Guard(1, "loss", margin)
        return [each for each in ("choose", "test", "deploy") if guard.judge(worse, each).passed]  # type: ignore[arg-type]

    assert passing(0.002, 0.004, 0.01) == ["choose", "test", "deploy"]
    assert passing(0.002, 0.006, 0.01) == ["choose"]
    assert passing(0.02, 0.004, 0.01) == []
    assert passing(0.002, 0.005, None) == ["choose", "test", "deploy"]
    assert passing(0.004, 0.01, None) == ["choose", "test"]  # 0.004 + half of 0.01 is more than 0.005
    assert passing(0.004, 0.001, None) == []  # significantly worse
    assert passing(MOST_COST - LIKELY * 0.004 - 1e-4, 0.004, None) == ["choose", "test", "deploy"]
    assert passing(MOST_COST - LIKELY * 0.004 + 1e-4, 0.004, None) == ["choose", "test"]


@pytest.mark.parametrize("over", ["mean", "worst"])
def test_a_real_gain_over_conditions_is_found(over: str) -> None:
    objective = Objective("top1", over, (Guard(1, "top1"),))  # type: ignore[arg-type]
    decision = select(simulated(600, (0.0, 0.2, 0.2), 7, seed=5), objective)
    assert decision.alpha != 0
    assert decision.gain is not None
    assert decision.gain.ci[0] > 0.05
    assert decision.gain.examples == 600


def test_one_condition_that_gains_does_not_pay_for_a_clean_set_that_loses() -> None:
    sweep = simulated(1500, (-0.1, 0.4, 0.4), 7, seed=6)
    assert select(sweep, Objective("top1")).alpha != 0
    assert select(sweep, Objective("top1", guards=(Guard(1, "top1"),))).alpha == 0


def false_alarms(runs: int, metric: str, over: str) -> float:
    """Share of runs without any effect in which something is deployed."""
    objective = Objective(metric, over, (Guard(1, "top1"),))  # type: ignore[arg-type]
    return float(
        np.mean(
            [
                select(simulated(200, (0.0, 0.0, 0.0), 5, seed), objective, seed=seed).alpha != 0
                for seed in range(runs)
            ]
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["top1", "loss"])
@pytest.mark.parametrize("over", ["mean", "worst"])
def test_without_an_effect_little_is_deployed(metric: str, over: str) -> None:
    share = false_alarms(500, metric, over)
    print(f"{metric}, {over}: {100 * share:.1f} % of 500 runs deploy something")
    assert share <= 0.05


@pytest.mark.parametrize("images", [200, 1000])
def test_a_guard_lets_little_pass_that_is_truly_worse(images: int) -> None:
    """Each α truly costs the clean images exactly the margin, the least that is worse."""
    passed, runs, margin = 0, 500, 0.02
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        ids = composite(images, 2)
        clean = conditions_of(ids) == 1
        u = rng.random(len(ids))
        rows = [u < np.where(clean, 0.8, 0.5)]
        for _ in range(6):
            v = np.where(rng.random(len(ids)) < 0.1, rng.random(len(ids)), u)
            rows.append(v < np.where(clean, 0.8 - margin, 0.7))
        objective = Objective("top1", guards=(Guard(1, "top1", margin),))
        passed += objective.allowed({"top1": np.stack(rows)}.__getitem__, ids, "deploy")[1:].any()
    print(f"{images} images: {100 * passed / runs:.1f} % of {runs} runs let one pass")
    assert passed / runs <= 0.05 + 1.645 * np.sqrt(0.05 * 0.95 / runs)


def test_gains_are_those_of_the_objective() -> None:
    sweep = simulated(300, (0.0, 0.3, 0.1), 5, seed=8)
    before, after = sweep.scores[0], sweep.scores[2]
    means = [[s.top1[conditions_of(s.ids) == k].mean() for k in (1, 2, 3)] for s in (before, after)]
    assert Objective("top1").gain(after, before).delta == pytest.approx(np.mean(means[1]) - np.mean(means[0]))
    worst = Objective("top1", "worst").gain(after, before)
    assert worst.delta == pytest.approx(min(means[1]) - min(means[0]))
    assert cross_fitted_gain(sweep.choices(), Objective("top1", "worst")).examples == 300


@pytest.mark.parametrize(
    ("texts", "guards"),
    [
        ((), (Guard(1, "top1"),)),
        (("none",), ()),
        (("clean:top1=0.005",), (Guard(1, "top1", 0.005),)),
        (("blur:loss", "noise:top5=0"), (Guard(3, "loss"), Guard(2, "top5", 0.0))),
    ],
)
def test_guards_are_read(texts: tuple[str, ...], guards: tuple[Guard, ...]) -> None:
    assert parse_guards(texts, NAMES) == guards


@pytest.mark.parametrize(
    "text", ["top1", "clean:", "clean:ece", "cleen:top1", "clean:top1=x", "clean:top1=-1", "clean:top1=nan"]
)
def test_a_guard_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_guards((text,), NAMES)
    with pytest.raises(ConfigurationError):
        parse_guards(("none", "clean:top1"), NAMES)
