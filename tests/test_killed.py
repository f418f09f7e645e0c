"""Killed at any moment, without warning: what was there before is there after, and nothing half written has a name.

A process is forked off this one, which has torch imported, so that a run takes
a fraction of a second and is killed in the midst of it, not while it imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pandas  # noqa: F401  all that a run would import first
import pytest
import scipy.stats  # noqa: F401
import torch
from conftest import TINY

import alphatune
import alphatune.jobs.export
import alphatune.jobs.train
import alphatune.jobs.tune
from alphatune.cli.main import main
from alphatune.hashing import sha256

SIZE = (
    "--input-size",
    12,
    "--crop-pct",
    1,
    "--mean",
    0.5,
    "--std",
    0.25,
    "--workers",
    0,
    "-q",
    "--format",
    "quiet",
)


def forked(argv: list[object]) -> int:
    """Start a command in a process of its own."""
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    code = 99
    torch.set_num_threads(1)  # the threads of this process's parent are not in this one
    try:
        main([str(word) for word in argv])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def run_whole(argv: list[object]) -> float:
    started = time.perf_counter()
    _, status = os.waitpid(forked(argv), 0)
    assert os.waitstatus_to_exitcode(status) == 0, argv
    return time.perf_counter() - started


def kill_at_random(argv: list[object], longest: float, rng: random.Random) -> bool:
    """Kill a run at a moment between its start and a little after its usual end; whether it had not ended by then."""
    child = forked(argv)
    time.sleep(rng.uniform(0, 1.1 * longest))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def is_whole(folder: Path) -> None:
    """Every file is what result.json says, and the model can be read."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for artifact in result["artifacts"]:
        assert sha256(folder / artifact["path"]) == artifact["sha256"], artifact["path"]
    if result["command"] == "tune":  # a run that trained keeps the state it went on from, too
        names = {a["path"] for a in result["artifacts"]} | {"result.json"}
        assert {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} == names
    alphatune.load(folder, trust_code=True)


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


KILLS = [pytest.param(4), pytest.param(70, marks=pytest.mark.slow)]


@pytest.fixture
def tune(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> list[object]:
    return ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, *SIZE, "--accept", "best",
            "--metric", "loss", "--thumbnails", 2, "-o", tmp_path / "out"]  # fmt: skip


@pytest.mark.parametrize("kills", KILLS)
def test_tune(tune: list[object], tmp_path: Path, kills: int) -> None:
    run_whole([*tune, "--alphas", "0,0.2"])
    before = sha256(tmp_path / "out" / "result.json")
    longest = run_whole([*tune, "--alphas", "0,0.3,0.4", "--overwrite"])
    after = {sha256(tmp_path / "out" / "curve.csv")}
    rng, killed = random.Random(0), 0
    for _ in range(kills):
        killed += kill_at_random([*tune, "--alphas", "0,0.3,0.4", "--overwrite"], longest, rng)
        assert visible(tmp_path) == {"out"} | (visible(tmp_path) - {"out"})
        is_whole(tmp_path / "out")
        assert {sha256(tmp_path / "out" / "curve.csv")} <= after
    assert killed >= kills // 2
    assert before != sha256(tmp_path / "out" / "result.json")


@pytest.mark.parametrize("kills", KILLS)
def test_a_first_tune_appears_whole_or_not_at_all(tune: list[object], tmp_path: Path, kills: int) -> None:
    words = [*tune, "--alphas", "0,0.3"]
    longest = run_whole(words)
    rng = random.Random(1)
    for _ in range(kills):
        for old in tmp_path.glob("out*"):
            old.rename(tmp_path / f".old-{rng.random()}")
        kill_at_random(words, longest, rng)
        if (tmp_path / "out").exists():
            is_whole(tmp_path / "out")


@pytest.mark.parametrize("kills", KILLS)
def test_train_goes_on_to_the_same_bytes(image_folder: Path, tmp_path: Path, kills: int) -> None:
    """However often it is killed, and wherever."""

    def words(out: str) -> list[object]:
        return ["train", TINY, "--data", image_folder, "--val-fraction", 0.25, *SIZE, "--epochs", 4,
                "--batch-size", 8, "--checkpoint-minutes", 0, "-o", tmp_path / out]  # fmt: skip

    longest = run_whole(words("whole"))
    wanted = sha256(tmp_path / "whole" / "model.safetensors")
    rng, attempt = random.Random(2), 0
    for kill in range(kills):
        run = tmp_path / f"run{attempt}"
        begun = run.exists() and any(run.iterdir())
        kill_at_random([*words(run.name), *(["--resume"] if begun else [])], longest, rng)
        finished = (run / "result.json").exists()
        if run.exists() and any(run.iterdir()) and not finished and (kill % 4 == 3 or kill == kills - 1):
            run_whole([*words(run.name), "--resume"])
            finished = True
        if finished:
            is_whole(run)
            assert sha256(run / "model.safetensors") == wanted
            attempt += 1
    assert attempt > 0


@pytest.mark.parametrize("kills", KILLS)
def test_export(tune: list[object], tmp_path: Path, kills: int) -> None:
    from safetensors import safe_open

    run_whole([*tune, "--alphas", "0,0.3"])
    words = ["export", tmp_path / "out", "--format", "safetensors", "--trust-code", "--output",
             tmp_path / "exported.safetensors", "--overwrite"]  # fmt: skip
    longest = run_whole(words)
    whole = sha256(tmp_path / "exported.safetensors")
    rng = random.Random(3)
    for i in range(kills):
        if i % 2:
            (tmp_path / "exported.safetensors").unlink(missing_ok=True)
        kill_at_random(words, longest, rng)
        if (tmp_path / "exported.safetensors").exists():
            assert sha256(tmp_path / "exported.safetensors") == whole
            with safe_open(tmp_path / "exported.safetensors", "pt") as file:
                assert list(file.keys())
    assert visible(tmp_path) <= {"out", "exported.safetensors"}
