"""Scores of all examples together: mean IoU over all pixels, mean average precision, and any statistic of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import Run
from test_custom_score import Dense, minus_loss
from test_tune import informed
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import alphatune
from alphatune.core.errors import ConfigurationError, NumericError
from alphatune.jobs.custom_code import find_score
from alphatune.tuning.selection import select_by_score
from alphatune.tuning.set_score import SetScore, groups_of


def mean_of_rows() -> SetScore:
    return SetScore(lambda outputs, targets: minus_loss(outputs, targets)[:, None], lambda rows: rows.mean())


@pytest.mark.parametrize("alpha_helps", [True, False])
def test_a_mean_decides_as_the_plain_score(alpha_helps: bool) -> None:
    """The mean as a statistic: the same α and values; the error, from groups of examples, nearly the same."""
    model, data = informed(0, alpha_helps)
    options: Any = {"alphas": "0:1:6", "seed": 5}
    plain = alphatune.tune_score(model, data, minus_loss, **options)
    whole = alphatune.tune_score(model, data, mean_of_rows(), **options)
    assert whole.alpha == plain.alpha
    assert [p.score for p in whole.curve] == pytest.approx([p.score for p in plain.curve], abs=1e-9)
    ours, theirs = whole.gain, plain.gain
    assert ours is not None
    assert theirs is not None
    assert (ours.fold_alphas, ours.folds, ours.examples) == (
        theirs.fold_alphas,
        theirs.folds,
        theirs.examples,
    )
    assert ours.delta == pytest.approx(theirs.delta, abs=1e-9)
    assert ours.significant == theirs.significant
    assert np.ptp(ours.ci) == pytest.approx(np.ptp(theirs.ci), rel=0.35)
    assert whole.scores.shape == (6, len(plain), 1)


def test_groups_lie_within_folds() -> None:
    fold = np.repeat(np.arange(4), (25, 7, 31, 10))
    group, of_group = groups_of(fold, np.random.default_rng(0))
    assert (of_group[group] == fold).all()
    assert np.bincount(of_group).tolist() == [10, 7, 10, 10]
    sizes = np.bincount(group)
    assert sizes.min() >= 1
    for k in range(4):
        assert np.ptp(sizes[of_group == k]) <= 1


def test_shares_have_the_error_of_a_bootstrap() -> None:
    """Of a ratio of sums, as IoU is."""
    rng = np.random.default_rng(0)
    both = rng.poisson(20, 900)
    rows = np.stack([both, both + rng.poisson(30, 900)], 1).astype(float)
    score = SetScore(lambda *_: rows, lambda some: some[:, 0].sum() / some[:, 1].sum())
    group, _ = groups_of(np.arange(900) % 10, rng)
    shares = score.shares(rows, group)
    assert shares.mean() == pytest.approx(score.value(rows), abs=1e-12)
    again = [score.value(rows[rng.integers(0, 900, 900)]) for _ in range(3000)]
    assert shares.std(ddof=1) / np.sqrt(len(shares)) == pytest.approx(np.std(again), rel=0.2)


def test_nothing_is_found_where_there_is_nothing() -> None:
    """The rows of all α differ by noise alone: significant in at most 5 % of cases or so."""
    found, runs = 0, 200
    score = SetScore(lambda *_: np.empty(0), lambda rows: rows[:, 0].sum() / rows[:, 1].sum())
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        size = rng.poisson(40, 200) + 1.0
        rows = np.stack([np.stack([rng.binomial(size.astype(int), 0.5), size], 1) for _ in range(5)]).astype(
            float
        )
        decision, _ = select_by_score(
            rows, [0.0, 0.1, 0.2, 0.3, 0.4], np.zeros(200, np.int64), score, seed=seed
        )
        assert decision.gain is not None
        found += decision.gain.significant
    assert found / runs <= 0.06


# --- mean IoU --------------------------------------------------------------------------------


def cast(n: int = 120) -> tuple[Tensor, Tensor]:
    """Images of three classes, each image with a cast of its own, which its own moments take out."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(3, (n, 8, 8), generator=generator)
    masks[::3] = masks[::3].clamp(max=1)  # images without class 2
    images = 2.0 * F.one_hot(masks, 3).movedim(3, 1) + torch.randn(n, 3, 8, 8, generator=generator)
    return images + 3 * torch.randn(n, 3, 1, 1, generator=generator), masks


def iou_by_hand(predicted: np.ndarray, masks: np.ndarray) -> float:
    found = []
    for c in range(3):
        counted = masks < 3
        either = sum(1 for p, m, k in zip(predicted.ravel(), masks.ravel(), counted.ravel(), strict=True)
                     if k and c in (p, m))  # fmt: skip
        both = sum(1 for p, m in zip(predicted.ravel(), masks.ravel(), strict=True) if p == m == c)
        found.append(both / either)
    return float(np.mean(found))


def test_mean_iou_is_that_of_all_pixels() -> None:
    images, masks = cast()
    masks[5, :4] = 255  # not labelled
    data = DataLoader(TensorDataset(images, masks), 50)
    model = Dense().eval()
    result = alphatune.tune_score(model, data, alphatune.mean_iou, alphas="0:1:5")
    for point in (result.curve[0], result.curve[-1]):
        alphatune.patch_(model, point.alpha)
        with torch.no_grad():
            predicted = model(images)["out"].argmax(1)
        alphatune.unpatch_(model)
        assert point.score == pytest.approx(iou_by_hand(predicted.numpy(), masks.numpy()), abs=1e-9)
    assert result.alpha > 0
    assert result.gain is not None
    assert result.gain.significant
    assert result.name == "mean IoU"
    assert "mean IoU" in str(result)


