"""Finer α and temperature from the command line: real checkpoint, real images, what is written and read back."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from forks import run_forked

import alphatune
from alphatune.cli.main import main

SIZES = ("--input-size", 32, "--crop-pct", 1)
MEAN = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


@pytest.fixture(scope="module")
def job(request: pytest.FixtureRequest) -> list[str]:
    data, checkpoint = (request.getfixturevalue(name) for name in ("cifar_test", "resnet20_checkpoint"))
    words = ["tune", "alphatune.models.cifar:resnet20", "--checkpoint", checkpoint, "--data", data, *SIZES, *MEAN,
             "--limit", 160, "--metric", "loss", "--alphas", "0,0.05,0.1", "--workers", 1]  # fmt: skip
    return [*map(str, words)]


@pytest.fixture(scope="module")
def folder(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("refined") / "out"
    options = ["--granularity", "layer", "--temperature", "--accept", "best", "-o", str(out), "--quiet"]
    with pytest.raises(SystemExit) as end:
        main([*job, *options, "--format", "quiet"])
    assert end.value.code in (0, None)
    return out


def test_the_folder_holds_what_was_found(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    refinement = result["refinement"]
    assert [level["level"] for level in refinement["levels"]] == ["plain", "global", "stage", "layer"]
    assert [level["units"] for level in refinement["levels"]] == [0, 1, 3, 19]
    assert refinement["with_temperature"]
    plain = refinement["levels"][0]
    assert plain["metrics"]["loss"] == pytest.approx(result["baseline"]["loss"], abs=1e-6)
    assert plain["calibrated"]["loss"] < plain["metrics"]["loss"]  # the network is too sure of itself
    assert result["chosen"]["temperature"] > 1
    assert result["chosen"]["metrics"]["loss"] < plain["calibrated"]["loss"] + 0.02
    report = (folder / "report.md").read_text()
    assert "Finer α, and temperature" in report
    # So few images may be worth one α only; a figure comes with several.
    drawn = "figures/alpha-over-depth.svg" in {artifact["path"] for artifact in result["artifacts"]}
    assert drawn == ("figures/alpha-over-depth.svg" in report) == isinstance(result["chosen"]["alpha"], dict)
    assert not list(folder.parent.glob(".out.*"))


def test_it_is_read_back_as_it_was_measured(
    folder: Path, job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((folder / "result.json").read_text())
    data = job[job.index("--data") + 1]
    with pytest.raises(SystemExit):
        main(
            [
                *map(
                    str,
                    ("evaluate", folder, "--data", data, "--limit", 160, "--format", "json", "--workers", 1),
                )
            ]
        )
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["loss"] == pytest.approx(result["chosen"]["metrics"]["loss"], abs=1e-5)
    assert found["model"]["temperature"] == result["chosen"]["temperature"]
    assert found["model"]["alpha"] == pytest.approx(result["chosen"]["alpha"], abs=1e-6)


def test_the_temperature_folds_into_the_head(folder: Path) -> None:
    model = alphatune.load(folder)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        assert alphatune.fold_temperature_(model, x) == "linear"
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_a_tuned_folder_is_tuned_anew(folder: Path, job: list[str], tmp_path: Path) -> None:
    """Neither its α nor its temperature is taken for the plain model's."""
    result = json.loads((folder / "result.json").read_text())
    data = job[job.index("--data") + 1]
    words = (
        "tune",
        folder,
        "--data",
        data,
        "--limit",
        160,
        "--alphas",
        "0",
        "-o",
        tmp_path / "o",
        "--workers",
        1,
    )
    with pytest.raises(SystemExit):
        main([*map(str, words), "--quiet", "--format", "quiet"])
    again = json.loads((tmp_path / "o" / "result.json").read_text())
    assert again["baseline"] == pytest.approx(result["baseline"], abs=1e-6)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_result(folder: Path, job: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [
        "--granularity",
        "layer",
        "--temperature",
        "--accept",
        "best",
        "-o",
        str(out),
        "--quiet",
        "--checkpoint-minutes",
        "0",
    ]
    command = [*job, *options]
    state = tmp_path / ".out.alphatune-resume"

    def interrupt(pid: int) -> None:
        deadline = time.monotonic() + 120
        while not list(state.glob("global-*.pt")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(pid, signal.SIGTERM)

    code, _ = run_forked(command, meanwhile=interrupt)
    assert code == 143
    assert not out.exists()
    assert list(state.glob("*.pt"))
    other, err = run_forked([*command, "--resume", "--seed", 1])
    assert other == 3
    assert "other settings" in err
    done, err = run_forked([*command, "--resume"])
    assert done == 0, err
    assert not state.exists()
    whole, resumed = (json.loads((f / "result.json").read_text()) for f in (folder, out))
    assert resumed["chosen"] == whole["chosen"]
    for one, two in zip(resumed["refinement"]["levels"], whole["refinement"]["levels"], strict=True):
        assert {k: v for k, v in one.items() if k not in ("seconds", "passes")} == {
            k: v for k, v in two.items() if k not in ("seconds", "passes")
        }
