"""``alphatune bench`` through its entry point, folding on real architectures, timing on made-up clocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from tiny import tiny
from torch import nn

from alphatune.cli.main import main
from alphatune.deployment import deployment_cost
from alphatune.models.folding import fold
from alphatune.norms.patching import get_alpha, patch_
from alphatune.timing import interleave

RESNET20 = "alphatune.models.cifar:resnet20"
MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: timm.create_model("resnet18", num_classes=5),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_100", num_classes=5),
    "efficientnet": lambda: timm.create_model("efficientnet_b0", num_classes=5),
    "densenet": lambda: torchvision.models.densenet121(num_classes=5),
    "vgg": lambda: torchvision.models.vgg11_bn(num_classes=5),
}


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *map(str, args)])
    out, err = capsys.readouterr()
    assert (stop.value.code or 0) == code, err
    assert "Traceback" not in err
    return out


def settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_model_computes_the_same(name: str) -> None:
    model, x = settled(MODELS[name]()), torch.randn(2, 3, 64, 64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    folding = fold(model)
    with torch.no_grad():
        expected, found = model(x), folding.model(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert folding.norms == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert folding.folded if name != "densenet" else len(folding.folded) < folding.norms


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    out = run(
        capsys,
        RESNET20,
        "--input-size",
        32,
        "--batch-size",
        "1,4",
        "--seconds",
        0.3,
        "--format",
        "json",
        "-o",
        file,
    )
    document = json.loads(out)
    assert json.loads(file.read_text()) == document
    assert document["command"] == "bench"
    rows = document["results"]
    assert {row["batch_size"] for row in rows} == {1, 4}
    assert {"plain", "folded", "example-weighted"} == {row["variant"] for row in rows}
    assert {"eager"} <= {row["kernel"] for row in rows if row["variant"] == "example-weighted"}
    for row in rows:
        assert 0 < row["low_s"] <= row["median_s"] <= row["high_s"]
        assert row["images_per_s"] == pytest.approx(row["batch_size"] / row["median_s"])
    assert [cost["alpha"] for cost in document["cost"]] == [0.05, 0.05]
    run(capsys, RESNET20, "--input-size", 32, "--seconds", 0.1, "-o", file, code=2)  # it is there already


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, RESNET20, "--input-size", 32, "--batch-size", 2, "--seconds", 0.1, "--alpha", 0.1)
    assert "example-weighted" in out
    assert "plain" in out


@pytest.mark.parametrize("wrong", [
    ("--batch-size", "0"), ("--batch-size", "x"), ("--seconds", "-1"), ("--alpha", "2"), ("--dtype", "int8"),
])  # fmt: skip
def test_usage_errors(capsys: pytest.CaptureFixture[str], wrong: tuple[str, str]) -> None:
    run(capsys, RESNET20, "--input-size", 32, *wrong, code=2)


@pytest.mark.parametrize("alpha", [None, 0.2])
def test_the_model_is_left_alone(alpha: float | None) -> None:
    model = settled(tiny()).train()
    if alpha is not None:
        patch_(model, alpha)
    before, types = get_alpha(model), [type(m) for m in model.modules()]
    cost = deployment_cost(model, torch.randn(2, 3, 12, 12), alpha=0.1, budget_seconds=0.05)
    assert cost.ratio_to_plain > 0
    assert get_alpha(model) == before
    assert [type(m) for m in model.modules()] == types
    assert model.training


def test_runs_are_interleaved() -> None:
    order: list[str] = []
    timings = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.01, rounds=5
    )
    assert set(timings) == {"a", "b"}
    assert all(len(timing.samples) >= 5 for timing in timings.values())
    rounds = ["".join(order[-2 * i - 2 : len(order) - 2 * i]) for i in range(5)]
    assert set(rounds) <= {"ab", "ba"}  # each round holds every function once
    assert all(timing.low <= timing.median <= timing.high for timing in timings.values())
