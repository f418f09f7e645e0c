"""Many images, many workers, many commands at once: nothing grows, nothing is left, and nobody gets in another's way."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, TINY, slow
from forks import is_whole, run_at_once
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

WORKERS = 8
SHARED_MEMORY = Path("/dev/shm")


def write_archive(path: Path, count: int) -> Path:
    """A tar of JPEGs of 32×32 in class folders; 64 different images, again and again."""
    rng = np.random.default_rng(0)
    encoded = []
    for i in range(64):
        pixels = rng.integers(0, 160, (32, 32, 3)) + 80 * (np.arange(3) == i % 3)
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG")
        encoded.append(stream.getvalue())
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            info = tarfile.TarInfo(f"{CLASSES[i % 4]}/{i:06}.jpg")
            info.size = len(encoded[i % 64])
            archive.addfile(info, io.BytesIO(encoded[i % 64]))
    return path


@dataclass
class Watched:
    """A command, and what it took of the machine while it ran."""

    process: subprocess.Popen[str]
    memory: list[int] = field(
        default_factory=list
    )  # KiB of the main process over time, while workers are there
    descriptors: list[int] = field(default_factory=list)
    looks: Counter[int] = field(default_factory=Counter)  # at each child

    @property
    def workers(self) -> set[int]:
        """Not a child that is about to become another program: that has no name of its own yet, either."""
        return {child for child, times in self.looks.items() if times > 2}

    def look(self) -> None:
        proc = Path(f"/proc/{self.process.pid}")
        try:
            status = dict(
                line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
            )
            self.descriptors.append(len(list((proc / "fd").iterdir())))
            children = (proc / "task" / proc.name / "children").read_text().split()
            # Before torch 2.6 a worker has no name of its own: it is what the process was forked into.
            own = Path(f"/proc/{self.process.pid}/cmdline").read_bytes()
            workers = {int(c) for c in children if Path(f"/proc/{c}/cmdline").read_bytes() == own}
            if len(workers) == WORKERS:
                self.memory.append(int(status["VmRSS"].split()[0]))
            self.looks.update(workers)
        except (OSError, KeyError):
            pass  # it has just ended


def _as_in_a_terminal() -> None:
    """A job in the background inherits "ignore Ctrl-C", and one under nohup "ignore SIGHUP"."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(words: list[object], folder: Path) -> Watched:
    """The command in a group and with a temporary folder of its own."""
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    return Watched(
        subprocess.Popen(
            [sys.executable, "-m", "alphatune", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment, start_new_session=True,
            preexec_fn=_as_in_a_terminal,
        )
    )  # fmt: skip


def segments() -> set[str]:
    """Shared memory that torch and multiprocessing hold under a name."""
    return {f.name for f in SHARED_MEMORY.iterdir() if f.name.startswith(("torch_", "sem.mp-", "psm_"))}


def assert_nothing_left(watched: Watched, folder: Path, before: set[str]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in watched.workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [worker for worker in watched.workers if Path(f"/proc/{worker}").exists()] == []
    assert segments() <= before
    left = [path.name for path in (folder / "tmp").iterdir()]
    assert [name for name in left if not name.startswith("torchinductor_")] == []  # torch's own, and kept
    hidden = {path.name for path in folder.iterdir() if path.name.startswith(".")}
    assert hidden <= {".out.alphatune-resume"}  # the passes that --resume goes on with


def tune(archive: Path, checkpoint: Path, folder: Path, *options: object) -> list[object]:
    return ["tune", TINY, "--checkpoint", checkpoint, "--data", archive, "--input-size", 32, "--crop-pct", 1,
            "--mean", 0.5, "--std", 0.25, "--workers", WORKERS, "--cache", "none", "--metric", "loss",
            "--accept", "best", "-q", "--format", "json", "-o", folder / "out", *options]  # fmt: skip


SIZES = [pytest.param(4_000, id="4000"), pytest.param(100_000, id="100000", marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("count", SIZES)
def test_memory_is_flat_and_nothing_is_left(
    count: int, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pass over all images at two α, each batch decoded in one of eight processes.

    A tensor that comes from a worker holds a file open: 1024 of them are all that many systems give a process.
    """
    archive = write_archive(tmp_path / "images.tar", count)
    before = segments()
    size = 8 if count < 10_000 else 32
    watched = start(
        tune(archive, tiny_checkpoint, tmp_path, "--alphas", "0,0.3", "--batch-size", size), tmp_path
    )
    while watched.process.poll() is None:
        watched.look()
        time.sleep(count / 200_000)
    out, err = watched.process.communicate()
    assert watched.process.returncode == 0, err
    assert json.loads(out)["data"]["n"] == count
    assert len(watched.workers) == WORKERS
    assert max(watched.descriptors) < 250  # 500 batches, or 3 125
    assert_nothing_left(watched, tmp_path, before)
    is_whole(tmp_path / "out")
    if count > 10_000:  # a short run is all warm-up
        quarter = len(watched.memory) // 4
        first, second = max(watched.memory[quarter : 2 * quarter]), max(watched.memory[2 * quarter :])
        with capsys.disabled():
            print(
                f"\n{count} images, {WORKERS} workers: {len(watched.memory)} looks; main process {first / 1024:.0f} MiB at "
                f"most in the second quarter of the pass, {second / 1024:.0f} MiB in its second half; "
                f"descriptors {min(watched.descriptors)} to {max(watched.descriptors)}"
            )
        assert second < first + 30 * 1024  # scores of 2 α take 26 bytes an example each


@pytest.mark.parametrize(
    "number", [signal.SIGINT, slow(signal.SIGTERM), slow(signal.SIGHUP)], ids=["SIGINT", "SIGTERM", "SIGHUP"]
)
@pytest.mark.parametrize("count", SIZES)
def test_nothing_is_left_after_an_interruption(
    count: int, number: signal.Signals, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Ctrl-C reaches the whole group, workers included."""
    archive = write_archive(tmp_path / "images.tar", count)
    before = segments()
    watched = start(tune(archive, tiny_checkpoint, tmp_path, "--batch-size", 16), tmp_path)
    while len(watched.workers) < WORKERS and watched.process.poll() is None:
        watched.look()
        time.sleep(0.002)
    time.sleep(0.3)
    os.killpg(watched.process.pid, number)
    out, err = watched.process.communicate(timeout=60)
    code = 128 + number
    assert watched.process.returncode == code, err
    assert json.loads(out)["error"]["code"] == code
    assert_nothing_left(watched, tmp_path, before)
    assert not (tmp_path / "out").exists()


# --- many commands at once --------------------------------------------------------------------


def at_once(commands: list[list[object]], environment: dict[str, str]) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    found = run_at_once(commands, [environment] * len(commands))
    assert not [done.stderr for done in found if "Traceback" in done.stderr]
    return [(done.returncode, done.stderr) for done in found]


@pytest.fixture
def small(image_folder: Path, tiny_checkpoint: Path) -> list[object]:
    return ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--input-size", 12,
            "--crop-pct", 1, "--mean", 0.5, "--std", 0.25, "--workers", 0, "--metric", "loss", "--accept", "best",
            "-q", "--format", "quiet"]  # fmt: skip


AT_ONCE = [3, pytest.param(12, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", AT_ONCE)
def test_one_output(small: list[object], tmp_path: Path, count: int) -> None:
    """One of them writes it, the others say so."""
    found = at_once([[*small, "-o", tmp_path / "out"]] * count, {})
    assert sorted(code for code, _ in found) == [0] + [2] * (count - 1)
    for code, err in found:
        assert code == 0 or "another process is writing" in err or "exists" in err, err
    is_whole(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("count", AT_ONCE)
def test_one_output_that_all_may_replace(small: list[object], tmp_path: Path, count: int) -> None:
    words = [*small, "-o", tmp_path / "out", "--overwrite"]
    found = at_once([[*words, "--alphas", f"0,0.{i + 1}"] for i in range(count)], {})
    assert {code for code, _ in found} <= {0, 2}
    assert 0 in {code for code, _ in found}
    is_whole(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("count", AT_ONCE)
def test_one_cache_of_results(small: list[object], tmp_path: Path, count: int) -> None:
    """The same job many times: whoever comes first keeps its result, and all have the same."""
    cache = tmp_path / "cache"
    environment = {"ALPHATUNE_CACHE": str(cache)}
    found = at_once([[*small, "-o", tmp_path / f"out{i}"] for i in range(count)], environment)
    assert [code for code, _ in found] == [0] * count, found
    for i in range(count):
        is_whole(tmp_path / f"out{i}")
        for name in ("model.safetensors", "curve.csv", "scores.npz"):
            assert (tmp_path / f"out{i}" / name).read_bytes() == (tmp_path / "out0" / name).read_bytes()
    (kept,) = [path for path in cache.iterdir() if path.name != "notes"]
    is_whole(kept)
    ((code, err),) = at_once([[*[w for w in small if w != "-q"], "-o", tmp_path / "again"]], environment)
    assert code == 0
    assert "from the cache" in err


@pytest.mark.slow
def test_one_cache_of_kernels(small: list[object], tmp_path: Path) -> None:
    """All of them compile, or find compiled, the same kernel."""
    if not shutil.which("c++") and not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("no compiler here")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    found = at_once(
        [[*small, "--kernel", "compiled", "-o", tmp_path / f"out{i}"] for i in range(3)], environment
    )
    assert [code for code, _ in found] == [0] * 3, found
    assert len({(tmp_path / f"out{i}" / "curve.csv").read_bytes() for i in range(3)}) == 1


@pytest.mark.parametrize("kind", ["safetensors", pytest.param("pt2", marks=pytest.mark.slow)])
def test_one_exported_file(small: list[object], tmp_path: Path, kind: str) -> None:
    at_once([[*small, "-o", tmp_path / "out"]], {})
    path = tmp_path / f"exported.{kind}"
    words = ["export", tmp_path / "out", "--format", kind, "--trust-code", "--output", path]
    found = at_once([words] * 3, {})
    assert sorted(code for code, _ in found) == [0, 2, 2], found
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name, "out"]
