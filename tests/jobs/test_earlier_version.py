"""Folders and settings that commit a5ac388 wrote are read as they were meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import TESTS, Run

WRITTEN = TESTS / "written" / "a5ac388"


@pytest.mark.parametrize("name", ["tuned", "trained"])
def test_a_folder_evaluates_to_the_same(run: Run, image_folder: Path, name: str) -> None:
    words = ["--trust-code", "--data", image_folder, "--workers", 0, "-q", "--format", "json"]
    code, out, err = run("evaluate", WRITTEN / name, *words)
    assert code == 0, err
    then, now = json.loads((WRITTEN / f"{name}-evaluate.json").read_text()), json.loads(out)
    assert now["metrics"] == pytest.approx(
        now["metrics"] | then["metrics"], rel=1e-6
    )  # of another torch, perhaps
    for key in ("alpha", "checkpoint_sha256", "patched", "norm_layers"):
        assert now["model"][key] == then["model"][key], key
    assert now["data"]["n"] == then["data"]["n"]


def test_its_settings_give_the_same_tune(run: Run, image_folder: Path, tmp_path: Path) -> None:
    own = ["--checkpoint", WRITTEN / "tiny.pth", "--data", image_folder, "-o", tmp_path / "out", "-q"]
    code, _, err = run("tune", "--config", WRITTEN / "tuned" / "run.toml", *own)
    assert code == 0, err
    then, now = WRITTEN / "tuned", tmp_path / "out"
    assert (now / "model.safetensors").read_bytes() == (then / "model.safetensors").read_bytes()
    before, after = (pd.read_csv(folder / "curve.csv") for folder in (then, now))
    pd.testing.assert_frame_equal(
        after[before.columns], before, rtol=1e-6, atol=1e-7
    )  # there are more metrics now


def test_a_tune_is_reported(run: Run, tmp_path: Path) -> None:
    code, _, err = run("report", WRITTEN / "tuned", "--output", tmp_path / "page.html")
    assert code == 0, err
    assert "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_training_goes_on(run: Run, image_folder: Path, tmp_path: Path) -> None:
    """It is finished; settings that came later are at their defaults."""
    shutil.copytree(WRITTEN / "trained", tmp_path / "run")
    text = (tmp_path / "run" / "run.toml").read_text(encoding="utf-8")
    (tmp_path / "run" / "run.toml").write_text(text.replace("/tmp/w/fix/images", str(image_folder)))
    words = [
        "--config",
        tmp_path / "run" / "run.toml",
        "-o",
        tmp_path / "run",
        "--resume",
        "-q",
        "--format",
        "json",
    ]
    code, out, err = run("train", *words)
    assert code == 0, err
    assert (
        json.loads(out)["validation"]
        == json.loads((WRITTEN / "trained" / "result.json").read_text())["validation"]
    )
    code, _, err = run("train", *words, "--lr", 0.5)
    assert code == 2
    assert "lr" in err
