"""A tune that was interrupted goes on where it was, to the same result."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, slow, write_images
from forks import run_whole, started
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alphatune
from alphatune.core.distributed import World
from alphatune.core.progress import Meter
from alphatune.data.custom_loader import LoaderBatches
from alphatune.evaluation.predictor import Predictor
from alphatune.norms.patching import patch_
from alphatune.statistics.scores import Scores
from alphatune.tuning import journal as journal_module
from alphatune.tuning import pass_record
from alphatune.tuning.journal import Journal, open_journal
from alphatune.tuning.passes import Passes
from alphatune.tuning.tune import TuneResult

N = 1200


class Stop(Exception):
    pass


class Counting(nn.Module):
    """Counts the examples it sees, and stops after some."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)
        self.seen, self.limit = 0, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        if self.seen > self.limit:
            raise Stop
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


def data() -> DataLoader[Any]:
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 3, 6, 6, generator=rng), torch.randint(3, (N,), generator=rng)
    return DataLoader(TensorDataset(x, y), batch_size=50)


def journal(folder: Path, *, resume: bool = True) -> Journal:
    return open_journal(folder, {"seed": 0}, resume=resume, minutes=0)


def same(one: TuneResult, other: TuneResult) -> None:
    assert one.decision == other.decision
    assert one.curve == other.curve
    assert one.passes == other.passes
    assert one.sweep.alphas == other.sweep.alphas
    for a, b in zip(one.sweep.scores, other.sweep.scores, strict=True):
        for field in fields(Scores):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


@pytest.mark.parametrize(
    "options",
    [
        {"alphas": [0.1, 0.2]},
        {"alphas": "auto"},
        {"alphas": "auto", "curve": "full"},
        slow({"alphas": "auto", "granularity": "layer", "temperature": True}),
    ],
    ids=["list", "search", "full", "finer"],
)
def test_what_was_seen_is_not_seen_again(options: dict[str, Any], tmp_path: Path) -> None:
    model, loader = Counting(), data()
    whole = alphatune.tune(model, loader, metric="loss", accept="best", **options)
    total = model.seen
    for share in (0.05, 0.35, 0.6, 0.75):  # a journal spares repeated passes too
        folder = tmp_path / f"{share}"
        with pytest.raises(Stop):
            alphatune.tune(
                Counting(share * total), loader, metric="loss", accept="best", journal=journal(folder), **options
            )  # fmt: skip
        again = Counting()
        reported: list[tuple[int, int | None]] = []
        result = alphatune.tune(
            again, loader, metric="loss", accept="best", journal=journal(folder),
            progress=lambda done, of, seen=reported: seen.append((done, of)), **options,
        )  # fmt: skip
        same(result, whole)
        assert reported[-1][0] >= total * 0.9  # what was seen before counts as done
        if "granularity" not in options:  # a descent saves now and then only
            lost = again.seen - (total - share * total)
            assert 0 <= lost <= 50 * 9 + 50  # at most a batch at every α


def test_nothing_is_written_before_it_is_time(tmp_path: Path) -> None:
    patient = open_journal(tmp_path / "j", {}, resume=False, minutes=60)
    alphatune.tune(Counting(), data(), alphas=[0.1], journal=patient)
    assert list(tmp_path.iterdir()) == []


