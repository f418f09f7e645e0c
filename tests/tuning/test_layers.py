"""Which layers take an α: what each is worth and costs, sets within a budget, and the front of gain by cost."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Run, write_images
from hypothesis import given
from hypothesis import strategies as st
from test_refinement import Data, Split, exact, halves, passes_over
from torch import nn

import alphatune
from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.core.progress import Meter
from alphatune.evaluation.predictor import Predictor
from alphatune.export.counted_costs import BYTES, MACS_PER_BYTE, counted_costs
from alphatune.export.layer_costs import LayerCosts, LayerKind, LayerTimer
from alphatune.norms.patching import get_alpha, patched
from alphatune.results.front import Front
from alphatune.tuning.granularity import Units
from alphatune.tuning.journal import open_journal
from alphatune.tuning.latency import LatencyBudget, find_prices
from alphatune.tuning.layers import LayerPrices, worth_of_layers
from alphatune.tuning.objective import Objective
from alphatune.tuning.tune import TuneResult

#: what α in the layers of ``Split`` costs here
COSTS = {"noisy": 0.2, "telling": 0.1}


def prices(budget: float | None, measure: Any = None, costs: dict[str, float] = COSTS) -> LayerPrices:
    kinds = tuple(LayerKind((name,), (1, 8, 8), cost) for name, cost in costs.items())
    return LayerPrices(LayerCosts(1, 0.01, kinds, 1 + sum(costs.values())), "torch", 1, budget, measure)


def tuned(
    budget: float | None,
    *,
    data: Data | None = None,
    measure: Any = None,
    costs: dict[str, float] = COSTS,
    **settings: Any,
) -> tuple[TuneResult, Front]:
    result = alphatune.tune(
        Split(2.0),
        data or halves(),
        metric="loss",
        alphas="0,0.05,0.1,0.2,0.4",
        latency=prices(budget, measure, costs),
        **settings,
    )
    front = result.refinement.front if result.refinement else None
    assert front is not None
    return result, front


@pytest.mark.parametrize("alphas", [{"noisy": 0.4, "telling": 0.2}, {"noisy": 0.9, "telling": 0.05}])
def test_the_worth_of_all_layers_is_what_alpha_takes_off_the_loss(alphas: dict[str, float]) -> None:
    model, data = Split(2.0), halves(400)
    with patched(model):
        worth = worth_of_layers(
            passes_over(model, data), Objective("loss"), alphas, 1.5, np.arange(400), seed=0
        )
        assert get_alpha(model) == {"noisy": 0.0, "telling": 0.0}
    before, _ = exact(model, data, 0.0, 1.5)
    after, _ = exact(model, data, alphas, 1.5)
    assert sum(worth.values()) == pytest.approx(before.mean() - after.mean(), rel=0.01)
    assert worth["noisy"] > 0 > worth["telling"]


def test_layers_that_take_part_in_no_worth_are_as_unpatched() -> None:
    model, data = Split(2.0), halves(400)
    with patched(model):
        worth = worth_of_layers(
            passes_over(model, data), Objective("loss"), {"noisy": 0.3}, 1.0, np.arange(400), seed=0
        )
    before, after = (exact(model, data, {"noisy": alpha})[0].mean() for alpha in (0.0, 0.3))
    assert worth["noisy"] == pytest.approx(before - after, rel=0.01)


def test_a_layer_that_harms_is_left_out_and_the_other_gets_more() -> None:
    result, front = tuned(None)
    assert front.layers == ("noisy",)
    assert isinstance(result.alpha, dict)
    assert result.alpha["telling"] == 0.0
    everywhere, chosen = front.sets[0], front.sets[front.chosen or 0]
    assert chosen.gain.delta > everywhere.gain.delta
    assert (everywhere.layers, chosen.layers) == ((2, 2), (1, 1))
    assert (everywhere.ratio, chosen.ratio) == (pytest.approx(1.3), pytest.approx(1.2))
    assert front.predicted == pytest.approx(1.2)
    loss, correct = exact(Split(2.0), halves(), result.alpha)
    assert result.chosen.loss == pytest.approx(loss.mean(), abs=1e-6)
    assert result.chosen.top1 == correct.mean()
    assert result.decision.gain == chosen.gain
    assert "α in 1 of 2 layers" in result.decision.reason
    fresh = halves(seed=5)
    assert exact(Split(2.0), fresh, result.alpha)[0].mean() < exact(Split(2.0), fresh, 0.1)[0].mean()


def test_a_budget_that_no_useful_layer_keeps_leaves_the_network_as_it_is() -> None:
    result, front = tuned(1.05)
    assert result.alpha == 0
    assert front.chosen is None
    assert not any(each.within_budget for each in front.sets)
    assert "within the budget" in result.decision.reason


def test_the_cheaper_layer_is_not_taken_for_its_price() -> None:
    """The layer that helps costs more; with a budget for the other one alone nothing is gained."""
    result, front = tuned(1.15)
    assert (result.alpha, front.chosen) == (0, None)
    result, front = tuned(1.25)
    assert front.layers == ("noisy",)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_finer_alphas_are_left_out_of_layers_too(granularity: str) -> None:
    result, front = tuned(1.25, granularity=granularity, rivals="none")
    assert front.layers == ("noisy",)
    assert isinstance(result.alpha, dict)
    assert torch.as_tensor(result.alpha["telling"]).eq(0).all()
    assert torch.as_tensor(result.alpha["noisy"]).gt(0.1).all()


def test_the_set_is_timed_and_shrinks_until_it_keeps_the_budget() -> None:
    """Both layers help; together they keep the budget by what they add up to, but not when they are timed."""
    timed: list[tuple[str, ...]] = []

    def measure(layers: Collection[str]) -> float:
        timed.append(tuple(layers))
        return 1.05 + sum(costs[layer] for layer in layers)

    costs = {"noisy": 0.1, "telling": 0.09}
    data = halves()
    both = [(x[:, :1].repeat(1, 2, 1, 1), y) for x, y in data]

    class Both(Split):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one = (self.noisy(x[:, :1]) * self.pattern).mean((1, 2, 3))
            other = (self.telling(x[:, 1:]) * self.pattern).mean((1, 2, 3))
            logit = self.scale * (one + other)
            return torch.stack([logit, -logit], 1)

    result = alphatune.tune(
        Both(), both, metric="loss", alphas="0,0.05,0.1,0.2,0.4", latency=prices(1.2, measure, costs)
    )
    front = result.refinement.front if result.refinement else None
    assert front is not None
    assert timed[0] == ("noisy", "telling")
    assert len(front.layers) == 1
    assert front.measured == pytest.approx(1.05 + costs[front.layers[0]])
    assert front.measured <= 1.2
    never = prices(1.2, lambda _: 2.0, costs)
    result = alphatune.tune(Both(), both, metric="loss", alphas="0,0.05,0.1,0.2,0.4", latency=never)
    assert result.alpha == 0


def test_where_alpha_costs_nothing_it_may_be_everywhere() -> None:
    _, front = tuned(1.0, costs={"noisy": -0.01, "telling": 0.0})
    assert len(front.sets) == 1
    assert front.sets[0].layers == (2, 2)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3), st.tuples(st.floats(-1, 1), st.floats(-0.1, 1)), max_size=8
    ),
    st.floats(1, 3),
)
def test_what_is_affordable(layers: dict[str, tuple[float, float]], limit: float) -> None:
    """The sum keeps the limit, no layer that harms is taken, and none that is worth more would have fitted instead."""
    found = prices(None, costs={name: cost for name, (_, cost) in layers.items()})
    order = found.in_order({name: worth for name, (worth, _) in layers.items()})
    kept = found.affordable(order, limit)
    assert found.ratio(kept) <= limit + 1e-6
    assert all(layers[name][0] > 0 for name in kept)
    for place, name in enumerate(order):
        if name not in kept:
            before = [each for each in order[:place] if each in kept]
            assert found.ratio([*before, name]) > limit


def test_units_of_some_layers() -> None:
    layers = (("a", range(2)), ("b", range(2, 5)), ("c", range(5, 6)))
    part = Units("channel", layers, ("a", "b", "c")).only(("c", "a"))
    assert part.layers == (("a", range(2)), ("c", range(2, 3)))
    assert part.names == ("a", "c")
    staged = Units("stage", (("a", range(1)), ("b", range(1)), ("c", range(1, 2))), ("one", "two"))
    assert staged.only(("b", "c")).layers == (("b", range(1)), ("c", range(1, 2)))
    assert staged.only(("c",)) == Units("stage", (("c", range(1)),), ("two",))


def test_costs_are_counted() -> None:
    """One convolution bound by arithmetic, one by memory."""
    model = nn.Sequential(
        nn.Conv2d(4, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64),
        nn.Conv2d(64, 64, 1, groups=64, bias=False), nn.BatchNorm2d(64),
    ).eval()  # fmt: skip
    costs = counted_costs(model, {"1": (64, 8, 8), "3": (64, 8, 8)}, (4, 8, 8), batch_size=2)
    first = max(64 * 64 * 36 / MACS_PER_BYTE, BYTES * (4 * 64 + 64 * 64 + 64 * 36 / 2))
    second = max(64 * 64 / MACS_PER_BYTE, BYTES * (2 * 64 * 64 + 64 / 2))
    assert costs.of("1") == costs.of("3") == pytest.approx(3 * BYTES * 64 * 64 / (first + second))
    assert costs.everywhere == costs.ratio(["1", "3"]) == pytest.approx(1 + 2 * costs.of("1"))
    with pytest.raises(UnsupportedModelError, match="no convolution"):
        counted_costs(nn.Sequential(nn.BatchNorm2d(4)).eval(), {"0": (4, 8, 8)}, (4, 8, 8), 1)


def test_a_run_that_goes_on_keeps_its_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sets of layers depend on them, and another timing would give others."""
    from tiny import tiny

    model = tiny().eval()
    journal = open_journal(tmp_path / "resume", {"job": 1}, resume=True, minutes=0.0)
    shapes = {"bn1": (8, 12, 12), "bn2": (8, 6, 6)}
    budget = LatencyBudget(1.1, seconds=0.01)

    def found() -> LayerPrices:
        return find_prices(
            Predictor(model), shapes, (3, 12, 12), budget, world=World(), journal=journal, meter=Meter()
        )

    first = found()
    journal.write_due()
    monkeypatch.setattr(LayerTimer, "costs", lambda *_, **__: pytest.fail("timed again"))
    again = found()
    assert again.costs == first.costs
    assert first.costs.of("bn1") != first.costs.of("bn2")
    assert again.measure is not None
    assert again.measure(["bn1"]) > 0


