"""How small a gain some images can tell from luck: against published numbers, by all outcomes, and by the tool itself."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Run
from made_up_results import typed, written
from numpy.typing import NDArray
from scipy import stats
from score_population import BEST, Examples, Population, Sharpened, scored
from test_honest_statistics import POPULATIONS, Drawn, MadeUp, all_choose
from torch import nn

from alphatune.core.distributed import World
from alphatune.core.metrics import INFO, Metric
from alphatune.core.progress import Meter
from alphatune.evaluation.predictor import Predictor
from alphatune.reports.measured_power import score_power, tune_power
from alphatune.reports.power import gain_text, needed_rows, power_sentence
from alphatune.results.gain import Gain
from alphatune.results.power import Choice
from alphatune.statistics.calibration_error import expected_calibration_error
from alphatune.statistics.gain import per_example
from alphatune.statistics.gain_table import images_for, planned_power
from alphatune.statistics.power import (
    POWER,
    Spread,
    calibration_spread,
    connor,
    examples_needed,
    mcnemar_power,
    share_spread,
    smallest_gain,
    spread_of,
)
from alphatune.tuning.confirmation import search_and_confirm
from alphatune.tuning.custom_score import tune_score
from alphatune.tuning.objective import Objective
from alphatune.tuning.tune import tune

# --- the formulas ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "worse", "pairs"),
    [
        (0.45, 0.05, 23),  # powerandsamplesize.com, after Connor 1987
        (0.30, 0.15, 155),  # another calculator, with a power of 80.1 %
    ],
)
def test_published_sizes_of_mcnemars_test(better: float, worse: float, pairs: int) -> None:
    assert np.ceil(connor(better + worse, better - worse)) == pairs


@pytest.mark.parametrize(("n", "discordant", "gain"), [(100, 0.1, 0.06), (60, 0.05, 0.05), (200, 0.1, 0.05)])
def test_power_of_the_exact_test_by_all_outcomes(n: int, discordant: float, gain: float) -> None:
    better, power = (discordant + gain) / (2 * discordant), 0.0
    for m in range(n + 1):
        if (chance := stats.binom.pmf(m, n, discordant)) > 1e-12:
            found = (b for b in range(m // 2 + 1, m + 1) if stats.binomtest(b, m).pvalue <= 0.05)
            power += chance * sum(stats.binom.pmf(b, m, better) for b in found)
    assert mcnemar_power(n, discordant, gain) == pytest.approx(power, abs=1e-8)


def test_the_exact_test_and_the_normal_distribution_agree_on_many() -> None:
    for discordant, gain in ((0.05, 0.005), (0.1, 0.01), (0.3, 0.02)):
        n = connor(discordant, gain)
        assert mcnemar_power(round(n), discordant, gain) == pytest.approx(POWER, abs=0.02)
        assert mcnemar_power(round(n + 1 / gain), discordant, gain) == pytest.approx(POWER, abs=0.005)


@pytest.mark.parametrize("spread", [Spread(0.1, 0.01), Spread(0.25, 0.06), Spread(0.5), share_spread(0, 0)])
@pytest.mark.parametrize("choice", ["cross-fitted", "part", "progressive", "halves"])
def test_so_many_examples_and_so_small_a_gain_belong_together(spread: Spread, choice: Choice) -> None:
    for n in (200, 3000, 400_000):
        gain = smallest_gain(spread, n, choice)
        assert examples_needed(spread, gain, choice) == pytest.approx(n, rel=0.03)
        assert smallest_gain(spread, 4 * n, choice) < gain
        assert smallest_gain(spread, n, choice, confidence=0.99) > gain


def test_what_few_examples_cannot_tell() -> None:
    assert smallest_gain(Spread(0.1, 0.01), 4, "halves") == 1.0  # of 4 that turn all may do so by luck
    assert smallest_gain(Spread(0.0, 0.0), 100, "halves") == pytest.approx(0.078, abs=0.002)
    assert smallest_gain(Spread(0.0), 100, "halves") == 0.0


def test_noise_hides_a_gain_in_calibration() -> None:
    """What is added to the deviation is the ECE that a network has by chance alone."""
    rng, calibrated = np.random.default_rng(0), Sharpened((1.0, 1.0), alphas=(0.0, 0.1))
    many = [calibrated.draw(1000, rng).baseline for _ in range(40)]
    by_chance = float(np.mean([expected_calibration_error(s.confidence, s.top1) for s in many]))
    whole = calibrated.draw(40_000, rng).baseline
    same = (whole.confidence, whole.top1)
    stated = smallest_gain(
        calibration_spread(same, same), 1000, "halves"
    )  # nothing differs: the noise is left
    assert stated == pytest.approx(by_chance, rel=0.15)


# --- the tool itself -------------------------------------------------------------------------


@dataclass(frozen=True)
class Peaked(Population):
    """A population whose gain is lost again: it rises as t·(1 − ln t), t = α/0.05, and is a loss from 0.136 on."""

    def logits(self, examples: Examples, alpha: float) -> NDArray[np.float32]:
        phi, t = self.turn * alpha / 0.3, alpha / BEST
        z: NDArray[np.float32] = examples.u * np.float32(np.cos(phi)) + examples.v * np.float32(np.sin(phi))
        rise = self.effect * t * (1 - np.log(t)) if t else 0.0
        z[np.arange(len(z)), examples.targets] += examples.margin + np.float32(rise)
        return z * examples.sureness[:, None]


def peaked(name: str) -> Peaked:
    if name == "too sure":  # as real networks are: the deviation of the loss is 0.7, and 6 % turn
        return Peaked(sureness=5.0, margin=2.0, turn=1.0)
    return Peaked(**vars(POPULATIONS[name]))


def at_best(population: Peaked, metric: Metric, parts: int) -> NDArray[np.float64]:
    """Paired differences of very many examples at the best α."""
    rng, found = np.random.default_rng(77), []
    for _ in range(parts):
        examples = population.examples(50_000, rng)
        after, before = (
            scored(population.logits(examples, alpha), examples.targets) for alpha in (BEST, 0.0)
        )
        found.append(per_example(after, metric) - per_example(before, metric))
    return np.concatenate(found)


CHOICES: dict[str, Choice] = {"list": "cross-fitted", "search": "part"}


def at_the_stated_gain(population: Peaked, metric: Metric, n: int, by: str, parts: int) -> Peaked:
    """The population whose true gain is the smallest that n examples are said to tell from luck."""
    low, high, share = 0.0, 1.0, INFO[metric].is_share
    for _ in range(12):
        effect = (low + high) / 2
        difference = at_best(replace(population, effect=effect), metric, parts)
        stated = smallest_gain(spread_of(difference, share), n, CHOICES[by])
        low, high = (effect, high) if difference.mean() < stated else (low, effect)
    return replace(population, effect=high)


def found_in(population: Peaked, metric: Metric, n: int, by: str, runs: int) -> float:
    """In which share of runs the tool calls the gain significant."""
    return float(np.mean([_gain(population, metric, n, by, seed).significant for seed in range(runs)]))


def _gain(population: Peaked, metric: Metric, n: int, by: str, seed: int) -> Gain:
    rng = np.random.default_rng((n, seed))
    if by == "list":
        return all_choose(population.draw(n, rng), metric, seed).gain
    examples = population.examples(n, rng)
    data, model = Drawn(examples.targets.astype(np.int64)), Predictor(nn.Identity())
    passes = MadeUp(model, data, 0.0, World(), Meter(), None, population, examples)  # type: ignore[arg-type]
    return search_and_confirm(passes, Objective(metric), False, 0.002, 0.05, seed, 0.3)[2]


def test_the_tool_finds_the_gain_that_is_stated() -> None:
    """In 80 %; of 60 runs the standard error is 5 points."""
    population = at_the_stated_gain(peaked("ordinary"), "top1", 400, "list", parts=1)
    assert 0.8 - 0.2 <= found_in(population, "top1", 400, "list", 60) <= 0.8 + 0.16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "by", "n"),
    [
        ("ordinary", "top1", "list", 700),
        ("ordinary", "loss", "list", 700),
        ("ordinary", "top1", "search", 2000),
        ("ordinary", "loss", "search", 2000),
        ("ordinary", "loss", "search", 4000),
        ("ordinary", "top1", "search", 20_000),
        ("few changes, heavy tails", "top1", "list", 2500),
        ("few changes, heavy tails", "top1", "search", 5000),
        ("few changes, heavy tails", "loss", "search", 2000),
        ("too sure", "top1", "search", 2000),
        ("too sure", "loss", "list", 700),
        ("too sure", "loss", "search", 2000),
    ],
)
def test_the_stated_gain_in_many_runs(name: str, metric: Metric, by: str, n: int) -> None:
    """80 %, give or take 10 points from one kind of network to another."""
    population = at_the_stated_gain(peaked(name), metric, n, by, parts=4)
    share = found_in(population, metric, n, by, 400)
    print(f"| {name} | {metric} | {by} | {n} | {100 * share:.1f} % |", flush=True)
    assert 0.7 <= share <= 0.91


# --- what a result says ----------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    ).eval()


def images(n: int = 200) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [(torch.randn(50, 3, 6, 6, generator=rng), torch.arange(50) % 3) for _ in range(n // 50)]


@pytest.mark.parametrize("metric", ["top1", "top5", "loss", "ece"])
@pytest.mark.parametrize("accept", ["best", "significant"])
def test_every_result_says_it(metric: Metric, accept: str) -> None:
    result = tune(network(), images(), alphas="0,0.2,0.6", metric=metric, accept=accept)  # type: ignore[arg-type]
    power = tune_power(result)
    assert power is not None
    assert (power.metric, power.examples, power.choice, power.known) == (
        metric,
        200,
        "cross-fitted",
        "measured",
    )
    assert power.alpha in (0.2, 0.6)
    place = result.sweep.alphas.index(power.alpha)
    after, before = result.sweep.scores[place], result.sweep.baseline
    if metric == "ece":
        spread = calibration_spread((after.confidence, after.top1), (before.confidence, before.top1))
    else:
        spread = spread_of(per_example(after, metric) - per_example(before, metric), INFO[metric].is_share)
    assert power.deviation == pytest.approx(spread.deviation, rel=1e-3, abs=1e-9)
    assert power.discordant == (spread.discordant and pytest.approx(spread.discordant, rel=1e-6))
    assert power.smallest_gain == pytest.approx(
        smallest_gain(spread, 200, "cross-fitted"), rel=1e-3, abs=1e-9
    )


def test_after_a_search_that_kept_the_model() -> None:
    """The curve tells how much images differ, although nothing was measured at any α on all of them."""
    for metric in ("top1", "ece"):
        power = tune_power(tune(network(), images(1000), metric=metric))  # type: ignore[arg-type]
        assert power is not None
        assert power.choice == "part"
        assert power.deviation > 0


def test_finer_alpha_and_too_few_images() -> None:
    finer = tune_power(
        tune(network(), images(), alphas="0,0.2", metric="loss", granularity="layer", temperature=True)
    )
    assert finer is not None
    assert finer.choice in ("halves", "cross-fitted")
    few = [(torch.randn(10, 3, 6, 6), torch.arange(10) % 3)]
    assert tune_power(tune(network(), few, alphas="0,0.2")) is None
    assert tune_power(tune(network(), images(), alphas="0")) is None


def test_a_score_of_ones_own() -> None:
    def right(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) == targets).float()

    def near(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -outputs.square().mean(1)

    counted = score_power(tune_score(network(), images(), right, alphas=[0, 0.4]))
    measured = score_power(tune_score(network(), images(), near, alphas=[0, 0.4]))
    assert counted is not None
    assert measured is not None
    assert counted.discordant is not None
    assert measured.discordant is None
    assert measured.smallest_gain > 0
    assert score_power(tune_score(network(), images(), near, alphas=[0])) is None


def test_the_sentence() -> None:
    document = typed(written("tune"))
    assert power_sentence(document) == ""  # an earlier version did not know
    (power,) = planned_power("top1", 2000, "cross-fitted", None, None)[:1]
    sentence = power_sentence(replace_power(document, power))
    assert sentence.startswith("With 2 000 images, a gain of 0.")
    assert "points in top-1 has an 80 % chance of being found significant; a gain of 0." in sentence
    assert sentence.endswith("000.")
    assert gain_text("top1", 0.01) == "1 point"
    assert gain_text("top1", 0.00561) == "0.57 points"  # never less than it takes
    assert gain_text("loss", 0.0123) == "0.013 nats"


def replace_power(document: object, power: object) -> object:
    from msgspec.structs import replace as with_fields

    return with_fields(document, power=power)  # type: ignore[type-var]


# --- before a run ----------------------------------------------------------------------------


def test_a_plan_says_what_is_assumed_or_was_measured() -> None:
    assumed = planned_power("top1", 5000, "cross-fitted", None, 0.003)
    assert [power.known for power in assumed] == ["assumed", "assumed"]
    assert assumed[0].smallest_gain < assumed[1].smallest_gain
    assert [each.gain for each in assumed[0].needed] == [0.001, 0.002, 0.003, 0.005, 0.01]
    assert all(images_for(assumed[0], each.gain) == each.examples for each in assumed[0].needed)
    rows = dict(needed_rows(assumed))
    assert " to " in rows["0.3 points"]
    (known,) = planned_power("top1", 1000, "cross-fitted", assumed[1], None)
    assert (known.known, known.discordant, known.examples) == ("earlier result", assumed[1].discordant, 1000)
    assert planned_power("score", 100, "cross-fitted", None, None) == ()


COMMON = ("--input-size", "12", "--crop-pct", "1", "--mean", "0.5", "--std", "0.25", "--workers", "0")


def test_the_command(run: Run, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    words = ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, *COMMON,
             "--alphas", "0,0.3", "-o", tmp_path / "out"]  # fmt: skip
    code, stdout, _ = run(*words, "--plan", "--min-gain", "0.004")
    assert code == 0
    assert not (tmp_path / "out").exists()
    text = " ".join(stdout.split())
    assert text.count("0.4 points") == 1  # in the table
    assert "80 % chance" in text
    command = text.partition("Next:")[2]
    assert shlex.split(command)[:2] == ["alphatune", "tune"]
    assert "--plan" not in command
    assert "Assumed" in text
    assert "plain evaluations" in text
    _, stdout, _ = run(*words, "--dry-run", "--format", "json")
    plan = json.loads(stdout)
    assert plan["work"]["evaluations"] == [2, 2]
    assert plan["work"]["seconds"][0] > 0
    assert len(plan["power"]) == 2
    # What was measured takes the place of what was assumed; of other images it says nothing.
    assert run(*words)[0] == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text())["power"]
    again = [*words, "--plan", "--overwrite", "--format", "json"]
    (power,) = json.loads(run(*again)[1])["power"]
    assert power["known"] == "earlier result"
    assert power["deviation"] == found["deviation"]
    assert len(json.loads(run(*again, "--metric", "loss")[1])["power"]) == 2
    searched = json.loads(run(*again[:-4], "--plan", "--overwrite", "--granularity", "layer", "--temperature",
                              "--recalibrate", image_folder, "--batch-stats", "--format", "json")[1])  # fmt: skip
    names = [phase["name"] for phase in searched["work"]["phases"]]
    assert "measuring moving averages" in names
    assert "descent: layer" in names
    assert "batch statistics" in names


def test_a_result_of_a_search_in_lots_still_says_what_a_gain_needs() -> None:
    """Earlier versions wrote ``progressive``; a report on such a folder is made anew."""
    (power,) = planned_power("loss", 5000, "progressive", None, None)[:1]
    assert images_for(power, power.smallest_gain) == pytest.approx(5000, rel=0.01)
