"""Scores on a grid against scores of the same logits one by one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import score_logits
from alphatune.statistics.conditions import example_ids
from alphatune.statistics.interpolation import interpolation_weights, lobatto_nodes
from alphatune.statistics.scores import summarise
from alphatune.tuning.curve import interpolated_curve
from alphatune.tuning.curve_scores import CurveScores, join, score_curve_
from alphatune.tuning.search import Search
from alphatune.tuning.sweep import Sweep


def batch(n: int, classes: int, start: int = 0) -> Batch:
    return Batch(torch.zeros(n, 1), torch.randint(classes, (n,)), torch.arange(start, start + n))


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_nodes_are_scored_as_measured(classes: int) -> None:
    b, nodes = batch(50, classes), lobatto_nodes(5, 0.3)
    logits = torch.randint(-3, 4, (5, 50, classes)).float()  # whole numbers: many ties
    scores = CurveScores.empty(5, 50)
    weights = torch.from_numpy(interpolation_weights(nodes, nodes)).float()
    score_curve_(scores, 0, logits, weights, b.targets, b.ids)
    for i in range(5):
        exact = score_logits(logits[i], b)
        assert (scores.top1[i] == exact.top1).all()
        assert (scores.top5[i] == exact.top5).all()
        np.testing.assert_allclose(scores.loss[i], exact.loss, atol=2e-6)
        np.testing.assert_allclose(scores.confidence[i], exact.confidence, atol=2e-6)


def test_between_nodes_logits_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphatune.tuning.curve_scores.CHUNK", 1000)  # several chunks
    b, nodes, grid = batch(40, 7), lobatto_nodes(4, 0.2), np.linspace(0, 0.2, 23)
    logits = torch.randn(4, 40, 7)
    weights = interpolation_weights(nodes, grid)
    scores = CurveScores.empty(23, 40)
    score_curve_(scores, 0, logits, torch.from_numpy(weights).float(), b.targets, b.ids)
    z = np.einsum("gk,knc->gnc", weights, logits.double().numpy())
    expected = np.log(np.exp(z).sum(2)) - np.take_along_axis(z, b.targets.numpy()[None, :, None], 2)[..., 0]
    np.testing.assert_allclose(scores.loss, expected, atol=1e-5)
    assert (scores.top1 == (z.argmax(2) == b.targets.numpy())).mean() > 0.999


def test_joining_orders_by_id_and_keeps_common_points() -> None:
    parts = []
    for start, points in ((30, 4), (0, 6)):
        b, part = batch(30, 3, start), CurveScores.empty(points, 30)
        score_curve_(part, 0, torch.randn(2, 30, 3), torch.rand(points, 2), b.targets, b.ids)
        parts.append(part)
    whole = join(parts)
    assert whole.points == 4
    assert whole.ids.tolist() == list(range(60))
    assert (whole.loss[:, 30:] == parts[0].loss).all()
    assert (whole.top1[:, :30] == parts[1].top1[:4]).all()


MEMORY = """
import torch
from alphatune.tuning.curve_scores import CurveScores, score_curve_
from alphatune.statistics.interpolation import interpolation_weights, lobatto_nodes
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
n, classes, points, size = {n}, 1000, 101, 50
w = torch.from_numpy(interpolation_weights(lobatto_nodes(5, 0.3), [0.003 * i for i in range(points)])).float()
logits, targets = torch.randn(5, size, classes), torch.randint(classes, (size,))
score_curve_(CurveScores.empty(points, size), 0, logits, w, targets, torch.arange(size))  # what one batch takes
before = peak()
scores = CurveScores.empty(points, n)
for start in range(0, n, size):
    score_curve_(scores, start, logits, w, targets, torch.arange(start, start + size))
print((peak() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("n", [1_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_memory_stays_small(n: int) -> None:
    """50 000 examples × 1 000 classes × 101 α stay under 100 MB."""
    out = subprocess.run(
        [sys.executable, "-c", MEMORY.format(n=n)], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) < 100


@pytest.mark.parametrize("conditions", [1, 3])
def test_a_whole_curve_has_the_figures_of_its_scores(conditions: int) -> None:
    """Of every metric, each condition of equal weight, as a measured point has them."""
    rng = np.random.default_rng(0)
    n = 60
    targets = np.tile(rng.integers(0, 4, n), conditions).astype(np.int32)
    images = np.arange(n)
    ids = (
        images if conditions == 1 else np.concatenate([example_ids(k + 1, images) for k in range(conditions)])
    )
    drawn = []
    for strength in (1.0, 1.5):
        logits = strength * np.eye(4)[targets] + rng.normal(0, 1, (len(targets), 4))
        batch = Batch(torch.zeros(len(ids)), torch.from_numpy(targets).long(), torch.from_numpy(ids))
        drawn.append(score_logits(torch.from_numpy(logits).float(), batch))
    search = Search(
        t=0.0, grid=(0.0, 0.1), curve=CurveScores.stacked(drawn), nodes=(0.0, 0.1), choosing=np.arange(len(ids)),
        confirming=np.arange(0), baseline=drawn[0], best={}, estimated_error=0.0,
    )  # fmt: skip
    points = interpolated_curve(search, Sweep((0.0,), (drawn[0],)), 0.0)
    for point, scores in zip(points, drawn, strict=True):
        expected = dict(summarise(scores).items())
        assert dict(point.metrics.items()) == pytest.approx(expected, abs=1e-12)
    assert ("macro_f1" in points[1].ci) == (conditions == 1)