@pytest.mark.parametrize("budget", [0.9, 0.0, float("nan"), float("inf"), -1.0])
def test_a_budget_below_the_folded_network_is_refused(budget: float) -> None:
    with pytest.raises(ConfigurationError, match="latency_budget"):
        LatencyBudget(budget)


def test_vectors_have_no_images_to_time() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    data = [(torch.randn(100, 6), torch.randint(2, (100,))) for _ in range(2)]
    with pytest.raises(ConfigurationError, match=r"images \(N, C, H, W\)"):
        alphatune.tune(model, data, alphas="0,0.1", latency=LatencyBudget(1.1))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many"), per_class=40)


@pytest.fixture
def command(images: Path, tmp_path: Path) -> list[str]:
    return [
        "tune", TINY, "--no-pretrained", "--data", str(images), "--input-size", "12", "--crop-pct", "1", "--mean", "0.5",
        "--std", "0.5", "--metric", "loss", "--alphas", "0,0.1,0.3", "--format", "json", "--thumbnails", "1",
        "--output", str(tmp_path / "tuned"), "--workers", "0",
    ]  # fmt: skip


def test_the_command_leaves_layers_out(run: Run, command: list[str], tmp_path: Path) -> None:
    code, out, err = run(*command, "--latency-budget", 1.5, "--runtime", "counted", "--accept", "best")
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    front = document["refinement"]["front"]
    assert (front["runtime"], front["threads"], front["budget"]) == ("counted", 0, 1.5)
    assert front["sets"][0]["layers"] == [2, 2]
    assert front["sets"][0]["ratio"] > 1.5
    report = (tmp_path / "tuned" / "report.md").read_text()
    assert "## Gain by cost" in report
    assert "The budget is 1.5." in report
    assert "Gain by cost" in (tmp_path / "tuned" / "report.html").read_text()
    if front["chosen"] is not None:
        assert front["predicted"] <= 1.5
        alphas = document["chosen"]["alpha"]
        assert {name for name, alpha in alphas.items() if alpha} <= set(front["layers"])


def test_layers_auto_times_them(run: Run, command: list[str]) -> None:
    code, out, err = run(*command, "--layers", "auto", "--layers", "bn*")
    assert code == 0, err
    front = json.loads(out)["refinement"]["front"]
    assert (front["runtime"], front["budget"], front["batch_size"]) == ("torch", None, 1)
    assert front["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--latency-budget", "0.5"], "--latency-budget"),
        (["--runtime", "counted"], "--runtime counted"),
        (["--layers", "auto", "--layers", "bn9"], "'bn9' matches no norm layer"),
    ],
)
def test_what_is_refused(run: Run, command: list[str], words: list[str], said: str) -> None:
    code, out, err = run(*command, *words)
    assert code == 2
    assert said in json.loads(out)["error"]["message"] + err


def test_a_score_of_ones_own_does_not_choose_layers(run: Run) -> None:
    code, _, err = run(
        "tune",
        TINY,
        "--no-pretrained",
        "--data",
        "my.py:loader",
        "--score",
        "my.py:score",
        "--layers",
        "auto",
    )
    assert code == 2
    assert "--layers auto" in err
    assert "--score" in err
