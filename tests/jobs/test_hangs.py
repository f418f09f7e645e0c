"""Nothing is waited for forever: small shared memory, little memory, workers that die, batches that are lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, TESTS, TINY, Run, slow
from PIL import Image
from tiny import tiny
from torch.utils.data import DataLoader, Dataset

import alphatune
from alphatune.core.errors import ResourceError
from alphatune.data import workers
from alphatune.data.workers import PREFETCH, WORKER_BYTES, affordable_workers

MIB = 2**20
IMAGES = ("--input-size", 224, "--crop-pct", 1, "--mean", 0.5, "--std", 0.25, "--no-pretrained")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 images; four batches ahead of each of four workers take 77 MiB."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i in range(128):
            pixels = rng.integers(0, 160, (8, 8, 3)) + 80 * (np.arange(3) == label % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:03}.png")
    return root


def in_container(size: str, *command: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """A command in a mount namespace with a /dev/shm of this size, as a container has one."""
    if shutil.which("unshare") is None or sys.platform != "linux":
        pytest.skip("no unshare")
    for namespace in (("-m",), ("-r", "-m")):
        enter = [
            "unshare", *namespace, "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh",
        ]  # fmt: skip
        if subprocess.run([*enter, "true"], capture_output=True).returncode == 0:
            return subprocess.run(
                [*enter, *map(str, command)], capture_output=True, text=True, timeout=120, **how
            )
    pytest.skip("no mount namespace may be made here")


@pytest.mark.slow
@pytest.mark.parametrize("count", ["8", *(pytest.param(n, marks=pytest.mark.slow) for n in ("auto", "4"))])
def test_little_shared_memory(large: Path, tmp_path: Path, count: str) -> None:
    sweep = () if count == "8" else ("--alphas", "0,0.1", "-o", tmp_path / "out")
    done = in_container(
        "64m", sys.executable, "-m", "alphatune", "tune" if sweep else "evaluate", TINY, "--data", large, *IMAGES,
        "--batch-size", 32, "--workers", count, "--format", "json", *sweep,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["n"] == 512


def stacked(batch: list[Any]) -> Any:
    images, labels = zip(*batch, strict=True)
    return torch.stack(images), torch.stack(labels)


OWN_LOADER = """
import torch
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    import sys
    sys.path.insert(0, sys.argv[1])
    from tiny import tiny
    import alphatune
    data = TensorDataset(torch.randn(256, 3, 128, 128), torch.arange(256) % 4)
    unzipped = None
    if sys.argv[3] == "stacked":  # not in shared memory at once, as PyTorch's own collate does
        import conftest  # which knows the folders of tests
        from test_hangs import stacked as unzipped
    loader = DataLoader(
        data, 32, num_workers=4, prefetch_factor=4, multiprocessing_context=sys.argv[2], collate_fn=unzipped
    )
    try:
        alphatune.tune(tiny(), loader, alphas="0,0.1")
    except alphatune.core.errors.ResourceError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "collate"),
    [("fork", "stacked"), *(pytest.param(m, "torch", marks=pytest.mark.slow) for m in ("fork", "spawn"))],
)
def test_a_loader_of_ones_own_that_finds_no_room_in_shared_memory(
    tmp_path: Path, method: str, collate: str
) -> None:
    """Its workers print an error, drop the batch, and would be waited for."""
    script = tmp_path / "own.py"
    script.write_text(OWN_LOADER.replace("import alphatune\n", "import alphatune, alphatune.core.errors\n"))
    began = time.monotonic()
    done = in_container("8m", sys.executable, script, TESTS, method, collate)
    assert done.returncode == 0, done.stderr
    assert "--shm-size" in done.stdout
    assert time.monotonic() - began < 60


