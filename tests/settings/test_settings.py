"""Settings: one default each, what a run.toml may say and for whom, and which of them change no result."""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from conftest import TINY, Run

from alphatune.cli.main import app
from alphatune.core.errors import ConfigurationError
from alphatune.jobs.opening import resolved_paths
from alphatune.reports.page_tables import repeatable_command
from alphatune.settings import (
    KINDS,
    TuneSettings,
)
from alphatune.settings.option import without_effect
from alphatune.settings.saved import to_command, to_toml

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", KINDS)
def test_a_setting_has_one_default(command: str) -> None:
    """The library's and the command line's are the same, or the docs are wrong for one of them."""
    defaults = {f.name: f.default for f in fields(KINDS[command]) if f.default is not MISSING}
    options = {p.name: p.default for p in COMMANDS[command].params if p.name in defaults}
    assert len(options) > 8
    for name, default in options.items():
        assert default == (defaults[name] or None if defaults[name] == () else defaults[name]), name


# --- run.toml --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "key", "owner"),
    [
        ("tune", "epochs = 3", "train"),
        ("tune", 'norm = "ghost"', "train"),
        ("tune", "threads = 2", "bench"),
        ("tune", "opset = 18", "export"),
        ("train", 'alphas = "0.1"', "tune"),
        ("train", "alpha = 0.1", "evaluate"),
        ("evaluate", "epochs = 3", "train"),
        ("inspect", "epochs = 3", "train"),
    ],
)
def test_keys_of_another_command_are_refused(
    run: Run, tmp_path: Path, command: str, key: str, owner: str
) -> None:
    (tmp_path / "run.toml").write_text(key)
    code, _, err = run(command, TINY, "--config", tmp_path / "run.toml")
    assert code == 2
    assert repr(key.partition(" ")[0]) in err
    assert re.search(rf"\b{owner}\b", err), err


def test_a_file_of_tune_serves_commands_whose_options_it_holds(
    run: Run, image_folder: Path, tmp_path: Path
) -> None:
    """What they cannot take is named, as it changes nothing here."""
    settings = TuneSettings(model=TINY, data=str(image_folder), input_size="12", crop_pct=1.0, mean="0.5", std="0.5",
                            pretrained=False, workers="0", alphas="0.1", metric="loss")  # fmt: skip
    (tmp_path / "run.toml").write_text(to_toml(settings))
    for command in ("evaluate", "inspect"):
        code, _, err = run(command, "--config", tmp_path / "run.toml", "--limit", 8)
        assert code == 0, err
        assert "passed over" in err
        assert "alphas" in err
        assert "passed over" not in run(command, "--config", tmp_path / "run.toml", "--limit", 8, "-q")[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("model", value) for value in ("some", "local-dir:some", "some/own.py:net")),
        *(
            (name, value)
            for name in ("data", "calibrate", "recalibrate")
            for value in ("some", "wds/some", "HFDS/some")
        ),
        *((name, "some") for name in ("checkpoint", "class_map", "data_root")),
        *((name, "some/own.py:function") for name in ("score", "data")),
    ],
)
def test_paths_hold_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    folder = tmp_path / "here" / "some"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "own.py").write_text("")
    values: dict[str, Any] = {"model": "resnet18", "data": "elsewhere"}
    monkeypatch.chdir(tmp_path / "here")
    found = getattr(resolved_paths(TuneSettings(**values | {name: value})), name)
    assert found == value.replace("some", str(folder))
    monkeypatch.chdir(folder)
    assert getattr(resolved_paths(TuneSettings(**values | {name: found})), name) == found


