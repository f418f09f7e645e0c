"""What is called significant without an effect, and how often an interval holds what choosing α is worth.

Examples are drawn anew in each run from populations whose true worth is known (score_population.py): α is chosen
over the whole grid, and its gain measured, as in a tune. "Worth" is that of the choices made: the mean, over the
folds or lots, of the true gain of the α that each was scored at. It is computed from 2 000 000 independent examples.

``pytest tests/statistics/test_honest_statistics.py -m slow -s`` prints the tables of docs/benchmarks/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import TypeVar

import numpy as np
import pytest
import torch
from msgspec import structs
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.special import xlogy
from score_population import Examples, Population, Sharpened, scored
from torch import nn

from alphatune.core.distributed import World
from alphatune.core.metrics import INFO, Metric
from alphatune.core.progress import Meter
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import Predictor
from alphatune.norms.patching import Alpha
from alphatune.results.gain import Gain
from alphatune.statistics.calibration_error import expected_calibration_error
from alphatune.statistics.gain import CONFIDENCE, paired_gain
from alphatune.statistics.intervals import mean_interval, proportion_interval
from alphatune.statistics.scores import Scores, concatenate
from alphatune.statistics.selection_bias import Limits, limits_of_choosing
from alphatune.tuning.confirmation import search_and_confirm
from alphatune.tuning.objective import Objective
from alphatune.tuning.ordering import stratified_order
from alphatune.tuning.passes import Passes
from alphatune.tuning.search import CHOOSING
from alphatune.tuning.selection import Confirmed, cross_fitted_gain, select_by_score
from alphatune.tuning.sweep import Sweep
from alphatune.tuning.temperature import TemperatureScores, score_temperatures

T = TypeVar("T")
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))

POPULATIONS = {
    # 13 % of the predictions change up to α = 0.3, 2 % up to 0.05
    "ordinary": Population(),
    # 1 % change up to 0.3; losses are heavy-tailed (kurtosis of their differences over 60)
    "few changes, heavy tails": Population(margin=3.5, sureness=4, tail=0.7, turn=0.1),
    # what no network does: every α draws anew whether it helps an example
    "unrelated α": Population(rough=True, turn=1.2),
}
EFFECTS = {"small": 0.02, "medium": 0.1, "large": 0.3}
MEANS: tuple[Metric, ...] = ("loss", "top1")


@cache
def true_gains(population: Population, parts: int) -> dict[str, NDArray[np.float64]]:
    """By metric, of each α: means over 50 000 independent examples in each of the parts."""
    rng, totals = np.random.default_rng(987), dict.fromkeys(MEANS, np.zeros(len(population.alphas)))
    for _ in range(parts):
        sweep = population.draw(50_000, rng)
        for metric in MEANS:
            totals[metric] = totals[metric] + [signed_mean(scores, metric) for scores in sweep.scores]
    return {metric: (total - total[0]) / parts for metric, total in totals.items()}


def signed_mean(scores: Scores, metric: Metric) -> float:
    mean = float(getattr(scores, metric).mean(dtype=np.float64))
    return INFO[metric].sign * mean


@dataclass(frozen=True)
class Chosen:
    """A gain, and what was chosen: the α at which parts of the examples were scored, and the one to deploy."""

    gain: Gain
    alphas: tuple[float, ...]
    shares: tuple[float, ...]
    alpha: float


def all_choose(sweep: Sweep, metric: Metric, seed: int) -> Chosen:
    """As with a list of α."""
    choices = sweep.choices()
    gain = cross_fitted_gain(choices, metric, seed=seed)
    return Chosen(gain, gain.fold_alphas, (1,) * gain.folds, choices.best(Objective(metric)))


def a_part_chooses(sweep: Sweep, metric: Metric, seed: int) -> Chosen:
    """As after a search, of an exact grid."""
    n = len(sweep.baseline)
    order = stratified_order(sweep.baseline.targets.astype(np.int64), seed)
    choosing, others = np.sort(order[: int(CHOOSING * n)]), np.sort(order[int(CHOOSING * n) :])
    choices = Sweep(sweep.alphas, tuple(scores.take(choosing) for scores in sweep.scores)).choices()
    alpha = choices.best(Objective(metric))
    after = sweep.scores[sweep.alphas.index(alpha)].take(others)
    chosen = sweep.scores[sweep.alphas.index(alpha)].take(choosing)
    confirmed = Confirmed(alpha, chosen, sweep.baseline.take(others), after)
    gain = cross_fitted_gain(choices, metric, confirmed=confirmed, seed=seed)
    shares = (*[CHOOSING / gain.folds] * gain.folds, 1 - CHOOSING)
    return Chosen(gain, (*gain.fold_alphas, alpha), shares, alpha)


SCHEMES: dict[str, Callable[[Sweep, Metric, int], Chosen]] = {
    "all choose": all_choose,
    "a part chooses": a_part_chooses,
}


@dataclass(frozen=True)
class Counts:
    """Of some runs in one setting."""

    runs: int
    significant: int
    too_high: int  # the interval lies above the worth of the choices
    too_low: int
    deployed: int  # the interval holds the true gain of the α that is best on all examples
    width: float

    @property
    def covered(self) -> int:
        return self.runs - self.too_high - self.too_low

    def __str__(self) -> str:
        shares = (self.significant, self.covered, self.too_high, self.too_low, self.deployed)
        return " | ".join(f"{100 * share / self.runs:.1f} %" for share in shares) + f" | {self.width:.4f}"


def simulate(
    population: Population,
    n: int,
    runs: int,
    metrics: Sequence[Metric] = MEANS,
    schemes: Sequence[str] = tuple(SCHEMES),
    parts: int = 40,
) -> dict[tuple[str, Metric], Counts]:
    """Draw, choose and measure again and again; the same examples for all schemes and metrics."""
    none = np.zeros(len(population.alphas))
    truth = true_gains(population, parts) if population.effect else dict.fromkeys(metrics, none)
    found: dict[tuple[str, Metric], list[tuple[float, ...]]] = {}
    for seed in range(runs):
        sweep = population.draw(n, np.random.default_rng((n, seed)))
        for scheme, metric in product(schemes, metrics):
            chosen = SCHEMES[scheme](sweep, metric, seed)
            place = [sweep.alphas.index(alpha) for alpha in chosen.alphas]
            worth = float(np.average(truth[metric][place], weights=chosen.shares))
            gain, deployed = chosen.gain, truth[metric][sweep.alphas.index(chosen.alpha)]
            low, high = gain.ci
            row = gain.significant, low > worth, high < worth, low <= deployed <= high, high - low
            found.setdefault((scheme, metric), []).append(row)
    return {
        key: Counts(runs, *(int(sum(column)) for column in list(zip(*rows, strict=True))[:4]),
                    float(np.median([row[4] for row in rows])))
        for key, rows in found.items()
    }  # fmt: skip


def most(runs: int, share: float, chance: float = 0.001) -> int:
    """Of so many runs more would have what a share of them has only by such a chance."""
    return int(stats.binom.isf(chance, runs, share))


# --- the intervals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "worse", "n"), [(12, 3, 100), (0, 0, 50), (5, 0, 20), (0, 7, 1000), (40, 38, 200)]
)
def test_the_limits_of_a_proportion_are_where_the_score_test_says_so(better: int, worse: int, n: int) -> None:
    """With q found by maximising the multinomial likelihood instead of by Tango's equation."""

    def statistic(d: float) -> float:
        def unlikelihood(q: float) -> float:
            cells = [(better, q + d), (worse, q), (n - better - worse, 1 - 2 * q - d)]
            return -sum(float(xlogy(count, max(p, 1e-300))) for count, p in cells)

        bounds = max(0.0, -d), (1 - d) / 2
        q = optimize.minimize_scalar(
            unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        return (better - worse - n * d) / (n * (2 * q + d * (1 - d))) ** 0.5

    low, high = proportion_interval(better, worse, n, -1.7, 2.2)
    assert -1 <= low <= (better - worse) / n <= high <= 1
    assert statistic(low) == pytest.approx(2.2, abs=2e-3)
    assert statistic(high) == pytest.approx(-1.7, abs=2e-3)
    swapped = proportion_interval(worse, better, n, -2.2, 1.7)
    assert swapped == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("changed", [1, 2, 4, 8, 20])
@pytest.mark.parametrize("share", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("n", [200, 10_000])
def test_coverage_of_a_proportion_by_all_outcomes(changed: int, share: float, n: int) -> None:
    """No simulation: of every count of examples that change sides, and of how many of them get better."""
    covered, worth = 0.0, changed / n * (2 * share - 1)
    for total in range(int(stats.binom.isf(1e-7, n, changed / n)) + 1):
        for better in range(total + 1) if share < 1 else [total]:
            chance = stats.binom.pmf(total, n, changed / n) * stats.binom.pmf(better, total, share)
            low, high = proportion_interval(better, total - better, n, -Z, Z) if chance > 1e-9 else (-1, 1)
            covered += chance * (low <= worth <= high)
    assert covered >= 0.93
    assert covered <= 0.97 or changed < 8  # a count of a few cannot be nearer to 95 %


def test_a_mean_without_skewness_has_students_interval() -> None:
    x = np.random.default_rng(0).normal(1, 2, 50)
    x = np.concatenate([x, 2 * x.mean() - x])  # symmetric
    expected = stats.ttest_1samp(x, 0).confidence_interval(CONFIDENCE)
    assert mean_interval(x, -Z, Z) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("shape", ["skewed", "symmetric"])
def test_coverage_of_a_heavy_tailed_mean(shape: str, n: int) -> None:
    """Log-normal with σ = 1 (skewness 6, kurtosis 111), and the same with a random sign."""
    rng, runs, missed, students = np.random.default_rng(4), 2000, 0, 0
    mean = float(np.exp(0.5)) if shape == "skewed" else 0.0
    for _ in range(runs):
        x = np.exp(rng.standard_normal(n)) * (1 if shape == "skewed" else rng.choice([-1, 1], n))
        low, high = mean_interval(x, -Z, Z)
        missed += not low <= mean <= high
        students += abs(stats.ttest_1samp(x, mean).statistic) > stats.t.ppf(0.975, n - 1)
    assert most(runs, 0.03, 0.999) <= missed <= most(runs, 0.07)
    assert missed <= students


# --- what choosing does ----------------------------------------------------------------------


def test_one_clearly_best_alpha_has_normal_limits() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal([[0], [0.1], [0.1], [0.4]], 1, (4, 2000))
    differences[0] = 0
    fold = np.arange(2000) % 10
    limits = limits_of_choosing(differences, fold, np.full(10, 3), CONFIDENCE, rng)
    assert (limits.low, limits.high) == pytest.approx((-Z, Z), abs=0.15)
    assert limits.effective_tests > 1.5  # the test supposes that none is better


def test_limits_are_wider_the_more_alphas_are_level() -> None:
    rng = np.random.default_rng(1)
    fold = np.arange(1000) % 10
    trials = []
    for alphas in (1, 4, 16):
        differences = np.concatenate([np.zeros((1, 1000)), rng.standard_normal((alphas, 1000))])
        differences[1:] -= differences[1:].mean(axis=1, keepdims=True)
        limits = limits_of_choosing(differences, fold, np.ones(10, int), CONFIDENCE, rng)
        assert limits.low < -2.2
        trials.append(limits.effective_tests)
    assert trials[0] < 1.5 < trials[1] < trials[2] < 17
    # Equal α count once.
    copies = np.repeat(differences[[0, 1]], [1, 16], axis=0)
    assert limits_of_choosing(copies, fold, np.ones(10, int), CONFIDENCE, rng).effective_tests < 1.5


def test_counts_of_few_and_a_fine_grid_are_no_trouble() -> None:
    rng = np.random.default_rng(2)
    fold = np.arange(300) % 10
    one = np.zeros((2, 300))
    one[1, 0] = 1
    assert limits_of_choosing(one, fold, np.ones(10, int), CONFIDENCE, rng) == Limits.without_choice(
        CONFIDENCE
    )
    steps = rng.standard_normal((1500, 300)) * 0.01
    steps[0] = 0
    fine = np.cumsum(steps, axis=0)
    assert limits_of_choosing(fine, fold, np.full(10, 1499), CONFIDENCE, rng).effective_tests < 10


def test_nothing_that_changed_is_not_no_uncertainty() -> None:
    """α was chosen by examples of other lots; that none of these changed sides does not say that none will."""
    sweep = replace(POPULATIONS["ordinary"], alphas=(0.0, 0.3)).draw(100, np.random.default_rng(0))
    after = replace(sweep.scores[1], top1=sweep.baseline.top1)
    gain = paired_gain(after, sweep.baseline, "top1")
    assert gain.delta == 0
    assert gain.ci == pytest.approx((-0.037, 0.037), abs=1e-3)  # z²/(n + z²)
    assert gain.p == 1
    same = paired_gain(sweep.baseline, sweep.baseline, "top1")
    assert same.ci == (0, 0)


# --- a few hundred runs ----------------------------------------------------------------------


@pytest.mark.parametrize("name", POPULATIONS)
def test_false_alarms_are_rare(name: str) -> None:
    runs = 200
    for counts in simulate(POPULATIONS[name], 200, runs).values():
        assert counts.significant <= most(runs, 0.05)
        assert counts.covered >= runs - most(runs, 0.07)


@pytest.mark.slow
def test_intervals_hold_the_worth_of_an_effect() -> None:
    runs, population = 200, replace(POPULATIONS["ordinary"], effect=EFFECTS["medium"])
    for counts in simulate(population, 200, runs, parts=8).values():
        assert counts.covered >= runs - most(runs, 0.07)
        assert counts.significant > 10


def test_a_score_of_ones_own_is_judged_as_the_loss_is() -> None:
    sweep = POPULATIONS["ordinary"].draw(400, np.random.default_rng(0))
    values = -np.stack([scores.loss for scores in sweep.scores]).astype(np.float64)
    own = select_by_score(values, sweep.alphas, sweep.baseline.targets.astype(np.int64))[0].gain
    loss = cross_fitted_gain(sweep.choices(), "loss")
    assert own is not None
    assert structs.replace(own, metric="loss") == loss


# --- a thousand runs -------------------------------------------------------------------------

RUNS = 1000
HEAD = (
    "| population | effect (best true gains) | n | metric | scheme | significant | holds the worth | too high "
    "| too low | holds that of the deployed α | median width |"
)


def report(title: str, counts: dict[tuple[str, Metric], Counts]) -> None:
    print(f"\n{HEAD}")
    for (scheme, metric), each in counts.items():
        print(f"| {title} | {metric} | {scheme} | {each} |", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 1000, 10_000])
@pytest.mark.parametrize("name", POPULATIONS)
def test_false_alarms_in_a_thousand_runs(name: str, n: int) -> None:
    """Of 1 000 runs at exactly 5 % the standard error is 0.7 points."""
    counts = simulate(POPULATIONS[name], n, RUNS)
    report(f"{name} | none | {n}", counts)
    for each in counts.values():
        assert each.significant <= most(RUNS, 0.05)
        assert each.covered >= RUNS - most(RUNS, 0.07)


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 1000, 3000, 10_000])
@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("name", ["ordinary", "few changes, heavy tails"])
def test_coverage_in_a_thousand_runs(name: str, effect: str, n: int) -> None:
    """Of 1 000 runs at exactly 93 % the standard error is 0.8 points, at 97 % 0.5."""
    population = replace(POPULATIONS[name], effect=EFFECTS[effect])
    counts = simulate(population, n, RUNS)
    gains = ", ".join(f"{metric} {true_gains(population, 40)[metric].max():.4f}" for metric in MEANS)
    report(f"{name} | {effect} ({gains}) | {n}", counts)
    for each in counts.values():
        assert each.covered >= RUNS - most(RUNS, 0.07)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "runs"), [(200, 1000), (1000, 1000), (10_000, 300)])
