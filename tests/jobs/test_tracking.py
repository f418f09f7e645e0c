"""What trackers are told of a job: by a made-up one, and by those that are installed."""

from __future__ import annotations

import importlib.machinery
import json
import logging
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Run

from alphatune.core.extras import install_line
from alphatune.jobs import trackers, tracking
from alphatune.results.training import Epoch
from alphatune.settings import TrainSettings
from alphatune.settings.saved import to_toml

SETTINGS = TrainSettings(model="folder/net.py:tiny", data="images", log_to=("made-up",))


class MadeUp:
    """A tracker that keeps what it is told, and fails while it is down."""

    told: list[tuple[Any, ...]]
    down = False

    def __init__(self, job: trackers.Job) -> None:
        if type(self).down:
            raise ConnectionError("http://me:secret@host/runs is down")
        self.run_id = job.run_id or f"run-{len(self.told)}"
        self.told.append(("begin", job.command, job.name, job.run_id, job.step))
        self.settings = job.settings

    def log(self, values: dict[str, float], step: int) -> None:
        if type(self).down:
            raise ConnectionError("http://me:secret@host/runs is down")
        self.told.append(("log", dict(values), step))

    def end(self, outcome: str, summary: dict[str, Any], files: tuple[Path, ...]) -> None:
        self.told.append(("end", outcome, dict(summary), [file.name for file in files]))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> type[MadeUp]:
    """A package of this name, and a tracker for it."""
    module = types.ModuleType("made-up")
    module.__spec__ = importlib.machinery.ModuleSpec("made-up", None)
    monkeypatch.setitem(sys.modules, "made-up", module)
    kind = type("Fresh", (MadeUp,), {"told": []})
    monkeypatch.setitem(trackers.TRACKERS, "made-up", kind)
    return kind


