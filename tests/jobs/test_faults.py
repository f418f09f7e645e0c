"""Disks, memory, workers and devices that fail: an error of ours in one line, and what was there before is there after."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import TESTS, TINY, slow, write_images
from forks import SIZE, is_whole, run_forked, run_whole

from alphatune.core.errors import machine_failure
from alphatune.core.hashing import sha256
from alphatune.core.versions import EXPORTED_PROGRAM, ONNX, torch_allows
from alphatune.data.workers import from_workers

FAULTY = f"{TESTS / 'faulty.py'}:faulty"


@pytest.fixture
def tune(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> list[object]:
    return ["tune", FAULTY, "--checkpoint", tiny_checkpoint, "--data", image_folder, *SIZE, "--batch-size", 8,
            "--accept", "best", "--metric", "loss", "--thumbnails", 2, "--alphas", "0,0.3,0.4",
            "-o", tmp_path / "out"]  # fmt: skip


@pytest.fixture
def train(image_folder: Path, tmp_path: Path) -> list[object]:
    return ["train", FAULTY, "--data", image_folder, "--val-fraction", 0.25, *SIZE, "--epochs", 3,
            "--batch-size", 9, "--checkpoint-minutes", 0, "-o", tmp_path / "run"]  # fmt: skip


def files(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()}


def one_error(err: str) -> str:
    assert "Traceback" not in err, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


# --- disks ------------------------------------------------------------------------------------


def limits(folder: Path, few: int | None) -> list[int]:
    """Sizes that files may have so that writing fails at each file of the folder."""
    sizes = sorted({f.stat().st_size - 1 for f in folder.rglob("*") if f.is_file()})
    return sizes if few is None else [0, *sizes[:: max(1, len(sizes) // few)]]


FEW = [pytest.param(3, id="few"), pytest.param(None, id="all", marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("few", FEW)
def test_a_full_disk(tune: list[object], tmp_path: Path, few: int | None) -> None:
    """Whichever file is the one that does not fit: tune, export, report, compare and evaluate."""
    out = tmp_path / "out"
    tune[1] = TINY
    run_whole([*tune, "--thumbnails", 1])
    before = files(tmp_path)
    graphs = {"pt2": EXPORTED_PROGRAM, "onnx": ONNX}
    exports = {"safetensors": "e.safetensors", "pt2": "e.pt2", "onnx": "e.onnx"}
    exports = {
        kind: name for kind, name in exports.items() if kind not in graphs or torch_allows(graphs[kind])
    }
    commands: list[tuple[list[object], Path]] = [([*tune, "--overwrite"], out)]
    for kind, name in exports.items():
        words: list[object] = [
            "export",
            out,
            "--format",
            kind,
            "--trust-code",
            "--output",
            tmp_path / "new" / name,
        ]
        commands.append((words, tmp_path / "new" / name))
    scores = tmp_path / "new" / "scores.npz"
    evaluate = [
        "evaluate",
        out,
        "--trust-code",
        "--data",
        tune[tune.index("--data") + 1],
        "--scores",
        scores,
        *SIZE[-3:],
    ]
    commands += [
        (["report", out, "-o", tmp_path / "new" / "r.html"], tmp_path / "new" / "r.html"),
        (["compare", out, out, "-o", tmp_path / "new" / "c.json"], tmp_path / "new" / "c.json"),
        (evaluate, scores),
    ]
    (tmp_path / "new").mkdir()
    for words, written in commands:
        for largest in limits(out, few) if written == out else [0, 1000]:
            code, err = run_forked(words, largest=largest)
            assert code == 5, (words, largest, err)
            assert "cannot write" in one_error(err), err
            assert files(tmp_path) == before, (words, largest)
    is_whole(out)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
def test_what_resume_would_go_on_from_is_not_worth_a_failure(
    tune: list[object], tmp_path: Path, small_disk: Callable[..., Path]
) -> None:
    """There is room for the result, but not for the state as well: the job goes on without."""
    whole, tune = tmp_path / "whole", [*tune, "--batch-size", 1, "--alphas", "0:0.4:21", "-o"]
    run_whole([*tune, whole])
    pages = sum(1 + f.stat().st_size // 4096 for f in whole.rglob("*"))
    disk = small_disk(f"{4 * (pages + 30)}k")  # the state of 48 batches takes three times as much
    code, err = run_forked([*tune, disk / "out", "--checkpoint-minutes", 0])
    assert code == 0, err
    is_whole(disk / "out")
    (warning,) = [
        w for w in json.loads((disk / "out" / "result.json").read_text())["warnings"] if "`resume`" in w
    ]
    assert "could not be kept" in warning
    assert [p.name for p in disk.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("few", FEW)
def test_a_disk_that_is_full_while_training(train: list[object], tmp_path: Path, few: int | None) -> None:
    """The last checkpoint stays readable, and the run goes on to the same bytes."""
    run_whole([*train[:-1], tmp_path / "whole"])
    for largest in limits(tmp_path / "whole", few):
        code, err = run_forked(train, largest=largest)
        assert code == 5, (largest, err)
        assert "cannot write" in one_error(err)
        assert not (tmp_path / "run" / "alphatune.json").exists()
        assert not [f for f in tmp_path.rglob("*") if "partial" in f.name]
        resumed = tmp_path / "run"
        run_whole([*train, "--resume"])
        assert sha256(resumed / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
        resumed.rename(tmp_path / f"done-{largest}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A file system in memory, of a few kilobytes."""
    mounted: list[Path] = []

    def mount(size: str, *, read_only: bool = False) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        options = f"size={size},{'ro' if read_only else 'rw'}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
        )
        if done.returncode:
            pytest.skip("mounting a file system takes more rights than this test has")
        mounted.append(folder)
        return folder

    try:
        yield mount
    finally:
        for folder in mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
