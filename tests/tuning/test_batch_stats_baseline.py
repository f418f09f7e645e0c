"""The row of batch statistics in a tune: what it holds, that it changes nothing, and that companions matter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Run
from test_cli import COMMON
from tiny import tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alphatune
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.data.custom_loader import LoaderBatches
from alphatune.norms.batch_statistics import batch_statistics
from alphatune.norms.conversion import Norm, convert_
from alphatune.tuning import batch_stats_baseline as companions
from alphatune.tuning.batch_stats_baseline import batches_of

N = 90


@pytest.fixture
def model() -> nn.Module:
    net = tiny().train()
    for _ in range(10):
        net(torch.randn(16, 3, 12, 12))
    return net.eval()


def data(n: int = N, batch_size: int = 20) -> DataLoader:
    """Sorted by class, as folders are; each class has a colour of its own."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(n) * 4 // n
    x = torch.randn(n, 3, 12, 12, generator=generator) + 2 * (y.view(-1, 1, 1, 1) - 1.5)
    return DataLoader(TensorDataset(x, y), batch_size)


def test_the_row_is_what_random_batches_give(model: nn.Module) -> None:
    result = alphatune.tune(model, data(), alphas="0,0.1", batch_stats=True, seed=3)
    row = result.batch_statistics
    assert row is not None
    x, y = data().dataset.tensors
    predicted = []
    for which in (0, 1):
        order = np.random.default_rng((3, which)).permutation(N)
        logits = torch.empty(N, 4)
        with torch.no_grad(), batch_statistics(model):
            for rows in np.array_split(order, 5):
                logits[rows] = model(x[rows])
        if which == 0:
            loss = nn.functional.cross_entropy(logits, y).item()
        predicted.append(logits.argmax(1))
    assert row.metrics.loss == pytest.approx(loss, rel=1e-5)
    assert row.metrics.top1 == pytest.approx((predicted[0] == y).float().mean().item())
    assert row.changed == pytest.approx((predicted[0] != predicted[1]).float().mean().item())
    assert row.changed > 0
    assert row.batch_size == 18
    assert set(row.ci) == {"top1", "top5", "loss", "macro_recall", "macro_f1"}
    low, high = row.ci["loss"]
    assert low < row.metrics.loss - result.baseline.loss < high


def test_nothing_else_changes(model: nn.Module) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    plain = alphatune.tune(model, data(), alphas="0,0.1", metric="loss")
    compared = alphatune.tune(model, data(), alphas="0,0.1", metric="loss", batch_stats=True)
    assert plain.batch_statistics is None
    assert (compared.decision, compared.curve, compared.passes) == (plain.decision, plain.curve, plain.passes)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [type(m) for m in model.modules()] == classes


def test_a_small_set_is_cut_into_several_batches(model: nn.Module) -> None:
    """In one batch every example would have the same companions both times."""
    row = alphatune.tune(model, data(batch_size=N), alphas="0", batch_stats=True).batch_statistics
    assert row is not None
    assert row.batch_size == 23
    one = alphatune.tune(model, data(1), alphas="0", batch_stats=True).batch_statistics
    assert one is not None
    assert (one.batch_size, one.ci, one.changed) == (1, {}, 0)


def test_batches_of_one_class_do_worse() -> None:
    """Why examples are drawn at random, and why the row is no choice."""
    x, y = data().dataset.tensors
    net = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    net[0].running_mean.fill_(x.mean())
    net[0].running_var.fill_(x.var())
    colours = 2 * (torch.arange(4.0) - 1.5) / x.std()  # of the classes, as the norm layer gives them
    net[3].weight.data = colours.view(4, 1).repeat(1, 3)  # the nearest of them
    net[3].bias.data = -1.5 * colours**2
    row = alphatune.tune(net, data(), alphas="0", batch_stats=True).batch_statistics
    with torch.no_grad(), batch_statistics(net):
        in_order = torch.cat([net(part) for part, _ in data()])
    assert row is not None
    assert row.metrics.top1 > 0.9
    assert (in_order.argmax(1) == y).float().mean().item() < row.metrics.top1 - 0.3


def test_groups_are_the_same_however_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = LoaderBatches(data(), torch.device("cpu"))
    groups = np.array_split(np.random.default_rng(0).permutation(N), 7)
    whole = list(batches_of(loader, groups))
    monkeypatch.setattr(companions, "HELD_BYTES", 1)
    x, y = data().dataset.tensors
    for batch, other, group in zip(whole, batches_of(loader, groups), groups, strict=True):
        assert torch.equal(batch.inputs, x[group])
        assert torch.equal(batch.targets, y[group])
        assert batch.ids.tolist() == group.tolist()
        assert torch.equal(batch.inputs, other.inputs)
    assert list(batches_of(loader, [])) == []


def test_images_of_several_sizes_make_no_random_batches(model: nn.Module) -> None:
    mixed = [(torch.randn(4, 3, size, size), torch.arange(4)) for size in (12, 16, 12)]
    with pytest.raises(ConfigurationError, match="one shape"):
        alphatune.tune(model, mixed, alphas="0,0.1", batch_stats=True)


def test_groupnorm_is_refused_before_anything_is_run(model: nn.Module) -> None:
    convert_(model, Norm("group", num_groups=4))

    def untouched():
        raise AssertionError
        yield

    with pytest.raises(UnsupportedModelError, match="only GroupNorm"):
        alphatune.tune(model, untouched(), batch_stats=True)


def test_command(run: Run, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    job = [TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, *COMMON, "--alphas", "0,0.1"]
    code, stdout, err = run("tune", *job, "--batch-stats", "-o", tmp_path / "a", "--format", "json")
    assert code == 0, err
    row = json.loads(stdout)["batch_statistics"]
    assert row["pseudo_count"] == 16
    assert row["n"] == 48
    assert 0 <= row["changed"] <= 1
    report = (tmp_path / "a" / "report.md").read_text()
    assert f"| test batch | {row['top1']:.4f} |" in report
    assert "depends on the other examples of its batch" in report
    assert f"{100 * row['changed']:.1f} % of the predictions changed" in report
    _, stdout, _ = run("tune", *job, "--batch-stats", "-o", tmp_path / "b")
    assert f"top-1 {row['top1']:.4f}" in " ".join(stdout.split())
    assert "depends on the other examples" in " ".join(stdout.split())
    _, stdout, _ = run("tune", *job, "-o", tmp_path / "c", "--format", "json")
    assert json.loads(stdout)["batch_statistics"] is None
    assert "test batch" not in (tmp_path / "c" / "report.md").read_text()
