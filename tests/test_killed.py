"""Killed at any moment, without warning: what was there before is there after, and nothing half written has a name.

A server that has torch imported forks off each run, so that a run takes a
fraction of a second and is killed in the midst of it, not while it imports.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from conftest import TINY

import alphatune
from alphatune.hashing import sha256

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["alphatune.cli.main", "alphatune.jobs.tune", "alphatune.jobs.train", "alphatune.jobs.export", "pandas",
     "scipy.stats", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"]
)  # fmt: skip
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


def command(argv: list[str]) -> None:
    """What a process does."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    from alphatune.cli.main import main

    main(argv)


def started(argv: list[object]) -> BaseProcess:
    process = FORKS.Process(target=command, args=([str(word) for word in argv],))
    process.start()
    return process


def run_whole(argv: list[object]) -> float:
    begun = time.perf_counter()
    process = started(argv)
    process.join()
    assert process.exitcode == 0, argv
    return time.perf_counter() - begun


def kill_at_random(argv: list[object], longest: float, rng: random.Random) -> bool:
    """Kill a run at a moment between its start and a little after its usual end; whether it had not ended by then."""
    process = started(argv)
    time.sleep(rng.uniform(0, 1.1 * longest))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


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