@pytest.mark.parametrize("size", ["4k", "40k", "120k"])
def test_a_small_file_system(tune: list[object], small_disk: Callable[..., Path], size: str) -> None:
    disk = small_disk(size)
    code, err = run_forked([*tune[:-1], disk / "out", "--checkpoint-minutes", 0])
    assert code == 5, err
    assert "No space left" in one_error(err)  # of the result, not of what --resume would go on from
    assert not [f for f in disk.iterdir() if "partial" in f.name]
    assert not (disk / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
def test_a_file_system_that_nobody_can_write_to(tune: list[object], small_disk: Callable[..., Path]) -> None:
    """Refused before anything is measured."""
    disk = small_disk("1m", read_only=True)
    code, err = run_forked([*tune[:-1], disk / "out"])
    assert code == 2
    assert "cannot write to" in one_error(err)


# --- memory and devices -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["oom", slow("cpu-oom")])
@pytest.mark.parametrize("batch", [1, slow(4), 17])
def test_memory_that_runs_out_once(tune: list[object], tmp_path: Path, kind: str, batch: int) -> None:
    """The batch is cut in two, and no example lost."""
    run_whole([*tune[:-1], tmp_path / "whole"])
    code, err = run_forked(tune, environment={"FAULT": f"{kind} {batch}"})
    assert code == 0, err
    whole, out = (json.loads((tmp_path / f / "result.json").read_text()) for f in ("whole", "out"))
    assert [p["top1"] for p in out["curve"]] == [p["top1"] for p in whole["curve"]]
    assert [p["loss"] for p in out["curve"]] == pytest.approx([p["loss"] for p in whole["curve"]], abs=1e-5)


def test_memory_for_small_batches_only(tune: list[object], tmp_path: Path) -> None:
    code, err = run_forked(tune, environment={"FAULT": "always-oom-above-4"})
    assert code == 0, err
    is_whole(tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "said"),
    [("always-oom", "does not fit"), slow("gpu 9", "the device failed: CUDA error"), slow("cudnn 9", "the device failed")],
)  # fmt: skip
def test_what_cannot_be_helped(tune: list[object], tmp_path: Path, fault: str, said: str) -> None:
    """Exit code 5; the older output stays, nothing is left, and the same command works when the fault is gone."""
    run_whole([*tune, "--alphas", "0,0.1"])
    before = files(tmp_path)
    environment = {"FAULT": fault}
    code, err = run_forked([*tune, "--overwrite"], environment=environment)
    assert code == 5, err
    assert said in one_error(err)
    assert files(tmp_path) == before
    code, err = run_forked([*tune, "--overwrite", "--checkpoint-minutes", 0], environment=environment)
    assert code == 5
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"out"} | ({".out.alphatune-resume"} if fault != "always-oom" else set())
    run_whole([*tune, "--overwrite", "--resume"])
    run_whole([*tune[:-1], tmp_path / "whole"])
    for name in ("model.safetensors", "curve.csv", "scores.npz"):
        assert sha256(tmp_path / "out" / name) == sha256(tmp_path / "whole" / name)


