"""Tuning a GroupNorm that keeps moving moments: α = 1 is the unpatched model (paper Fig. 2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny

import alphatune
from alphatune.core.errors import UnsupportedModelError
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.patching import get_alpha
from alphatune.reports.result import tune_document
from alphatune.reports.summary import summarise_tune
from alphatune.tuning.alphas import AUTO, resolve_alphas
from alphatune.tuning.tune import tune


def loader(seed: int = 0, n: int = 60) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 12, 12, generator=generator)
    return list(zip(x.split(20), torch.randint(4, (n,), generator=generator).split(20), strict=True))


@pytest.fixture
def model() -> torch.nn.Module:
    net = tiny()
    convert_(net, Norm("group", num_groups=4))
    net.train()
    for _ in range(10):
        net(torch.randn(16, 3, 12, 12))
    return net.eval()


def test_the_grid_is_mirrored() -> None:
    assert resolve_alphas("auto", 1.0) == tuple(1 - a for a in AUTO)
    assert resolve_alphas("0.5,0.9", 1.0) == (1.0, 0.9, 0.5)


def test_the_baseline_is_plain_groupnorm(model: torch.nn.Module) -> None:
    data = loader()
    with torch.no_grad():
        plain = torch.cat([model(x) for x, _ in data])
    result = tune(model, data, accept="best", metric="loss")
    assert result.baseline_alpha == 1
    assert result.curve[0].alpha == 1
    assert result.sweep.baseline.predicted.tolist() == plain.argmax(1).tolist()
    targets = torch.cat([y for _, y in data])
    expected = torch.nn.functional.cross_entropy(plain, targets, reduction="none")
    assert torch.equal(torch.from_numpy(result.sweep.baseline.loss), expected)
    with torch.no_grad():
        assert torch.equal(torch.cat([model(x) for x, _ in data]), plain)  # the model came back as it was


def test_without_a_gain_plain_groupnorm_is_kept(model: torch.nn.Module) -> None:
    result = tune(model, loader())  # labels are noise
    assert result.alpha == 1
    nothing: dict[str, Any] = dict.fromkeys(("model", "data", "env", "calibration", "recalibration"))
    document = tune_document(result, command_line="", warnings=(), **nothing)
    assert document.decision.keep_baseline
    assert document.baseline_alpha == 1
    assert "plain GroupNorm" in summarise_tune(document).decision


def test_patching_without_an_alpha_changes_nothing(model: torch.nn.Module) -> None:
    x = torch.randn(5, 3, 12, 12)
    before = model(x)
    alphatune.patch_(model)
    assert set(get_alpha(model).values()) == {1.0}
    assert torch.equal(model(x), before)


def test_a_model_of_both_kinds_has_no_single_baseline(model: torch.nn.Module) -> None:
    model.bn2 = torch.nn.BatchNorm2d(8)
    model.eval()
    with pytest.raises(UnsupportedModelError, match="BatchNorm and GroupNorm"):
        tune(model, loader())
    assert tune(model, loader(), exclude=["bn2"]).baseline_alpha == 1
    assert tune(model, loader(), exclude=["bn1"]).baseline_alpha == 0
