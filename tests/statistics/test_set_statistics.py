"""Metrics of a whole set: their values, the shares of examples in them, and tunes by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from conftest import TESTS, Run, write_images
from tiny import tiny
from torch import nn

import alphatune
from alphatune.core.errors import ConfigurationError
from alphatune.core.metrics import INFO, METRICS, Metric
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import score_logits
from alphatune.statistics.gain import paired_gain
from alphatune.statistics.scores import Scores, concatenate, summarise
from alphatune.statistics.set_statistics import STATISTICS, metrics_of
from alphatune.tuning.selection import cross_fitted_gain
from alphatune.tuning.sweep import Sweep

LINEARISED: list[Metric] = [name for name, each in STATISTICS.items() if each.linearised]
TINY = f"{TESTS / 'tiny.py'}:tiny"


def scored(logits: np.ndarray, targets: np.ndarray) -> Scores:
    n = len(targets)
    return score_logits(
        torch.from_numpy(logits).float(),
        Batch(torch.zeros(n), torch.from_numpy(targets).long(), torch.arange(n)),
    )


def drawn(seed: int, n: int = 60, classes: int = 2, *, strength: float = 1.0, ties: bool = True) -> Scores:
    """Unbalanced classes, and logits of few different values so that some are equal."""
    rng = np.random.default_rng(seed)
    targets = np.minimum(rng.geometric(0.5, n) - 1, classes - 1)
    logits = strength * np.eye(classes)[targets] + rng.normal(0, 1, (n, classes))
    return scored(np.round(2 * logits) / 2 if ties else logits, targets)


def expected(name: Metric, scores: Scores) -> float:
    if name in ("macro_recall", "macro_f1"):
        return getattr(reference, name)(scores.targets, scores.predicted)
    return getattr(reference, name)(scores.targets, scores.margin)


@pytest.mark.parametrize("name", LINEARISED)
@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_the_definition(name: Metric, seed: int) -> None:
    scores = drawn(seed, classes=2 if STATISTICS[name].two_classes else 2 + seed)
    value = STATISTICS[name].value(scores)
    assert value == pytest.approx(expected(name, scores), abs=1e-12)
    assert STATISTICS[name].shares(scores).mean() == pytest.approx(value, abs=1e-12)
    assert summarise(scores)[name] == value


def test_values_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        two, five = drawn(seed, 300), drawn(seed, 300, 5)
        wanted = {
            "macro_recall": metrics.balanced_accuracy_score(five.targets, five.predicted),
            "macro_f1": metrics.f1_score(five.targets, five.predicted, average="macro"),
            "auroc": metrics.roc_auc_score(two.targets, two.margin),
            "average_precision": metrics.average_precision_score(two.targets, two.margin),
        }
        for name in LINEARISED:
            of = two if STATISTICS[name].two_classes else five
            assert STATISTICS[name].value(of) == pytest.approx(wanted[name], abs=1e-12)


@pytest.mark.parametrize("name", LINEARISED)
def test_shares_are_derivatives_by_the_weight_of_an_example(name: Metric) -> None:
    """One more copy of an example, beside many of all, moves the value by its share less the mean."""
    scores, copies = drawn(3, 40, 2 if STATISTICS[name].two_classes else 4), 2000
    n, value = len(scores), STATISTICS[name].value(scores)
    shares = STATISTICS[name].shares(scores)
    for row in range(0, n, 7):
        rows = np.concatenate([np.tile(np.arange(n), copies), [row]])
        moved = STATISTICS[name].value(scores.take(rows)) - value
        assert moved * n * copies == pytest.approx(shares[row] - value, abs=2e-3)


def test_a_model_that_tells_nothing_apart_has_an_area_of_one_half() -> None:
    targets = np.arange(40) % 2
    assert STATISTICS["auroc"].value(scored(np.zeros((40, 2)), targets)) == 0.5
    assert STATISTICS["average_precision"].value(scored(np.zeros((40, 2)), targets)) == 0.5


def test_sure_predictions_keep_their_order() -> None:
    """The area does not rest on probabilities, which round to 1."""
    margin = np.array([30.0, 40.0, 50.0, 60.0])
    scores = scored(np.stack([np.zeros(4), margin], 1), np.array([0, 1, 0, 1]))
    assert len(set(scores.confidence.tolist())) == 1
    assert STATISTICS["auroc"].value(scores) == 0.75


def test_what_means_something_for_two_classes_only() -> None:
    assert metrics_of(drawn(0)) == METRICS
    assert metrics_of(drawn(0, classes=3)) == METRICS[:-2]
    alone = drawn(0).take(drawn(0).targets == 1)  # of one class no pair can be made
    assert metrics_of(alone) == METRICS[:-2]
    assert not summarise(alone).has("auroc")


@pytest.mark.parametrize("name", LINEARISED)
def test_intervals_of_a_difference_hold(name: Metric) -> None:
    """Of two networks whose outputs are related, in samples of 300: what a much larger sample says is inside."""

    def pair(seed: int, n: int) -> tuple[Scores, Scores]:
        rng = np.random.default_rng(seed)
        classes = 2 if STATISTICS[name].two_classes else 4
        targets = np.minimum(rng.geometric(0.4, n) - 1, classes - 1)
        shared = rng.normal(0, 1, (n, classes)) + 1.2 * np.eye(classes)[targets]
        return scored(shared, targets), scored(shared + rng.normal(0, 0.7, (n, classes)), targets)

    better, worse = pair(0, 200_000)
    truth = STATISTICS[name].value(better) - STATISTICS[name].value(worse)
    inside, runs = 0, 300
    for seed in range(1, runs + 1):
        gain = paired_gain(*pair(seed, 300), name)
        inside += gain.ci[0] <= truth <= gain.ci[1]
    assert 0.91 <= inside / runs <= 0.985


@pytest.mark.parametrize("rare", [2, 5, 20])
def test_a_class_of_few_examples_makes_nothing_significant(rare: int) -> None:
    """A network that finds more of a large class, at the cost of a small one of which this sample tells nothing."""
    found, runs = 0, 200
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        targets = np.repeat([0, 1], (300, rare))
        margin = rng.normal(0, 1, len(targets)) + np.where(targets == 1, 1.2, -1.2)
        worse = scored(np.stack([np.zeros_like(margin), margin], 1), targets)
        better = scored(
            np.stack([np.zeros_like(margin), margin - 0.25], 1), targets
        )  # macro recall is no higher
        gain = paired_gain(better, worse, "macro_recall")
        found += gain.significant and gain.delta > 0
    assert found / runs <= 0.05


def test_nothing_changes_where_nothing_changes() -> None:
    for name in LINEARISED:
        gain = paired_gain(drawn(0), drawn(0), name)
        assert (gain.delta, gain.ci, gain.p) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
@pytest.mark.parametrize("positives", [20, 200])
def test_margins_of_different_alphas_are_not_compared(name: Metric, positives: int) -> None:
    """α that shift all margins, and change no order, gain nothing, whichever α each fold chooses."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = np.repeat([0, 1], (200, positives))
        base = rng.normal(0, 1, len(targets)) + targets
        runs = []
        for k in range(4):
            margin = base + rng.normal(0, 1e-3, len(targets)) + 3 * k
            runs.append(scored(np.stack([np.zeros_like(margin), margin], 1), targets))
        sweep = Sweep((0.0, 0.1, 0.2, 0.3), tuple(runs))
        gain = cross_fitted_gain(sweep.choices(), name, seed=seed)
        assert abs(gain.delta) < 0.002
        assert not np.isnan(gain.ci).any()


