"""Descents over conditions: equal weight, the worst of them, and guards that have a price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conditioned import Conditioned, conditioned
from test_refinement import Split, halves
from torch import nn

from alphatune.core.progress import Meter, as_meter
from alphatune.data.custom_loader import LoaderBatches
from alphatune.evaluation.predictor import Predictor
from alphatune.norms.patching import patch_, set_alpha_
from alphatune.statistics.conditions import conditions_of, example_ids, images_of
from alphatune.tuning import descent
from alphatune.tuning.condition_weights import ConditionWeights, StepLosses, is_within
from alphatune.tuning.descent import Fit, descend
from alphatune.tuning.granularity import units_of
from alphatune.tuning.journal import open_journal
from alphatune.tuning.objective import Guard, Objective


def opposed(n: int = 400, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two conditions of the same images: one is better for a large α, one for α = 0."""
    x, y = (torch.cat(part) for part in zip(*halves(n, seed), strict=True))
    noisy, telling = x.clone(), x.clone()
    noisy[:, 1], telling[:, 0] = 0, 0
    return [(noisy, y), (telling, y)]


def network() -> Split:
    model = Split(2.0)
    patch_(model)
    return model


def fitted(
    data: Any, objective: Objective | None = None, model: nn.Module | None = None, **options: Any
) -> Fit:
    model = model or network()
    start = torch.tensor([0.1], dtype=torch.float64)
    units = units_of(model, "global", torch.zeros(1, 2, 8, 8))
    settings: Any = {"prior": 0.1, "temperature": False, "seed": 0} | options
    return descend(
        Predictor(model),
        data,
        np.arange(len(data)),
        units,
        start,
        objective=objective or Objective("loss"),
        **settings,
    )


