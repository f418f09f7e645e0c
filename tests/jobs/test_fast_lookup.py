"""A job that was done before, answered without opening anything, and only if nothing has changed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, write_images

import alphatune
from alphatune.core import hashing
from alphatune.jobs.fast_lookup import look_up_tune
from alphatune.settings import TuneSettings
from alphatune.settings.saved import to_command

CODE = """
import json, sys
sys.path.insert(0, sys.argv[2])
from alphatune.jobs.fast_lookup import look_up_tune
from alphatune.settings import TuneSettings
document = look_up_tune(TuneSettings(**json.loads(sys.argv[1])))
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
    # The installation that these tests run, which need not be the one in the current folder.
    installed = Path(alphatune.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(settings), installed], capture_output=True, text=True,
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
        return look_up_tune(TuneSettings(**(settings | changes))) is not None

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
    assert look_up_tune(TuneSettings(**settings)) is None


def test_weights_that_changed(settings: dict) -> None:
    with Path(settings["checkpoint"]).open("ab") as file:
        file.write(b"\0")
    assert look_up_tune(TuneSettings(**settings)) is None


def test_other_surroundings(settings: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert look_up_tune(TuneSettings(**settings)) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.chdir(tmp_path)
    assert look_up_tune(TuneSettings(**settings)) is None


def test_it_takes_care_of_the_output(settings: dict, run: Run, tmp_path: Path) -> None:
    from alphatune.core.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="exists"):
        look_up_tune(TuneSettings(**(settings | {"output": str(tmp_path / "out"), "overwrite": False})))
    with pytest.raises(ConfigurationError, match="max_regression"):
        look_up_tune(TuneSettings(**(settings | {"max_regression": ("speed=1",)})))


def test_a_note_that_is_damaged(settings: dict, cache: Path) -> None:
    (note,) = (cache / "notes").glob("job-*")
    text = note.read_text()
    for damage in ("{", "[]", "null", json.dumps({"key": "x", "inputs": [[1]]}), text[:-20]):
        note.write_text(damage)
        assert look_up_tune(TuneSettings(**settings)) is None


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


def again(run: Run, settings: dict, **changes: object) -> TuneSettings:
    """Do the job with other settings, and have them."""
    changed = TuneSettings(**(settings | changes))
    code, _, err = run(*shlex.split(to_command("tune", changed))[1:])
    assert code == 0, err
    return changed


def test_an_image_that_was_left_out_and_repaired(settings: dict, run: Run) -> None:
    """Written in its place, it changes neither its folder nor any file that was used."""
    image = Path(settings["data"]) / "b" / "000.png"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    skipping = again(run, settings, on_bad_image="skip")
    image.write_bytes(content)
    assert look_up_tune(skipping) is None


def test_an_image_that_came_into_a_linked_folder(settings: dict, run: Run, tmp_path: Path) -> None:
    linked = tmp_path / "elsewhere"
    (Path(settings["data"]) / "c").rename(linked)
    (Path(settings["data"]) / "c").symlink_to(linked)
    known = again(run, settings)
    assert look_up_tune(known) is not None
    shutil.copy(linked / "000.png", linked / "new.png")
    assert look_up_tune(known) is None


def test_a_split_that_came(settings: dict, run: Run, tmp_path: Path) -> None:
    """The validation split is taken where there is one, and a folder is one as soon as it holds class folders."""
    parent = tmp_path / "splits"
    (parent / "validation").mkdir(parents=True)
    Path(settings["data"]).rename(parent / "val")
    known = again(run, settings, data=str(parent))
    assert look_up_tune(known) is not None
    write_images(parent / "validation", per_class=1, classes=tuple("abcdefghij"))
    assert look_up_tune(known) is None


def test_code_of_ones_own_may_read_anything(settings: dict, run: Run, tmp_path: Path) -> None:
    code = tmp_path / "own.py"
    code.write_text("from alphatune.models.cifar import resnet20 as build\n")
    assert look_up_tune(again(run, settings, model=f"{code}:build")) is None


@pytest.mark.parametrize("form", ["{}", "local-dir:{}"])
def test_a_folder_of_timms_layout(settings: dict, run: Run, tmp_path: Path, form: str) -> None:
    from alphatune.data.preprocessing import Preprocessing
    from alphatune.models.bundle import save
    from alphatune.models.sources import build

    source = build("test_resnet", pretrained=False, model_kwargs={"num_classes": 10})
    folder = save(source.model, tmp_path / "m", source=source, preprocessing=Preprocessing((3, 32, 32)))
    (folder / "alphatune.json").unlink()
    weights = str(folder / "model.safetensors")
    known = again(run, settings, model=form.format(folder), checkpoint=weights)
    assert look_up_tune(known) is not None
    config = folder / "config.json"
    config.write_text(config.read_text().replace("0.485", "0.385"))
    assert look_up_tune(known) is None
    known = again(run, settings, model=form.format(folder), checkpoint=weights)
    (folder / "pytorch_model.bin").touch()
    assert look_up_tune(known) is None


def test_another_installation(settings: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two clones, of which the environment names now this one, now that one, have each their own answers."""
    monkeypatch.setattr("alphatune.__file__", str(tmp_path / "alphatune" / "__init__.py"))
    assert look_up_tune(TuneSettings(**settings)) is None