@pytest.mark.parametrize("cache", ["off", slow("on")])
@pytest.mark.parametrize("changed", ["images", "images for a while", "labels", "weights"])
def test_nothing_goes_on_with_other_data(
    tune: list[object], image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, changed: str, cache: str
) -> None:
    """Under the same names; nobody knows what the first run saw of images that were put back since."""
    data, checkpoint = tmp_path / "data", tmp_path / "weights.pth"
    shutil.copytree(image_folder, data)
    shutil.copy(tiny_checkpoint, checkpoint)
    words = [*tune, "--checkpoint", checkpoint, "--checkpoint-minutes", 0]
    words[words.index("--data") + 1] = data
    place = {"ALPHATUNE_CACHE": str(tmp_path / "cache") if cache == "on" else "off"}
    code, err = run_forked(words, environment={"FAULT": "gpu 9"} | place)
    assert code == 5, err
    if changed == "images":
        shutil.copy(data / "bee" / "000.png", data / "ant" / "000.png")
    elif changed == "images for a while":
        image = data / "ant" / "000.png"
        image.write_bytes(image.read_bytes())
    elif changed == "labels":
        shutil.move(data / "ant" / "000.png", data / "bee" / "more.png")
    else:
        content = torch.load(checkpoint)
        content["state_dict"]["module.head.bias"] += 1
        torch.save(content, checkpoint)
    code, err = run_forked([*words, "--resume"], environment=place)
    assert code == 3, err
    assert "other settings, model or data" in one_error(err)
    run_whole(words)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("oom 6", "a batch of 9 does not fit"), slow("gpu 6", "the device failed"), slow("gpu 1", "the device")],
)
def test_training_goes_on_after_a_fault(train: list[object], tmp_path: Path, fault: str, said: str) -> None:
    run_whole([*train[:-1], tmp_path / "whole"])
    code, err = run_forked(train, environment={"FAULT": fault})
    assert code == 5, err
    assert said in one_error(err)
    run_whole([*train, "--resume"])
    assert sha256(tmp_path / "run" / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")


def test_what_torch_says() -> None:
    assert "memory" in machine_failure(MemoryError()).message  # type: ignore[union-attr]
    assert "memory" in machine_failure(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried")).message  # type: ignore[union-attr]
    assert machine_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert machine_failure(ValueError("CUDA error")) is None


# --- folders that go --------------------------------------------------------------------------


def test_an_output_that_is_deleted_meanwhile(tune: list[object], tmp_path: Path) -> None:
    """The older output, or the folder that both lie in: the result is written all the same."""
    place = tmp_path / "place"
    words = [*tune[:-1], place / "out"]
    run_whole(words)
    for deleted in (place / "out", place):
        code, err = run_forked(
            [*words, "--overwrite"], environment={"FAULT": "delete 5", "FAULT_FOLDER": str(deleted)}
        )
        assert code == 0, err
        is_whole(place / "out")
        assert [p.name for p in place.iterdir()] == ["out"]


def test_a_run_that_is_deleted_meanwhile(train: list[object], tmp_path: Path) -> None:
    """What it learned is gone with it: an error that says so, and nothing under its name."""
    run = tmp_path / "run"
    code, err = run_forked(train, environment={"FAULT": "delete 8", "FAULT_FOLDER": str(run)})
    assert code == 5, err
    assert "cannot write" in one_error(err)
    assert not run.exists()


# --- workers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many"), per_class=500)


def workers_of(pid: int) -> list[int]:
    """Child processes that read images."""
    own = Path(f"/proc/{pid}/cmdline").read_bytes()
    forked = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if Path(f"/proc/{child}/cmdline").read_bytes() == own:
                forked.append(child)
    # By what they were forked from, and that they are two: before torch 2.6 a worker has no name of its own.
    return forked if len(forked) == 2 else []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("command", ["tune", "train", "evaluate"])
def test_a_worker_that_dies(command: str, many_images: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words: list[object] = [command, TINY, "--data", many_images, *SIZE, "--workers", 2, "--batch-size", 2]
    if command == "train":
        words += ["--val-fraction", 0.1, "--epochs", 5, "-o", tmp_path / "out"]
    else:
        words += ["--checkpoint", tiny_checkpoint, "--cache", "none"]
        words += ["-o", tmp_path / "out"] if command == "tune" else []
    killed: list[int] = []

    def kill_one(pid: int) -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            time.sleep(0.002)
            for worker in workers_of(pid)[:1]:
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

    code, err = run_forked(words, meanwhile=kill_one)
    assert killed
    assert code == 5, err
    assert "a worker process that reads images died" in one_error(err)
    assert not (tmp_path / "out" / "alphatune.json").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


class Broken(torch.utils.data.Dataset[torch.Tensor]):
    """Somebody's own data with a bug in it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error", [RuntimeError("of mine"), ConnectionResetError("of mine"), EOFError("of mine")]
)
def test_an_error_in_a_worker_is_not_its_death(error: Exception, workers: int) -> None:
    loader = torch.utils.data.DataLoader(Broken(error), num_workers=workers)
    with pytest.raises(type(error), match="of mine") as raised:
        list(from_workers(loader))
    assert machine_failure(raised.value) is None