@torch.no_grad()
def losses(alpha: float, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    model = network()
    set_alpha_(model, alpha)
    return [float(nn.functional.cross_entropy(model(x), y)) for x, y in parts]


def test_conditions_weigh_the_same_whatever_their_number_of_examples() -> None:
    ids = np.concatenate([example_ids(1, np.arange(30)), example_ids(2, np.arange(10))])
    weights = ConditionWeights.begin(Objective("loss"), ids)
    values = np.random.default_rng(0).normal(size=40)
    weighted = (weights.of_losses(ids) * values).mean()
    assert weighted == pytest.approx((values[:30].mean() + values[30:].mean()) / 2)
    weights.see(StepLosses(ids, np.abs(values), ()))
    weights.end_step()
    assert list(weights.weights.values()) == pytest.approx([0.5, 0.5])


def test_a_gradient_is_that_of_the_mean_over_conditions() -> None:
    model, parts = network(), opposed(60)
    data = conditioned([parts[0], (parts[1][0][:20], parts[1][1][:20])])
    units = units_of(model, "layer", data.x)
    problem = descent._Problem(Predictor(model), data, np.arange(0), units, "loss", False, Meter())
    conditions = ConditionWeights.begin(Objective("loss"), data.ids)
    state = descent._State.begin(torch.tensor([-1.0, -2.0], dtype=torch.float64), False, conditions)
    for batch in data:
        descent._backward(problem, state, batch, 1 / len(data))
    theta = state.theta.detach().requires_grad_()
    with units.differentiable(model, theta):
        means = [
            nn.functional.cross_entropy(model(x), y)
            for x, y in (
                data.x[:60].split(60) + data.x[60:].split(20)
                and zip((data.x[:60], data.x[60:]), (data.y[:60], data.y[60:]), strict=True)
            )
        ]
    (wanted,) = torch.autograd.grad(sum(means) / 2, theta)  # type: ignore[arg-type]
    torch.testing.assert_close(state.theta.grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("few", [1, 2])
def test_a_condition_of_few_examples_is_heard(few: int) -> None:
    """α of 400 examples beside 100 is near that of equal numbers, not near what the many want."""
    parts = opposed(400)
    one_sided = [(x[:100], y[:100]) if k == few else (x, y) for k, (x, y) in enumerate(parts, 1)]
    only = fitted(conditioned([parts[2 - few]])).values[0]
    equal, unequal = fitted(conditioned(parts)).values[0], fitted(conditioned(one_sided)).values[0]
    assert abs(unequal - equal) < abs(only - equal) / 3


def test_the_worst_condition_is_moved_towards() -> None:
    """The mean gives up a hard condition for an easy one; the worst of them does not."""
    (noisy, y), (telling, _) = opposed(800)
    parts = [(0.25 * noisy, y), (0.35 * telling, y)]  # the harder one wants a large α
    data = conditioned(parts)
    mean, worst = fitted(data).values[0], fitted(data, Objective("loss", over="worst")).values[0]
    assert max(losses(worst, parts)) < max(losses(mean, parts)) - 0.05
    assert np.mean(losses(mean, parts)) < np.mean(losses(worst, parts))


def test_weights_follow_the_losses() -> None:
    """Algorithm 1 of Sagawa et al. 2020 with a fixed share of Herbster & Warmuth 1998, transcribed."""
    ids = np.concatenate([example_ids(k, np.arange(5)) for k in (1, 2, 3)])
    values = np.random.default_rng(0).random(15)
    weights = ConditionWeights.begin(Objective("loss", over="worst"), ids)
    q = np.full(3, 1 / 3)
    for _ in range(2):
        weights.see(StepLosses(ids[:7], values[:7], ()))
        weights.see(StepLosses(ids[7:], values[7:], ()))
        weights.end_step()
        q = q * np.exp(values.reshape(3, 5).mean(1))
        q = 0.9 * q / q.sum() + 0.1 / 3
    assert list(weights.weights.values()) == pytest.approx(q.tolist())


@pytest.mark.parametrize(("metric", "margin"), [("loss", 0.02), ("top1", 0.01)])
def test_a_guard_keeps_its_condition_within_the_margin(metric: Any, margin: float) -> None:
    data = conditioned(opposed(800))
    fresh = opposed(2000, seed=9)
    free = fitted(data)
    guarded = fitted(data, Objective("loss", guards=(Guard(2, metric, margin),)))

    @torch.no_grad()
    def cost(alpha: float) -> float:
        model, (x, y) = network(), fresh[1]
        values = []
        for each in (alpha, 0.0):
            set_alpha_(model, each)
            values.append(float(descent.smooth_objective(model(x), y, metric, 1.0).mean()))
        return values[0] - values[1]

    assert cost(free.values[0]) > margin + 0.02
    assert cost(guarded.values[0]) < margin + 0.01
    assert guarded.within


def test_a_guard_that_nothing_meets_leaves_the_start() -> None:
    model = network()
    data = conditioned(opposed(200))
    fit = fitted(data, Objective("loss", guards=(Guard(2, "loss", -5.0),)), model)  # five nats better
    assert (fit.values, fit.steps, fit.within) == ((0.1,), 0, False)


def test_within_is_one_standard_error() -> None:
    costs = np.array([0.0, 0.2, 0.0, 0.2])  # mean 0.1, standard error 0.0577
    assert is_within(Guard(1, "loss", 0.05), costs)
    assert not is_within(Guard(1, "loss", 0.04), costs)
    assert not is_within(Guard(1, "loss"), costs)


def test_what_is_outside_a_guard_beats_nothing() -> None:
    good, better = Fit((0.1,), 1.0, 0, 1.0), Fit((0.2,), 1.0, 8, 0.5)
    outside = Fit((0.3,), 1.0, 16, 0.1, within=False)
    assert better.beats(good)
    assert not good.beats(better)
    assert good.beats(outside)
    assert not outside.beats(good)


def test_images_are_held_out_under_all_of_their_conditions() -> None:
    parts = opposed(100)
    data = conditioned([*parts, (parts[0][0][:30], parts[0][1][:30])])
    positions = np.arange(5, len(data))
    stopping, fitting, ids = descent._parted(data, positions, 3)
    assert ids is data.ids
    assert sorted([*stopping, *fitting]) == positions.tolist()
    assert not set(images_of(data.ids[stopping])) & set(images_of(data.ids[fitting]))
    assert set(images_of(data.ids[stopping])).__len__() == 20
    assert (np.diff(stopping) > 0).all()
    again = descent._parted(data, positions, 4)[0]
    assert again.tolist() != stopping.tolist()


def test_data_sets_that_share_no_image_are_each_held_out_from() -> None:
    x, y = (torch.cat(part) for part in zip(*halves(300), strict=True))
    ids = np.concatenate([example_ids(1, np.arange(200)), example_ids(2, np.arange(200, 300))])
    stopping, _, _ = descent._parted(Conditioned(x, y, ids), np.arange(300), 0)
    held = conditions_of(ids[stopping])
    assert len(held) == 60
    assert (held == 2).sum() == pytest.approx(20, abs=1)


def test_every_step_sees_every_condition() -> None:
    data = conditioned(opposed(200))
    _, fitting, ids = descent._parted(data, np.arange(len(data)), 0)
    assert ids is not None
    plan = descent._plan(fitting, 0, (51, 48), conditions_of(ids[fitting]))
    for rows in plan:
        second = (conditions_of(ids[rows]) == 2).mean()
        assert second == pytest.approx(0.5, abs=2 / len(rows))
    seen = np.unique(np.concatenate(plan), return_counts=True)
    assert seen[0].tolist() == np.sort(fitting).tolist()
    assert np.ptp(seen[1]) <= 1


def test_plain_ids_are_no_conditions() -> None:
    x, y = (torch.cat(part) for part in zip(*halves(300), strict=True))
    plain = LoaderBatches(list(zip(x.split(100), y.split(100), strict=True)), torch.device("cpu"))
    assert fitted(Conditioned(x, y, np.arange(300)), Objective("loss", "worst")) == fitted(plain)


class Stop(Exception):
    pass


@pytest.mark.parametrize("temperature", [False, True])
def test_a_guarded_descent_goes_on_to_the_same_result(temperature: bool, tmp_path: Path) -> None:
    data = conditioned(opposed(400))
    objective = Objective("loss", "worst", (Guard(2, "loss", 0.01), Guard(2, "top1", 0.01)))
    whole = fitted(data, objective, temperature=temperature)

    def stop(done: int, _: int | None) -> None:
        if done > 2300:
            raise Stop

    journal = open_journal(tmp_path / "j", {"seed": 0}, resume=False, minutes=0)
    with pytest.raises(Stop):
        fitted(data, objective, temperature=temperature, journal=journal.entry("a"), meter=as_meter(stop))
    again = open_journal(tmp_path / "j", {"seed": 0}, resume=True, minutes=0).entry("a")
    saved = again.read()
    assert saved is not None
    assert saved["step"] > 0
    assert saved["conditions"]["prices"] != [0, 0]
    assert fitted(data, objective, temperature=temperature, journal=again) == whole
