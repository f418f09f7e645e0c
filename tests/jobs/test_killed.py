"""Killed at any moment, without warning: what was there before is there after, and nothing half written has a name."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from conftest import TINY
from forks import SIZE, is_whole, run_whole, started

from alphatune.core.hashing import sha256


def kill_at_random(argv: list[object], longest: float, rng: random.Random) -> bool:
    """Kill a run at a moment between its start and a little after its usual end; whether it had not ended by then."""
    process = started(argv)
    time.sleep(rng.uniform(0, 1.1 * longest))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


#: what of a tuned folder does not hold times
BYTES = ("model.safetensors", "alphatune.json", "curve.csv", "scores.npz")
KILLS = [pytest.param(4), pytest.param(70, marks=pytest.mark.slow)]


@pytest.fixture
def tune(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> list[object]:
    return ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, *SIZE, "--format", "quiet",
            "--accept", "best", "--metric", "loss", "--thumbnails", 2, "-o", tmp_path / "out"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kills", KILLS)
def test_tune(tune: list[object], tmp_path: Path, kills: int) -> None:
    jobs = [[*tune, "--overwrite", "--alphas", alphas] for alphas in ("0,0.2", "0,0.3,0.4")]
    wanted, longest = [], 0.0
    for job in jobs:
        longest = run_whole(job)  # of the second: the first one waits for imports
        wanted.append(sha256(tmp_path / "out" / "curve.csv"))
    assert wanted[0] != wanted[1]
    rng, killed, now = random.Random(0), 0, 1
    for _ in range(kills):
        other = 1 - now
        ended = not kill_at_random(jobs[other], longest, rng)
        killed += not ended
        assert visible(tmp_path) == {"out"}
        is_whole(tmp_path / "out")
        found = sha256(tmp_path / "out" / "curve.csv")
        assert found == wanted[other] or (not ended and found == wanted[now])
        now = wanted.index(found)
    assert killed >= kills // 4  # a machine may be faster by then
    run_whole(jobs[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what the killed runs left is gone


@pytest.mark.parametrize("kills", KILLS)
def test_a_tune_goes_on_to_the_same_bytes(tune: list[object], tmp_path: Path, kills: int) -> None:
    """However often it is killed, and wherever."""
    words = [*tune[:-2], "--checkpoint-minutes", 0, "--batch-size", 4, "--alphas", "0:0.4:9"]
    longest = run_whole([*words, "-o", tmp_path / "whole"])
    wanted = {name: sha256(tmp_path / "whole" / name) for name in BYTES}
    rng, attempt, killed = random.Random(4), 0, 0
    for kill in range(kills):
        out = tmp_path / f"run{attempt}"
        resumed = [*words, "-o", out, "--resume"]
        killed += kill_at_random(resumed, longest, rng)
        if not out.exists() and (kill % 4 == 3 or kill == kills - 1):
            run_whole(resumed)
        if out.exists():
            is_whole(out)
            assert {name: sha256(out / name) for name in BYTES} == wanted
            attempt += 1
    assert killed >= kills // 4
    assert visible(tmp_path) == {"whole", *(f"run{i}" for i in range(attempt))}


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("kills", KILLS)
def test_train_goes_on_to_the_same_bytes(image_folder: Path, tmp_path: Path, kills: int) -> None:
    """However often it is killed, and wherever."""

    def words(out: str) -> list[object]:
        return ["train", TINY, "--data", image_folder, "--val-fraction", 0.25, *SIZE, "--format", "quiet", "--epochs", 4,
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


@pytest.mark.slow
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
