"""``torchrun -m alphatune tune``: one table, however many processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TESTS, TINY, slow, write_images
from forks import run_captured, run_distributed

from alphatune.core.distributed import World

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("count", [0, 1, 7, 10, 95, 1301])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_whole_batches_are_dealt_out_once(count: int, size: int) -> None:
    positions = np.arange(0, 2 * count, 2)
    shares = [World(rank, size).batches_of(positions, 10) for rank in range(size)]
    assert sorted(np.concatenate(shares)) == positions.tolist()
    whole = {tuple(positions[i : i + 10]) for i in range(0, count, 10)}
    assert {tuple(share[i : i + 10]) for share in shares for i in range(0, len(share), 10)} == whole


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 301 images of four classes."""
    root = write_images(tmp_path_factory.mktemp("many"), per_class=325)
    extra = root / "ant" / "000.png"
    (root / "ant" / "999.png").write_bytes(extra.read_bytes())
    return root


def tuned(processes: int, *args: object) -> dict[str, Any]:
    words = ["tune", *args]
    done, *others = (
        run_distributed(processes, words, environment=ENV) if processes > 1 else [run_captured(words)]
    )
    assert done.returncode == 0, done.stderr
    assert [other.returncode for other in others] == [0] * (processes - 1)
    document = json.loads(done.stdout)
    assert document["env"]["processes"] == processes
    for level in (document["refinement"] or {}).get("levels", ()):
        del level["seconds"]
    return {
        key: value
        for key, value in document.items()
        if key not in ("command_line", "env", "seconds", "artifacts", "deployment")
    }


@pytest.mark.parametrize("alphas", ["auto", slow("0,0.1")])
def test_results_are_identical(alphas: str, images: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    job = (
        TINY, "--checkpoint", tiny_checkpoint, "--data", images, "--input-size", 12, "--crop-pct", 1,
        "--mean", 0.5, "--std", 0.25, "--alphas", alphas, "--metric", "loss", "--accept", "best",
        "--workers", 0, "--batch-stats", "--format", "json",
    )  # fmt: skip
    if alphas != "auto":
        job = (*job, "--granularity", "layer", "--temperature")
    alone, *others = [
        tuned(n, *job, "-o", tmp_path / f"{n}") for n in ((1, 3) if alphas == "auto" else (1, 2))
    ]
    assert alone["data"]["n"] == 1301
    for other in others:
        assert other == alone


@pytest.mark.slow
def test_several_processes_go_on(images: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A device that fails in all of them at some batch; each goes on from its own share of the passes."""
    faulty = f"{TESTS / 'faulty.py'}:faulty"
    job: list[object] = [
        faulty, "--checkpoint", tiny_checkpoint, "--data", images, "--input-size", 12, "--crop-pct", 1,
        "--mean", 0.5, "--std", 0.25, "--alphas", "0,0.1", "--metric", "loss", "--accept", "best", "--workers", 0,
        "--batch-size", 50, "--format", "json", "--checkpoint-minutes", 0,
    ]  # fmt: skip
    words = ["tune", *job, "-o", tmp_path / "out"]
    failed = run_distributed(2, words, environment={**ENV, "FAULT": "gpu 15"})
    assert 0 not in [done.returncode for done in failed]
    left = {
        path.name.rpartition("-")[0][-4:] for path in (tmp_path / ".out.alphatune-resume").glob("pass-*.pt")
    }
    assert left == {"0of2", "1of2"}
    resumed = tuned(2, *job, "-o", tmp_path / "out", "--resume")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert resumed == tuned(2, *job, "-o", tmp_path / "whole")


@pytest.mark.slow
def test_nodes_without_a_shared_disk_keep_nothing(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Each of them has a state of its own to go on from, which is of no use when the result is written."""
    (tmp_path / "node.py").write_text(
        "import os\nfrom alphatune.cli.main import main\n"
        "folder = 'node' + os.environ['RANK']\nos.makedirs(folder, exist_ok=True)\nos.chdir(folder)\nmain()\n"
    )
    job: list[object] = [
        "tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--input-size", 12, "--crop-pct", 1,
        "--mean", 0.5, "--std", 0.25, "--alphas", "0,0.1", "--workers", 0, "--batch-size", 5, "-o", "out",
        "--checkpoint-minutes", 0, "--overwrite",
    ]  # fmt: skip
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "node.py",
    ]
    # The second run is answered from the cache, though what an earlier one was to go on from is still there.
    for _ in range(2):
        done = subprocess.run(
            [*launch, *map(str, job)], cwd=tmp_path, capture_output=True, text=True, timeout=240,
            env={**ENV, "ALPHATUNE_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (tmp_path / "node0").iterdir()] == ["out"]
        assert list((tmp_path / "node1").iterdir()) == []
        for node in ("node0", "node1"):
            left = tmp_path / node / ".out.alphatune-resume"
            left.mkdir()
            (left / "job.json").write_text("{}")
