"""Other systems, as far as one can be made to lack what they lack: signals, locks, owners, syncing of folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TESTS, TINY, Run

from alphatune.core import cache_folder, system
from alphatune.kernels import cpu, dispatch


@pytest.mark.slow
def test_train_tune_and_resume_without_what_windows_lacks(image_folder: Path, tmp_path: Path) -> None:
    trained, tuned = str(tmp_path / "trained"), str(tmp_path / "tuned")
    images = ["--data", str(image_folder), "--workers", "0"]
    sized = [*images, "--input-size", "12", "--mean", "0.5", "--std", "0.5"]
    train = [
        "train",
        TINY,
        *sized,
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--val-fraction",
        "0.25",
        "-o",
        trained,
    ]
    tune = ["tune", trained, "--trust-code", *images, "--alphas", "0,0.1", "-o", tuned]
    weights = ["export", tuned, "--trust-code", "--format", "safetensors", "-o", f"{tuned}.safetensors"]
    # The second tune comes from the cache, and takes the place of the first.
    commands = [train, [*train, "--resume"], tune, [*tune, "--overwrite"], weights, ["report", tuned]]
    environment = os.environ | {"ALPHATUNE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, TESTS / "as_windows.py", *map(json.dumps, commands)],
        capture_output=True, text=True, timeout=250, env=environment, check=False,
    )  # fmt: skip
    codes = re.findall(r"^(\w+) (\d+)$", done.stdout, re.MULTILINE)
    assert codes == [(command[0], "0") for command in commands], done.stderr
    assert "from the cache" in done.stderr


def test_a_cache_folder_where_modes_do_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)  # what stat says of every folder on Windows
    assert cache_folder.private_folder(tmp_path / "cache") is None
    monkeypatch.setattr(system, "WINDOWS", True)
    assert cache_folder.private_folder(tmp_path / "cache") == tmp_path / "cache"


def test_a_file_of_a_model_on_a_drive(run: Run, image_folder: Path, tmp_path: Path) -> None:
    """``C:\\net.py:tiny`` has two colons."""
    drive = tmp_path / "C:"
    drive.mkdir()
    (drive / "net.py").write_text(Path(TINY.rpartition(":")[0]).read_text())
    code, _, err = run(
        "evaluate",
        f"{drive / 'net.py'}:tiny",
        "--data",
        image_folder,
        "--input-size",
        12,
        "--workers",
        0,
        "--limit",
        8,
    )
    assert code == 0, err


@pytest.fixture
def fresh_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nothing compiled yet, and two threads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu.load_library.cache_clear()
    yield
    cpu.load_library.cache_clear()


@pytest.mark.usefixtures("fresh_kernels")
def test_a_compiler_without_openmp_leaves_the_plain_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Apple's clang refuses -fopenmp; what it compiles would run in one thread. It is said once."""
    caplog.set_level("WARNING", "alphatune")
    asked = tmp_path / "asked"
    clang = tmp_path / "clang++"
    clang.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ncase "$*" in *-fopenmp*) exit 1;; esac\nexit 0\n')
    clang.chmod(0o700)
    monkeypatch.setenv("CXX", str(clang))
    assert [dispatch.resolve_kernel("auto", torch.device("cpu")) for _ in range(3)] == ["eager"] * 3
    assert len(caplog.records) == 1
    assert "OpenMP" in caplog.text
    assert "-fopenmp" in asked.read_text()
    monkeypatch.setattr("platform.system", lambda: "Darwin")  # where even trying could end the process
    asked.unlink()
    cpu.load_library.cache_clear()
    assert dispatch.resolve_kernel("auto", torch.device("cpu")) == "eager"
    assert not asked.exists()


@pytest.mark.slow  # each process imports torch anew
def test_workers_that_are_spawned(image_folder: Path) -> None:
    """As on macOS and Windows: whatever a worker needs has to be pickled."""
    program = (
        "import multiprocessing, sys\n"
        "from alphatune.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    main(sys.argv[1:])\n"
    )
    script = image_folder.parent / "spawning.py"
    script.write_text(program)
    words = [
        "evaluate",
        TINY,
        "--data",
        image_folder,
        "--input-size",
        12,
        "--workers",
        1,
        "--format",
        "quiet",
    ]
    done = subprocess.run(
        [sys.executable, script, *map(str, words)], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