def test_false_alarms_by_ece(n: int, runs: int) -> None:
    counts = simulate(POPULATIONS["ordinary"], n, runs, ["ece"], ["all choose"])
    report(f"ordinary | none | {n}", counts)
    assert counts["all choose", "ece"].significant <= most(runs, 0.05)
    assert counts["all choose", "ece"].covered >= runs - most(runs, 0.07)


CALIBRATIONS = {
    "too sure": Sharpened((1.2, 1.15, 1.1, 1.05, 1.12, 1.2)),
    "far too sure": Sharpened((1.4, 1.3, 1.2, 1.1, 1.2, 1.4)),
    "too sure, then calibrated": Sharpened((1.12, 1.08, 1.04, 1.0, 1.04, 1.1)),
    "far too sure, then calibrated": Sharpened((1.3, 1.2, 1.1, 1.0, 1.1, 1.3)),
    "few changes, heavy tails": replace(POPULATIONS["few changes, heavy tails"], effect=EFFECTS["large"]),
}


@cache
def true_ece(population: Population | Sharpened) -> NDArray[np.float64]:
    """Of each α, from 2 000 000 independent examples."""
    rng = np.random.default_rng(987)
    sweeps = [population.draw(50_000, rng).scores for _ in range(40)]
    at_each = [
        [np.concatenate([getattr(scores, name) for scores in parts]) for name in ("confidence", "top1")]
        for parts in zip(*sweeps, strict=True)
    ]
    return np.array([expected_calibration_error(confidence, right) for confidence, right in at_each])