@pytest.fixture
def train(run: Run, image_folder: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    def train(*words: object) -> tuple[int, str, str]:
        images = [
            "--data",
            image_folder,
            "--input-size",
            12,
            "--mean",
            0.5,
            "--std",
            0.5,
            "--val-fraction",
            0.25,
        ]
        return run("train", TINY, *images, "--workers", 0, "--batch-size", 8, "-o", tmp_path / "run", *words)

    return train


@pytest.fixture
def tune(
    run: Run, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    def tune(*words: object) -> tuple[int, str, str]:
        images = ["--data", image_folder, "--input-size", 12, "--mean", 0.5, "--std", 0.5, "--workers", 0]
        what = ["--checkpoint", tiny_checkpoint, "--alphas", "0,0.05,0.1", "-o", tmp_path / "tuned"]
        return run("tune", TINY, *images, *what, *words)

    return tune


def row(epoch: int) -> Epoch:
    return Epoch(
        epoch=epoch,
        step=10 * epoch,
        learning_rate=0.1,
        train_loss=1.0,
        train_top1=0.5,
        val_top1=0.5,
        seconds=1.0,
    )


# --- a made-up tracker -----------------------------------------------------------------------


def test_a_training_run(
    made_up: type[MadeUp], train: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, err = train("--epochs", 2, "--log-to", "made-up", "--log-to", "made-up")
    assert code == 0, err
    begin, *logs, end = made_up.told  # named twice, told once
    assert begin == ("begin", "train", "train tiny.py:tiny", "", 0)
    assert [step for _, _, step in logs] == [4, 8]
    assert {"epoch", "train/loss", "val/top1", "learning_rate"} <= logs[0][1].keys()
    _, outcome, summary, files = end
    assert outcome == summary["status"] == "finished"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert summary["validation/top1"] == result["validation"]["top1"]
    assert {"result.json", "log.csv", "curves.png"} <= set(files)
    assert json.loads((tmp_path / "run" / "tracking.json").read_text()) == {"made-up": "run-0"}


def test_a_tune_and_the_same_from_the_cache(
    made_up: type[MadeUp],
    tune: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALPHATUNE_CACHE", str(tmp_path / "cache"))
    for again in ((), ("--overwrite",)):
        code, _, err = tune("--log-to", "made-up", "--max-regression", "top1=1", "--min-gain", 9, *again)
        assert code == 1, err  # the gate; the job is done
    assert "from the cache" in err
    first, second = made_up.told[:5], made_up.told[5:]
    assert first == second
    begin, *logs, (_, outcome, summary, files) = first
    assert begin[1:3] == ("tune", "tune tiny.py:tiny")
    assert [(values["curve/alpha"], step) for _, values, step in logs] == [(0, 0), (0.05, 500), (0.1, 1000)]
    result = json.loads((tmp_path / "tuned" / "result.json").read_text())
    assert (outcome, summary["gates"]) == ("finished", "failed: min-gain")
    assert summary["before/loss"] == result["baseline"]["loss"]
    assert summary["after/top1"] == result["chosen"]["metrics"]["top1"]
    assert (summary["gain/estimate"], summary["gain/low"]) == (
        result["gain"]["delta"],
        result["gain"]["ci"][0],
    )
    assert {"result.json", "report.html"} <= set(files)
    assert not (tmp_path / "tuned" / "tensorboard").exists()


def test_nothing_begins_before_work_does(made_up: type[MadeUp], run: Run, tune: Any, train: Any) -> None:
    assert run("tune", TINY, "--data", "absent", "--log-to", "made-up")[0] != 0
    assert tune("--log-to", "made-up", "--dry-run")[0] == 0
    assert train("--log-to", "made-up", "--dry-run")[0] == 0
    assert made_up.told == []


@pytest.mark.parametrize(
    ("error", "outcome"), [(RuntimeError("no"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_how_a_run_ends_and_goes_on(
    made_up: type[MadeUp], tmp_path: Path, error: BaseException, outcome: str
) -> None:
    ids = tmp_path / "tracking.json"
    with pytest.raises(type(error)), tracking.tracked("train", SETTINGS) as job:
        job.begin(ids)
        job.epoch(row(1))
        raise error
    with tracking.tracked("train", SETTINGS) as job:
        job.begin(ids, step=10)
        job.epoch(row(2))
    begins = [told for told in made_up.told if told[0] == "begin"]
    ends = [told for told in made_up.told if told[0] == "end"]
    assert [(run_id, step) for *_, run_id, step in begins] == [("", 0), ("run-0", 10)]
    assert [end[1] for end in ends] == [outcome, "finished"]
    assert ends[0][2]["status"].startswith(f"{outcome}: ")


def test_a_tune_that_goes_on(made_up: type[MadeUp], tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("alphatune.jobs.tune.tune", interrupted)
        assert tune("--log-to", "made-up")[0] == 130
    assert tune("--log-to", "made-up", "--resume")[0] == 0
    assert tune("--log-to", "made-up", "--overwrite")[0] == 0
    begins = [told[3] for told in made_up.told if told[0] == "begin"]
    assert begins == ["", "run-0", ""]  # a new one where nothing was left to go on from
    assert [told[1] for told in made_up.told if told[0] == "end"] == ["interrupted", "finished", "finished"]


def test_a_server_that_is_down_is_said_once_and_told_later(
    made_up: type[MadeUp], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_AGAIN", 0.0)
    caplog.set_level("WARNING", "alphatune")
    made_up.down = True
    with tracking.tracked("train", SETTINGS) as job:
        job.begin()
        for epoch in (1, 2):
            job.epoch(row(epoch))
        assert made_up.told == []
        made_up.down = False
    assert len(caplog.records) == 1
    assert "made-up" in caplog.text
    assert "secret" not in caplog.text
    assert [told[0] for told in made_up.told] == ["begin", "log", "log", "end"]


def test_a_job_with_a_tracker_that_is_down(
    made_up: type[MadeUp], tune: Any, tmp_path: Path, caplog: Any
) -> None:
    made_up.down = True
    code, _, err = tune("--log-to", "made-up")
    assert code == 0, err
    assert (tmp_path / "tuned" / "alphatune.json").is_file()
    assert [record.levelno for record in caplog.records if record.name == "alphatune"] == [logging.WARNING]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing(
    train: Any, tune: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for command in (train, tune):
        code, _, err = command("--log-to", name)
        assert code == 2
        assert install_line(name) in err
        assert "--log-to" in err
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_nobody_knows(train: Any) -> None:
    code, _, err = train("--log-to", "wandbb")
    assert code == 2
    assert "wandb?" in err


def test_names_are_saved_and_keys_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:very-secret@host")
    text = to_toml(SETTINGS)
    assert 'log_to = [\n    "made-up",\n]' in text
    assert "secret" not in text


# --- real ones -------------------------------------------------------------------------------


def test_tensorboard(tune: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert tune("--log-to", "tensorboard")[0] == 0
    events = EventAccumulator(str(tmp_path / "tuned" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("curve/loss")] == [0, 500, 1000]
    result = json.loads((tmp_path / "tuned" / "result.json").read_text())
    (before,) = events.Scalars("result/before/loss")
    assert before.value == pytest.approx(result["baseline"]["loss"])
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_tensorboard_keeps_every_epoch_of_a_resumed_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TrainSettings(model="net", data="images", log_to=("tensorboard",), output=str(tmp_path))
    with pytest.raises(KeyboardInterrupt), tracking.tracked("train", settings) as job:
        job.begin()
        for epoch in (1, 2, 3):
            job.epoch(row(epoch))
        raise KeyboardInterrupt
    with tracking.tracked("train", settings) as job:
        job.begin(step=20)  # the checkpoint was that of step 20
        job.epoch(row(3))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [10, 20, 30]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    ids = tmp_path / "tracking.json"
    settings = TrainSettings(model="net", data="images", log_to=("wandb",), output=str(tmp_path))
    for epoch in (1, 2):
        with tracking.tracked("train", settings) as job:
            job.begin(ids, step=10 * epoch)
            job.epoch(row(epoch))
    written = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    run_id = json.loads(ids.read_text())["wandb"]
    assert {file.name for file in written} == {f"run-{run_id}.wandb"}  # both are the same run
    for file in written:
        until = time.monotonic() + 30
        while b'"finished"' not in file.read_bytes():  # its own process writes
            assert time.monotonic() < until
            time.sleep(0.1)
        assert b"train/loss" in file.read_bytes()


@pytest.mark.parametrize("scheme", ["sqlite:///{}/runs.db", "file://{}/runs"])
def test_mlflow(tune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scheme.format(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    code, out, err = tune("--log-to", "mlflow", "--format", "quiet")
    assert code == 0, err
    assert out == f"{tmp_path / 'tuned'}\n"  # it prints nothing of its own there
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("alphatune").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["alphas"] == "0,0.05,0.1"
    result = json.loads((tmp_path / "tuned" / "result.json").read_text())
    assert run.data.metrics["after/loss"] == pytest.approx(result["chosen"]["metrics"]["loss"])
    assert [each.step for each in client.get_metric_history(run.info.run_id, "curve/loss")] == [0, 500, 1000]
    assert {"result.json", "report.html"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