def test_what_waited_is_written_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that ended between two times of saving is not lost."""
    clock = [0.0]
    monkeypatch.setattr("alphatune.tuning.journal.time.monotonic", lambda: clock[0])
    saving = Journal(tmp_path / "j", "", 10)
    first, second = (pass_record.PassRecord[Any](saving, name) for name in ("first", "second"))
    first.add([np.arange(3)], 3)
    first.end()
    assert not (tmp_path / "j").exists()
    clock[0] = 11
    second.add([np.arange(2)], 2)
    assert {f.name for f in (tmp_path / "j").glob("*.pt")} == {"first-0.pt", "second-0.pt"}
    second.add([np.arange(7)], 7)  # not yet saved
    again = pass_record.PassRecord[Any](Journal(tmp_path / "j", "", 10), "second")
    assert again.examples == 2
    np.testing.assert_array_equal(again.results[0][0], np.arange(2))


def test_scores_that_a_version_before_kept_with_fewer_columns_are_measured_again(tmp_path: Path) -> None:
    saving = Journal(tmp_path / "j", "", 10)
    curve = {"class": "CurveScores", "ids": torch.arange(3), "loss": torch.zeros(2, 3)}
    saving.entry("p-0").write({"results": [curve], "after": 0, "examples": 3})
    record = pass_record.PassRecord[Any](saving, "p")
    assert (record.examples, record.results) == (0, [])


def test_another_question_is_another_record(tmp_path: Path) -> None:
    """Other examples, other α, another kind of look, another number of processes."""
    some, others = np.arange(10), np.arange(1, 11)
    layers = {"bn1": 0.1, "bn2": 0.2}
    names = {
        pass_record.pass_name("measure", some, [0.0, 0.1], World()),
        pass_record.pass_name("logits", some, [0.0, 0.1], World()),
        pass_record.pass_name("measure", others, [0.0, 0.1], World()),
        pass_record.pass_name("measure", some, [0.0, 0.2], World()),
        pass_record.pass_name("measure", some, [0.0, layers], World()),
        pass_record.pass_name("measure", some, [0.0, {**layers, "bn2": [0.2, 0.3]}], World()),
        pass_record.pass_name("measure", some, [0.0, 0.1], World(0, 2)),
        pass_record.pass_name("measure", some, [0.0, 0.1], World(1, 2)),
    }
    assert len(names) == 8
    assert pass_record.pass_name("measure", some.copy(), [0.0, 0.1], World()) in names


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    model = patch_model()
    passes = Passes(
        Predictor(model), LoaderBatches(data(), torch.device("cpu")), 0.0, World(), Meter(), journal(tmp_path)
    )  # fmt: skip
    passes.measure(np.arange(100), [0.0])
    (record,) = tmp_path.glob("pass-*-0.pt")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(alphatune.core.errors.InputError, match="damaged"):
        passes.measure(np.arange(100), [0.0])


def patch_model() -> nn.Module:
    model = Counting()
    patch_(model)
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many"), per_class=260)


@pytest.mark.parametrize("options", [slow(("--alphas", "0,0.1,0.2,0.3")), ()], ids=["list", "search"])
def test_the_command_goes_on(
    options: tuple[str, ...], images: Path, tiny_checkpoint: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """Killed without warning as soon as something is saved."""
    job = ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", images, "--input-size", 12, "--crop-pct", 1,
           "--mean", 0.5, "--std", 0.25, "--metric", "loss", "--accept", "best", "--workers", 0, "-q",
           "--batch-size", 8, "--kernel", "eager", *options, "--format", "quiet"]  # fmt: skip
    out, state = tmp_path / "out", tmp_path / ".out.alphatune-resume"
    process = started([*job, "-o", out, "--checkpoint-minutes", 0])
    deadline = time.monotonic() + 120
    while len(list(state.glob("pass-*.pt"))) < 5 and time.monotonic() < deadline and process.exitcode is None:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert not out.exists()
    segments = len(list(state.glob("pass-*.pt")))
    assert segments >= 5
    code, _, err = run(*job, "-o", out, "--resume", "--seed", 1)
    assert code == 3
    assert "other settings, model or data: --seed" in err
    # In a process of its own as well: what code is loaded here is other code.
    run_whole([*job, "-o", out, "--resume"])
    assert sorted(os.listdir(tmp_path)) == ["out"]  # noqa: PTH208
    assert run(*job, "-o", tmp_path / "whole")[0] == 0
    for name in ("model.safetensors", "alphatune.json", "curve.csv", "scores.npz"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def resumed(folder: Path, job: dict[str, Any]) -> Journal:
    return open_journal(folder, job, resume=True, minutes=0)


def test_records_of_nobody_knows_what_are_not_used(tmp_path: Path) -> None:
    """The folder was being removed when the process was killed, and what says whose it is went first."""
    pass_record.PassRecord[Any](resumed(tmp_path / "j", {"data": 1}), "p").add([np.arange(3)], 3)
    assert (tmp_path / "j" / "p-0.pt").exists()
    (tmp_path / "j" / "job.json").unlink()
    assert pass_record.PassRecord[Any](resumed(tmp_path / "j", {"data": 2}), "p").examples == 0


def test_parts_that_do_not_follow_are_not_used(tmp_path: Path) -> None:
    """The folder went meanwhile, and only later parts were kept; then a run began anew."""
    job = {"data": 1}
    record = pass_record.PassRecord[Any](resumed(tmp_path / "j", job), "p")
    record.add([np.arange(3)], 3)
    shutil.rmtree(tmp_path / "j")
    record.add([np.arange(3, 5)], 2)  # part 1, examples 3 to 5
    again = pass_record.PassRecord[Any](resumed(tmp_path / "j", job), "p")
    assert again.examples == 0
    again.add([np.arange(4)], 4)  # part 0, examples 0 to 4
    last = pass_record.PassRecord[Any](resumed(tmp_path / "j", job), "p")
    assert last.examples == 4
    assert len(last.results) == 1


def test_what_says_whose_it_is_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = resumed(tmp_path / "j", {"data": 1})
    monkeypatch.setattr(
        Path, "write_text", lambda self, *_, **__: self.touch()
    )  # killed before a byte is written
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        saving.begin()
    assert not (tmp_path / "j" / "job.json").exists()


@pytest.mark.parametrize("command", ["tune", "train"])
@pytest.mark.parametrize("minutes", ["nan", "-1"])
def test_times_that_are_none(command: str, minutes: str, tmp_path: Path, run: Callable[..., Any]) -> None:
    """NaN would save nothing, without a word."""
    words = [
        command,
        TINY,
        "--data",
        tmp_path / "nowhere",
        "--checkpoint-minutes",
        minutes,
        "-o",
        tmp_path / "out",
    ]
    code, _, err = run(*words)
    assert code == 2
    assert "--checkpoint-minutes" in err


def test_a_descent_keeps_nothing_before_it_is_time(tmp_path: Path) -> None:
    patient = open_journal(tmp_path / "j", {}, resume=False, minutes=60)
    alphatune.tune(Counting(), data(), metric="loss", accept="best", granularity="layer", journal=patient)
    assert list(tmp_path.iterdir()) == []


def test_the_last_line_of_an_interrupted_command_says_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alphatune.cli.main import _going_on
    from alphatune.core import saved_progress

    monkeypatch.setattr(saved_progress, "_SAVED", set())
    assert _going_on(["tune", "m"]) == "nothing was saved yet to go on from"
    journal = open_journal(tmp_path / "resume", {"a": 1}, resume=False, minutes=0)
    assert "nothing" in _going_on(["tune", "m"])
    journal.entry("pass").write({"x": 1})
    assert "goes on" in _going_on(["tune", "m"])
    monkeypatch.setattr(saved_progress, "_SAVED", set())
    again = open_journal(tmp_path / "resume", {"a": 1}, resume=True, minutes=0)
    assert "goes on" in _going_on(["tune", "m"])  # before anything is read
    again.close()
    assert "nothing" in _going_on(["tune", "m"])
    assert _going_on(["evaluate", "m"]) == ""


def test_two_that_write_the_same_entry_at_once_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes do that fit the same repair: the second begins while the first has written, not yet replaced."""
    first, second = (open_journal(tmp_path / "j", {}, resume=True, minutes=0) for _ in range(2))
    write, waiting = journal_module.write_saved, [second]

    def write_saved(state: object, path: Path) -> None:
        write(state, path)
        if waiting:
            waiting.pop().entry("a").write({"x": 1})

    monkeypatch.setattr(journal_module, "write_saved", write_saved)
    first.entry("a").write({"x": 1})
    assert (first.given_up, second.given_up) == ("", "")
    assert first.entry("a").read() == {"x": 1}
    assert sorted(path.name for path in first.folder.iterdir()) == ["a.pt", "job.json"]