def test_one_channel_is_the_logit_of_class_1() -> None:
    logits, masks = torch.randn(6, 1, 8, 8), torch.randint(2, (6, 8, 8))
    one, two = (
        np.asarray(alphatune.mean_iou(z, masks)) for z in (logits, torch.cat([0 * logits, logits], 1))
    )
    assert (one == two).all()
    assert alphatune.mean_iou.value(one) < 0.6


def test_maps_of_another_size_are_enlarged() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.long)
    masks[:, 4:] = 1
    logits = torch.stack([(masks == 0), (masks == 1)], 1).float()[:, :, ::2, ::2] * 9
    rows = np.asarray(alphatune.mean_iou((None, {"out": logits}), masks))
    assert rows.shape == (2, 4)
    assert alphatune.mean_iou.value(rows) > 0.7


# --- mean average precision ------------------------------------------------------------------


def test_mean_average_precision_is_that_of_all_images() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((80, 4)) < 0.3).astype(float)
    labels[:10, 0] = -1  # not known
    labels[:, 3] = 0  # of no image
    logits = labels + rng.normal(0, 1, labels.shape)
    rows = np.asarray(alphatune.mean_average_precision(torch.from_numpy(logits), torch.from_numpy(labels)))
    expected = [
        reference.average_precision(labels[known, c], rows[known, c].astype(float))
        for c in range(3)
        for known in [labels[:, c] >= 0]
    ]
    assert alphatune.mean_average_precision.value(rows) == pytest.approx(np.mean(expected), abs=1e-6)


def test_multi_label_networks_are_tuned() -> None:
    """Labels by the network's own mind at α = 0.5: it is found."""
    model, data = informed(0, alpha_helps=True)
    images = torch.cat([x for x, _ in data])
    alphatune.patch_(model, 0.5)
    with torch.no_grad():
        logits = model.eval()(images)
    alphatune.unpatch_(model)
    labels = (logits > logits.median(0).values).float()
    pairs = DataLoader(TensorDataset(images, labels), 50)
    result = alphatune.tune_score(model, pairs, alphatune.mean_average_precision, alphas="0:1:5")
    assert result.decision.candidate == 0.5
    assert result.curve[2].score == pytest.approx(1.0)
    assert result.gain is not None
    assert result.gain.significant


# --- what is refused, and the command --------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (SetScore(minus_loss, np.mean), ConfigurationError, r"a row of numbers an example.*\(50, k\)"),
        (SetScore(lambda o, t: o, lambda rows: rows), ConfigurationError, "must give one number"),
        (SetScore(lambda o, t: o, lambda rows: float("nan")), ConfigurationError, "is nan over"),
        (SetScore(lambda o, t: o * float("inf"), np.mean), NumericError, "for example 0"),
        (alphatune.mean_iou, ConfigurationError, "masks"),
        (alphatune.mean_average_precision, ConfigurationError, "labels"),
    ],
)
def test_scores_that_are_none(score: Any, error: type[Exception], message: str) -> None:
    model, data = informed(0, alpha_helps=True)
    pairs = DataLoader(TensorDataset(*(torch.cat(parts) for parts in zip(*data, strict=True))), 50)
    with pytest.raises(error, match=message):
        alphatune.tune_score(model, pairs, score, alphas="0,0.5")


@pytest.mark.parametrize("n", [1, 2, 19])
def test_few_examples_are_not_judged(n: int) -> None:
    images, masks = cast(n)
    result = alphatune.tune_score(Dense().eval(), [(images, masks)], alphatune.mean_iou, alphas="0,0.5")
    assert result.gain is None
    assert len(result) == n
    assert all(0 <= point.score <= 1 for point in result.curve)


OWN = """
import torch
from torch import nn
from alphatune import SetScore


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    for _ in range(5):
        model(2 * torch.randn(8, 3, 6, 6))
    return model.eval()


def loader():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(3, (60, 6, 6), generator=generator)
    images = torch.nn.functional.one_hot(masks, 3).movedim(3, 1) + torch.randn(60, 3, 6, 6, generator=generator)
    return [(images[i : i + 16], masks[i : i + 16]) for i in range(0, 60, 16)]


def rows(outputs, masks):
    return torch.stack([(outputs.argmax(1) == masks).sum((1, 2)), torch.full((len(masks),), 36)], 1)


pixels = SetScore(rows, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), "pixel accuracy")
"""


@pytest.mark.parametrize(
    ("score", "name"), [("{own}:pixels", "pixel accuracy"), ("alphatune:mean_iou", "mean IoU")]
)
def test_the_command(score: str, name: str, run: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    words = ["--data", f"{own}:loader", "--score", score.format(own=own), "--alphas", "0,0.2,0.5"]
    code, out, err = run(
        "tune", f"{own}:net", *words, "-o", tmp_path / "tuned", "--format", "json", "--min-gain", -1
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["score"]["name"] == name
    assert result["metric"] == "score"
    assert result["gain"]["examples"] == result["data"]["n"] == 60
    assert result["power"]["examples"] == 60
    assert name in (tmp_path / "tuned" / "report.md").read_text()
    found = find_score(score.format(own=own))
    assert isinstance(found, SetScore)
    assert found.__name__ == name