def test_batches_in_any_order_give_the_same() -> None:
    whole = drawn(1, 50)
    parts = [whole.take(np.arange(30, 50)), whole.take(np.arange(30))]
    assert summarise(concatenate(parts)) == summarise(whole)
    with_three = replace(drawn(1, 50, 3), margin=None)
    assert "margin" not in with_three.take(np.arange(3)).columns


# --- tunes -----------------------------------------------------------------------------------


def shifted(n: int, classes: int, *, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose statistics are off, so that some α > 0 is better, with labels of the model's own mind."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.6 + 1.5 * torch.randn(n, 3, 12, 12, generator=generator)
    targets = (images[:, 0].mean((1, 2)) > 0.6).long() + (images[:, 1].mean((1, 2)) > 0.65).long() * (
        classes > 2
    )
    return [(images[i : i + 100], targets[i : i + 100]) for i in range(0, n, 100)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = tiny(2).train()
    for _ in range(20):
        model(torch.randn(64, 3, 12, 12))
    return model.eval()


@pytest.mark.parametrize("metric", ["auroc", "average_precision", "macro_f1", "macro_recall"])
@pytest.mark.parametrize("alphas", ["auto", "0,0.1,0.3"])
def test_a_tune_follows_the_metric(network: nn.Module, metric: Metric, alphas: str) -> None:
    """Measured and interpolated: the best of the curve is the candidate, and the gain is the difference of values."""
    data = shifted(1200, 2)
    result = alphatune.tune(network, data, metric=metric, alphas=alphas, accept="best")
    assert result.metric == metric
    swept = result.sweep
    exact = {a: STATISTICS[metric].value(s) for a, s in zip(swept.alphas, swept.scores, strict=True)}
    assert result.chosen[metric] == exact[result.alpha]
    if result.search is None:
        assert result.decision.candidate == max(exact, key=lambda a: (exact[a], -a))
    else:
        values = result.search.curve.average(metric)
        assert values.max() == values[result.search.grid.index(result.decision.candidate)]
    for point in result.curve:
        assert point.metrics.has(metric)
    gain = result.decision.gain
    assert gain is not None
    assert gain.metric == metric
    assert gain.ci[0] <= gain.delta <= gain.ci[1]
    assert exact[0.0] == pytest.approx(expected(metric, swept.baseline), abs=1e-12)


def test_finer_alphas_are_judged_by_the_metric(network: nn.Module) -> None:
    result = alphatune.tune(network, shifted(600, 2), metric="auroc", granularity="layer", alphas="0,0.1,0.3")
    assert result.refinement is not None
    for level in result.refinement.levels:
        assert 0 <= level.metrics["auroc"] <= 1
        if level.over_plain is not None:
            assert level.over_plain.metric == "auroc"


def test_two_classes_are_asked_for(network: nn.Module) -> None:
    few = [(x, torch.arange(len(x)) < 5) for x, _ in shifted(100, 2)]
    with pytest.raises(
        ConfigurationError, match="at least 20 examples of each class, and the data has 5 of class 1"
    ):
        alphatune.tune(network, [(x, y.long()) for x, y in few], metric="auroc", alphas="0,0.1")
    one_class = [(x, torch.zeros(len(x), dtype=torch.long)) for x, _ in shifted(200, 2)]
    with pytest.raises(
        ConfigurationError, match="AUROC takes examples of two classes, 0 and 1, and the data has 0"
    ):
        alphatune.tune(network, one_class, metric="auroc", alphas="0,0.1")
    with pytest.raises(ConfigurationError, match="this one has more outputs"):
        alphatune.tune(tiny(3).eval(), shifted(200, 2), metric="auroc", alphas="0,0.1")


def test_the_command_line(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Tune, gates, report, evaluate and compare know them."""
    images = write_images(tmp_path / "images", per_class=60, classes=("cat", "dog"))
    torch.manual_seed(1)
    model = tiny(2).train()
    for _ in range(20):
        model(torch.randn(16, 3, 12, 12))
    torch.save(model.state_dict(), tmp_path / "two.pth")
    words: list[Any] = [
        TINY, "--model-kwargs", "num_classes=2", "--checkpoint", tmp_path / "two.pth", "--data", images,
        "--input-size", 12, "--crop-pct", 1, "--mean", 0.5, "--std", 0.25,
    ]  # fmt: skip
    code, out, err = run(
        "tune", *words, "--metric", "auroc", "--alphas", "0,0.1,0.3", "--accept", "best", "--max-regression",
        "macro_f1=1", "--max-regression", "average_precision=1", "--gate-on", "interval", "--no-cache",
        "-o", tmp_path / "tuned", "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert [gate["passed"] for gate in result["gates"]] == [True, True]
    for metrics in (result["baseline"], result["chosen"]["metrics"], *result["curve"]):
        assert {*METRICS} <= metrics.keys()
    assert {"auroc", "macro_f1"} <= result["chosen"]["ci"].keys() or result["decision"]["keep_baseline"]
    report = (tmp_path / "tuned" / "report.md").read_text()
    assert "| α | AUROC | Δ AUROC | top-1 |" in report
    assert (tmp_path / "tuned" / "figures" / "curve-auroc.svg").is_file()
    assert "auroc_delta_low" in (tmp_path / "tuned" / "curve.csv").read_text()
    code, out, err = run("evaluate", *words, "--scores", tmp_path / "a.npz", "--quiet")
    assert code == 0, err
    assert all(INFO[name].label in out for name in METRICS)
    code, out, err = run("compare", tmp_path / "tuned:baseline", tmp_path / "a.npz", "--format", "json")
    assert code == 0, err
    rows = {row["metric"]: row for row in json.loads(out)["comparisons"][0]["differences"]}
    assert rows.keys() == {*METRICS}
    assert all(row["difference"] == 0 for row in rows.values())


def test_the_command_line_refuses_what_means_nothing(
    run: Run, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    words: list[Any] = [
        "tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--input-size", 12, "--crop-pct", 1,
        "--mean", 0.5, "--std", 0.25, "--alphas", "0,0.1", "-o", tmp_path / "out",
    ]  # fmt: skip
    code, _, err = run(*words, "--metric", "auroc")
    assert code == 2
    assert "AUROC takes examples of two classes, 0 and 1, and the data has 0, 1, 2, 3" in err
    assert "--metric macro_f1" in err
    code, _, err = run(*words, "--metric", "macro_f1", "--shift", "contrast")
    assert code == 2
    assert "macro F1 cannot be averaged over conditions" in err
    code, _, err = run(*words, "--max-regression", "auroc=0")
    assert code == 1
    assert "AUROC takes examples of two classes" in err