def test_names_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hub or a library knows keeps its name."""
    monkeypatch.chdir(tmp_path)
    for model in (
        "resnet18",
        "hf-hub:timm/resnet18",
        "torchvision:resnet18",
        "local-dir:absent",
        "package.module:net",
    ):
        for data in ("hfds/user/name", "wds/absent", "torch/cifar10", "wds/https://host/shards"):
            settings = TuneSettings(model=model, data=data)
            assert resolved_paths(settings) == settings
    (tmp_path / "cifar10").mkdir()
    settings = TuneSettings(model="resnet18", data="cifar10", data_root=str(tmp_path))
    assert resolved_paths(settings) == settings


def test_a_local_dir_can_be_tuned_again_from_elsewhere(
    run: Run, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("resnet10t", num_classes=4)
    timm.models.save_for_hf(model, "m", safe_serialization=True)
    words = [
        "--data",
        os.path.relpath(image_folder),
        "--input-size",
        32,
        "--workers",
        0,
        "--alphas",
        "0,0.1",
        "--limit",
        8,
    ]
    code, _, err = run("tune", "local-dir:m", *words, "-o", "out")
    assert code == 0, err
    monkeypatch.chdir("there")
    assert run("tune", "--config", tmp_path / "out" / "run.toml", "-o", "out")[0] == 0


# --- what changes no result ------------------------------------------------------------------


def other(value: Any, kind: str) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)) or value is None:
        return 0.25
    return ("loss=0.5", "top1=0.1") if isinstance(value, tuple) else f"other {kind}"


@pytest.mark.parametrize("name", sorted(without_effect(TuneSettings)))
def test_a_setting_of_the_run_is_not_on_the_page(name: str) -> None:
    """The page is the same whatever they are, as results are."""
    plain = TuneSettings(
        model="my net.py:net", data="images", alphas="0,0.1", exclude=("a", "b"), min_positions=2
    )
    choices = {"cache": "disk", "gate_on": "interval"}
    changed = replace(plain, **{name: choices.get(name) or other(getattr(plain, name), name)})
    assert to_command("tune", changed) != to_command("tune", plain)
    assert repeatable_command(to_command("tune", changed)) == repeatable_command(to_command("tune", plain))
    assert "--exclude a" in repeatable_command(to_command("tune", changed))


# --- hints -----------------------------------------------------------------------------------


def test_evaluate_leaves_unknown_norms_alone_where_it_says_so(run: Run, image_folder: Path) -> None:
    words = ["evaluate", TINY.replace(":tiny", ":odd"), "--data", image_folder, "--input-size", 12, "--workers", 0,
             "--no-pretrained", "--alpha", 0.1, "--limit", 8]  # fmt: skip
    code, _, err = run(*words)
    assert code == 4
    assert "--skip-unknown" in err
    code, _, err = run(*words, "--skip-unknown")
    assert code == 0, err


@pytest.mark.parametrize("command", ["inspect", "bench", "export"])
def test_a_hint_says_whose_option_it_means(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The library does not know which command it works for."""

    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"alphatune.jobs.{command}.run_{command}", out_of_memory)
    words = ["--format", "onnx"] if command == "export" else []
    code, _, err = run(command, TINY, *words)
    assert code == 5
    own = {o for p in COMMANDS[command].params for o in p.opts}
    lacking = set(re.findall(r"--[a-z-]+", err)) - own
    for option in lacking:
        owners = [name for name, c in COMMANDS.items() if option in {o for p in c.params for o in p.opts}]
        assert f"{option} is an option of {', '.join(owners)}" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"metric": "accuracy"},
            "`metric` takes one of top1, top5, loss, ece, macro_recall, "
            "macro_f1, auroc, average_precision, got 'accuracy'",
        ),
        ({"limit": "many"}, "`limit` takes a whole number or None, got 'many'"),
        ({"limit": True}, "`limit` takes a whole number or None, got True"),
        ({"temperature": 1}, "`temperature` takes True or False, got 1"),
        ({"guard": [0.005]}, r"`guard` takes a list of texts, got \[0.005\]"),
        ({"min_positions": 0}, "`min_positions` takes a number from 1, got 0"),
        ({"seed": 2**32}, f"`seed` takes a number from 0 to {2**32 - 1}, got {2**32}"),
    ],
)
def test_values_from_python_are_held_against_what_is_declared(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}$"):
        TuneSettings(model="m", data="d", **given)


def test_what_stands_for_a_text_or_a_list_from_python() -> None:
    settings = TuneSettings(model="m", data=Path("d"), input_size=160, guard=["none"])  # type: ignore[arg-type]
    assert (settings.data, settings.input_size, settings.guard) == ("d", "160", ("none",))
    assert settings == TuneSettings(model="m", data="d", input_size="160", guard=("none",))