@pytest.mark.slow
@pytest.mark.parametrize(("n", "runs"), [(300, 300), (1000, 300), (5000, 150)])
@pytest.mark.parametrize("name", CALIBRATIONS)
def test_coverage_by_ece(name: str, n: int, runs: int) -> None:
    """Noise moves what is measured, and the interval is wide enough for it, but for a tiny gain of few changes."""
    population = CALIBRATIONS[name]
    gains = true_ece(population)[0] - true_ece(population)
    rows = []
    for seed in range(runs):
        gain = all_choose(population.draw(n, np.random.default_rng((n, seed))), "ece", seed).gain
        worth = gains[[population.alphas.index(alpha) for alpha in gain.fold_alphas]].mean()
        rows.append((worth, gain.delta, gain.significant, gain.ci[0] <= worth <= gain.ci[1]))
    worth, measured, significant, covered = np.mean(rows, axis=0)
    print(f"| {name} | {n} | {worth:.4f} | {measured:.4f} | {100 * significant:.1f} | {100 * covered:.1f} |")
    if isinstance(population, Sharpened):
        assert measured < worth
        assert covered * runs >= runs - most(runs, 0.07)
    assert covered * runs >= runs - most(runs, 0.12)


class Drawn:
    """Targets of examples that have no images."""

    batch_size = 10_000

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self.targets = targets
        self.ids = np.arange(len(targets))
        self.names = ()

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class MadeUp(Passes):
    """Passes over a population's logits, in place of a model's."""

    population: Population = field(default_factory=Population)
    examples: Examples | None = None

    def run(
        self,
        question: str,
        positions: NDArray[np.int64],
        alphas: Sequence[float | Mapping[str, Alpha]],
        look: Callable[[Batch, list[torch.Tensor]], T],
    ) -> list[T]:
        assert self.examples is not None
        some = Examples(*(values[positions] for values in vars(self.examples).values()))
        targets, ids = torch.from_numpy(some.targets).long(), torch.from_numpy(positions)
        logits = [torch.from_numpy(self.population.logits(some, float(alpha))) for alpha in alphas]  # type: ignore[arg-type]
        return [look(Batch(ids, targets, ids), logits)]


