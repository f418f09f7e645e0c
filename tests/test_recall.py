"""A job that was done before, answered without opening anything, and only if nothing has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, write_images

from alphatune import hashing
from alphatune.jobs.recall import recall_tune
from alphatune.jobs.settings import TuneSettings

CODE = """
from alphatune.jobs.recall import recall_tune
from alphatune.jobs.settings import TuneSettings
import json, sys
document = recall_tune(TuneSettings(**json.loads(sys.argv[1])))
print(document["cache"]["key"] if document else "", "torch" in sys.modules)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALPHATUNE_CACHE", str(tmp_path / "cache"))
    # The files of a test are always new; a job is noted only if nothing it read is.
    monkeypatch.setattr(hashing, "UNSETTLED", -(10**18))
    return tmp_path / "cache"


@pytest.fixture
def settings(run: Run, cache: Path, tmp_path: Path) -> dict:
    """Of a job that was done; the model is one that needs no code of the user's."""
    import torch

    from alphatune.models.cifar import resnet20

    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(resnet20().state_dict(), weights)
    classes = tuple("abcdefghij")
    data = write_images(tmp_path / "images", per_class=3, classes=classes)
    words = ["alphatune.models.cifar:resnet20", "--checkpoint", weights, "--data", data, "--input-size", 12,
             "--crop-pct", 1.0, "--workers", 0, "--alphas", "0,0.1", "-o", tmp_path / "out"]  # fmt: skip
    code, _, err = run("tune", *words)
    assert code == 0, err
    return {
        "model": "alphatune.models.cifar:resnet20",
        "checkpoint": str(weights),
        "data": str(data),
        "input_size": "12",
        "crop_pct": 1.0,
        "workers": "0",
        "alphas": "0,0.1",
        "output": str(tmp_path / "again"),
        "overwrite": True,
    }


def test_torch_is_not_waited_for(settings: dict, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(settings)], capture_output=True, text=True,
                          timeout=60, env=os.environ)  # fmt: skip
    key, torch = done.stdout.split()
    assert len(key) == 64, done.stderr
    assert torch == "False"
    first, again = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("out", "again"))
    assert again["cache"]["key"] == key
    assert again["curve"] == first["curve"]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    text = (tmp_path / "again" / "run.toml").read_text()
    assert f'output = "{tmp_path / "again"}"' in text
    assert 'device = "cpu"' in text  # as it was resolved


def test_what_a_job_depends_on(settings: dict) -> None:
    def known(**changes: object) -> bool:
        return recall_tune(TuneSettings(**(settings | changes))) is not None

    assert known()
    assert known(workers="1", max_regression=("top5=1",))  # no part of what was measured
    assert not known(alphas="0,0.2")
    assert not known(no_cache=True)
    assert not known(data=settings["data"] + "/a")
    data = Path(settings["data"])
    image = data / "b" / "000.png"
    content = image.read_bytes()
    image.write_bytes(content[::-1])
    assert not known()
    image.write_bytes(content)  # as it was, but that takes reading to see
    assert not known()


@pytest.mark.parametrize("where", ["a", "."])
def test_an_image_that_came_or_went(settings: dict, where: str) -> None:
    folder = Path(settings["data"]) / where
    if where == ".":
        write_images(folder / "new", per_class=1)
    else:
        next(folder.glob("*.png")).unlink()
    assert recall_tune(TuneSettings(**settings)) is None


def test_weights_that_changed(settings: dict) -> None:
    with Path(settings["checkpoint"]).open("ab") as file:
        file.write(b"\0")
    assert recall_tune(TuneSettings(**settings)) is None


def test_other_surroundings(settings: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert recall_tune(TuneSettings(**settings)) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.chdir(tmp_path)
    assert recall_tune(TuneSettings(**settings)) is None


def test_it_takes_care_of_the_output(settings: dict, run: Run, tmp_path: Path) -> None:
    from alphatune.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="exists"):
        recall_tune(TuneSettings(**(settings | {"output": str(tmp_path / "out"), "overwrite": False})))
    with pytest.raises(ConfigurationError, match="max-regression"):
        recall_tune(TuneSettings(**(settings | {"max_regression": ("speed=1",)})))


def test_a_note_that_is_damaged(settings: dict, cache: Path) -> None:
    (note,) = (cache / "notes").glob("job-*")
    text = note.read_text()
    for damage in ("{", "[]", "null", json.dumps({"key": "x", "inputs": [[1]]}), text[:-20]):
        note.write_text(damage)
        assert recall_tune(TuneSettings(**settings)) is None


def test_what_was_just_written_is_not_noted(
    run: Run, settings: dict, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for note in (cache / "notes").glob("job-*"):
        note.unlink()
    monkeypatch.setattr(hashing, "UNSETTLED", 3600 * 10**9)
    words = [settings["model"], "--checkpoint", settings["checkpoint"], "--data", settings["data"],
             "--input-size", 12, "--crop-pct", 1.0, "--workers", 0, "--alphas", "0,0.1", "--overwrite",
             "-o", tmp_path / "out", "--format", "json"]  # fmt: skip
    code, out, _ = run("tune", *words)
    assert code == 0
    assert json.loads(out)["cache"]  # by content
    assert not list((cache / "notes").glob("job-*"))