def killed(index: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bus_error(index: int) -> None:
    os.kill(os.getpid(), signal.SIGBUS)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise MemoryError


class Bad(Dataset[Any]):
    """Something happens in a worker, at the twentieth image."""

    def __init__(self, happens: Callable[[int], Any]) -> None:
        self.happens = happens

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        extra = self.happens(index) if index == 20 else None
        return torch.full((3, 12, 12), float(index)), index % 4, extra


def unzipped(batch: list[Any]) -> Any:
    images, labels, extras = zip(*batch, strict=True)
    return torch.stack(images), torch.tensor(labels), extras


LOST = """
import sys
import conftest  # which knows the folders of tests
from test_hangs import Bad, Unpicklable, bus_error, killed, tiny, unzipped
from torch.utils.data import DataLoader
import alphatune
from alphatune.core.errors import ResourceError

how, happens = sys.argv[1], {"killed": killed, "bus error": bus_error, "lost": lambda _: Unpicklable()}[sys.argv[2]]
loader = DataLoader(Bad(happens), 4, num_workers=2, collate_fn=unzipped)
call = {
    "tune": lambda: alphatune.tune(tiny(), loader, alphas="0,0.1"),
    "tune_score": lambda: alphatune.tune_score(tiny(), loader, lambda o, t: o.sum(1), alphas="0,0.1"),
    "recalibrate_": lambda: alphatune.recalibrate_(tiny(), loader),
}
try:
    call[how]()
except ResourceError as error:
    assert loader.worker_init_fn is None
    print(error)
"""


@pytest.mark.parametrize(
    ("how", "happens"), [slow("tune", "killed"), slow("tune_score", "bus error"), ("recalibrate_", "lost")]
)
def test_a_worker_or_batch_of_ones_own_loader_that_is_lost(happens: str, how: str) -> None:
    """In a process of its own: torch raises wherever the main process is when a worker dies."""
    done = subprocess.run(
        [sys.executable, "-c", LOST, how, happens],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert "a worker process" in done.stdout, done.stderr


def test_torchs_own_error_comes_before_ours() -> None:
    """By a signal, a little after the connection to the worker is lost; later it would break into a clean-up."""
    spoken = False

    class Lost(DataLoader[Any]):
        def __iter__(self) -> Any:
            yield torch.zeros(4, 3, 12, 12)
            self.__dict__["num_workers"] = 1
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            raise ConnectionResetError

    def speak(*_: object) -> None:
        nonlocal spoken
        spoken = True
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly with exit code 1.")

    before = signal.signal(signal.SIGALRM, speak)
    try:
        with pytest.raises(ResourceError, match="a worker process"):
            alphatune.recalibrate_(tiny(), Lost(Bad(lambda _: 0)))
        assert spoken
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_workers_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, image_folder: Path, run: Run
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")  # what a sandbox without /dev/shm says

    monkeypatch.setattr("multiprocessing.Lock", refuse)
    for count in ("auto", "4"):
        code, _, err = run(
            "evaluate", TINY, "--data", image_folder, *IMAGES, "--workers", count, "--batch-size", 8
        )
        assert code == 0, err
        assert ("0 workers read images, not 4" in err) is (count == "4")


def test_a_loader_of_ones_own_whose_workers_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)
    with pytest.raises(ResourceError, match=r"cannot be started.*num_workers=0"):
        alphatune.tune(tiny(), DataLoader(Bad(lambda _: 0), 4, num_workers=2), alphas="0,0.1")


@pytest.mark.parametrize("available", [0, 100 * MIB, 1_000 * MIB, 10_000 * MIB, None])
@pytest.mark.parametrize("batch", [0, MIB, 40 * MIB, 2_000 * MIB])
@pytest.mark.parametrize("asked", [0, 1, 4, 8, 64])
def test_workers_fit_into_memory(
    available: int | None, batch: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "available_memory", lambda: available)
    used, ahead = affordable_workers(asked, batch)
    assert 0 <= used <= asked
    assert 1 <= ahead <= PREFETCH
    takes = lambda count, ahead: count * (WORKER_BYTES + 2 * batch * ahead)  # noqa: E731
    if available is None:
        assert (used, ahead) == (asked, PREFETCH)
    else:
        assert takes(used, ahead if used else 0) <= available / 2
        if used < asked:  # as many as fit
            assert takes(used + 1, 1) > available / 2


def test_less_memory_than_the_workers_want_is_said(
    image_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "available_memory", lambda: 400 * MIB)
    code, _, err = run("evaluate", TINY, "--data", image_folder, *IMAGES, "--workers", 8, "--batch-size", 8)
    assert code == 0, err
    assert "3 workers read images, not 8" in err


@pytest.mark.slow
def test_a_worker_of_ours_that_has_no_memory_for_a_batch(large: Path) -> None:
    """The limit leaves room to decode, and none to hand over."""
    code = """
import resource, sys
from alphatune.data import workers
begin = workers._begin_worker
def begin_in_little_room(worker):
    begin(worker)
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 6 * 2**20, resource.RLIM_INFINITY))
workers._begin_worker = begin_in_little_room
from alphatune.cli.main import main
main(sys.argv[1:])
"""
    words = ("evaluate", TINY, "--data", large, *IMAGES, "--workers", 2, "--batch-size", 128)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (3, 5), done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