@pytest.mark.slow
@pytest.mark.parametrize("metric", MEANS)
@pytest.mark.parametrize("n", [1000, 3000])
@pytest.mark.parametrize("effect", ["none", *EFFECTS])
def test_the_search_itself(effect: str, n: int, metric: Metric) -> None:
    """Pilot, interpolation and all, on logits."""
    population = replace(POPULATIONS["ordinary"], effect=EFFECTS.get(effect, 0.0))
    grid = tuple(np.linspace(0, 0.3, 31).round(2).tolist())
    truth = true_gains(replace(population, alphas=grid), 20)[metric] if population.effect else np.zeros(31)
    significant = too_high = too_low = 0
    for seed in range(RUNS):
        examples = population.examples(n, np.random.default_rng((n, seed)))
        data, model = Drawn(examples.targets.astype(np.int64)), Predictor(nn.Identity())
        passes = MadeUp(model, data, 0.0, World(), Meter(), None, population, examples)  # type: ignore[arg-type]
        found, _, gain, _ = search_and_confirm(passes, Objective(metric), False, 0.002, 0.05, seed, 0.3)
        sizes = [*[len(found.choosing) / gain.folds] * gain.folds, len(found.confirming)]
        worth = np.average(np.interp([*gain.fold_alphas, found.t], grid, truth), weights=sizes)
        significant += gain.significant
        too_high += bool(gain.ci[0] > worth)
        too_low += bool(gain.ci[1] < worth)
    shares = (significant, RUNS - too_high - too_low, too_high, too_low)
    text = " | ".join(f"{100 * share / RUNS:.1f} %" for share in shares)
    print(f"| search | {effect} | {n} | {metric} | {text} |", flush=True)
    assert too_high + too_low <= most(RUNS, 0.07)
    if effect == "none":
        assert significant <= most(RUNS, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 1000, 3000])
def test_a_temperature_where_none_is_needed(n: int) -> None:
    """Labels are drawn from the network's own probabilities: T = 1 is the best there is."""
    significant = 0
    for seed in range(RUNS):
        rng = np.random.default_rng((n, seed))
        population = POPULATIONS["ordinary"]
        z = population.logits(population.examples(n, rng), 0.0)
        targets = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
        losses, confidences = score_temperatures(torch.from_numpy(z), torch.from_numpy(targets))
        everything = TemperatureScores(scored(z, targets.astype(np.int32)), losses, confidences)
        order = stratified_order(targets, seed)
        halves = [everything.take(np.sort(order[k::2])) for k in (0, 1)]
        calibrated = [half.at(other.best()) for half, other in zip(halves, reversed(halves), strict=True)]
        gain = paired_gain(concatenate(calibrated), concatenate([half.scores for half in halves]), "loss")
        significant += gain.significant
    print(f"| temperature | none | {n} | loss | {significant} of {RUNS} |", flush=True)
    assert significant <= most(RUNS, 0.05)
