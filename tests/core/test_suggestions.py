"""Mistyped names: what is said, on which channel, with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, Run
from tiny import tiny

import alphatune
from alphatune.core.errors import ConfigurationError
from alphatune.core.suggestions import closest, did_you_mean, did_you_mean_path

CIFAR = "alphatune.models.cifar:resnet20"


def meant(stderr: str) -> list[str]:
    """The names after "did you mean"."""
    found = re.search(r"did you mean ([^?]+)\?", stderr, re.IGNORECASE)
    return re.split(r", | or ", found[1].replace("'", "")) if found else []


# --- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ("resnet5O", "resnet50"),
        ("RESNET50", "resnet50"),
        ("resnet50.a1_in1kk", "resnet50.a1_in1k"),
        ("effcientnet_b0", "efficientnet_b0"),
        ("torchvision:resnet5O", "resnet50"),
        ("torchvision:resnet50:IMAGENET1K_V3", "IMAGENET1K_V2"),
        ("torchvison:resnet50", "torchvision:resnet50"),
        ("hf-hubb:user/repo", "hf-hub:user/repo"),
        ("alphatune.models.cifr:resnet20", "alphatune.models.cifar"),
        ("alphatune.models.cifar:resnet2O", "resnet20"),
        ("resnet56", "alphatune.models.cifar:resnet56"),
        ("ResNet-20", CIFAR),
        ("resnet_110", "alphatune.models.cifar:resnet110"),
        ("cifar10_resnet20", CIFAR),
        ("resnet57", "alphatune.models.cifar:resnet56"),
        ("cifar:resnet20", CIFAR),
        ("models.cifar:resnet20", CIFAR),
        ("resnet-50", "resnet50"),
        ("fcn_resnet50", "torchvision:fcn_resnet50"),
    ],
)
def test_a_mistyped_model_is_a_usage_error_that_names_the_one_meant(run: Run, model: str, first: str) -> None:
    code, stdout, stderr = run("tune", model, "--data", "x")
    assert (code, stdout) == (2, "")
    assert meant(stderr)[0] == first
    assert stderr.count("\n") == 1


def test_the_model_in_json(run: Run) -> None:
    code, stdout, _ = run("tune", "resnet5O", "--data", "x", "--format", "json")
    error = json.loads(stdout)["error"]
    assert (code, error["code"], error["hint"]) == (2, 2, "did you mean resnet50?")


def test_a_name_like_none_lists_the_forms(run: Run) -> None:
    _, _, stderr = run("inspect", "qqqqqq")
    assert "torchvision:NAME" in stderr
    assert meant(stderr) == []


def test_own_files_modules_and_tuned_folders(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model.py").write_text("")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "alphatune.json").write_text("{}")
    (tmp_path / "tunad").mkdir()  # no tuned folder
    assert meant(run("inspect", "my_modl.py:build")[2]) == ["my_model.py"]
    assert meant(run("inspect", "my_modl:build")[2]) == ["my_model"]
    assert meant(run("inspect", "tuend")[2]) == ["tuned"]
    assert "is its package installed?" in run("inspect", "nothing_like_it.at.all:x")[2]


@pytest.mark.parametrize("model", [CIFAR, "resnet18", "torchvision:resnet18"])
def test_an_argument_of_the_factory(run: Run, model: str) -> None:
    code, _, stderr = run("inspect", model, "--no-pretrained", "--model-kwargs", "num_clases=3")
    assert code == 2
    assert "num_classes" in stderr


def test_a_name_that_is_right_is_not_searched_for(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Listing all of timm and comparing costs nothing where nothing is wrong."""
    import timm

    def refuse(*args: object, **kwargs: object) -> list[str]:
        raise AssertionError("searched")

    monkeypatch.setattr(timm, "list_models", refuse)
    monkeypatch.setattr("difflib.get_close_matches", refuse)
    assert run("inspect", "resnet18", "--no-pretrained", "--format", "quiet")[0] == 0
    with pytest.raises(AssertionError, match="searched"):  # the instrument works
        closest("a", ["b"])


# --- the command line ------------------------------------------------------------------------


def test_subcommands_and_options(run: Run) -> None:
    code, _, stderr = run("tnue", "x")
    assert (code, meant(stderr)) == (2, ["tune"])
    code, _, stderr = run("tune", "x", "--data", "y", "--metrc", "top1")
    assert (code, meant(stderr)[0]) == (2, "--metric")
    assert "no such option: --metrc" in stderr
    assert meant(run("tune", "x", "--data", "y", "--no-pretraind")[2])[0] == "--no-pretrained"


def test_an_option_of_another_command_says_whose(run: Run) -> None:
    assert "an option of tune" in run("evaluate", "x", "--data", "y", "--granularity", "layer")[2]
    assert "an option of train" in run("tune", "x", "--data", "y", "--ghost-size", "4")[2]


def test_values_of_a_choice(run: Run) -> None:
    code, _, stderr = run("tune", "x", "--data", "y", "--granularity", "layers")
    assert code == 2
    assert meant(stderr)[0] == "layer"
    assert "'channel'" in stderr  # all of them are listed as well
    assert meant(run("tune", "x", "--data", "y", "--interpolation", "bicubik")[2])[0] == "bicubic"


def test_keys_of_a_configuration(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('model = "resnet18"\ndata = "x"\ngranularty = "layer"\n')
    code, _, stderr = run("tune", "--config", config)
    assert (code, meant(stderr)) == (2, ["granularity"])


# --- data ------------------------------------------------------------------------------------


def test_paths_and_names_of_data(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos" / "val").mkdir(parents=True)
    (tmp_path / "best.pth").touch()
    code, _, stderr = run("evaluate", CIFAR, "--data", tmp_path / "photos" / "vla")
    assert (code, meant(stderr)) == (3, [str(tmp_path / "photos" / "val")])
    _, _, stderr = run("evaluate", CIFAR, "--data", tmp_path / "photo" / "val")
    assert meant(stderr) == [str(tmp_path / "photos")]  # the part that is wrong
    assert meant(run("evaluate", CIFAR, "--data", "cifar1O", "--data-root", tmp_path)[2]) == ["cifar10"]
    assert "torch/" in run("evaluate", CIFAR, "--data", "zzzzz")[2]
    code, _, stderr = run("inspect", TINY, "--checkpoint", tmp_path / "bset.pth")
    assert (code, meant(stderr)) == (3, [str(tmp_path / "best.pth")])


def test_layers_to_exclude() -> None:
    with pytest.raises(ConfigurationError, match="did you mean bn1"):
        alphatune.patch_(tiny().eval(), 0.1, exclude="bm1")


# --- the functions ---------------------------------------------------------------------------


def test_closest_orders_by_likeness_and_keeps_spelling() -> None:
    assert closest("LAYER", ["stage", "Layers", "layer"]) == ["layer"]
    assert closest("layrs", ["stage", "Layers", "layer"]) == ["Layers", "layer"]
    assert closest("l0ss", ["top1", "loss"]) == ["loss"]
    assert closest("xyz", ["top1", "loss"]) == []


def test_did_you_mean_reads_as_a_sentence() -> None:
    known = ["abcd1", "abcd2", "abcd3"]
    assert re.fullmatch(r"did you mean abcd\d, abcd\d or abcd\d\?", did_you_mean("abcdx", known))
    assert did_you_mean("abcdx", known[:2]).count(" or ") == 1
    assert did_you_mean("abcdx", known[:1]) == "did you mean abcd1?"
    assert did_you_mean("xyz", known, "something else") == "something else"


def test_paths_that_nothing_is_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".hidden").touch()
    assert did_you_mean_path(tmp_path / ".hiddne", "other") == "other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    assert did_you_mean_path("imags") == "did you mean images?"
    assert did_you_mean_path("imags/val") == "did you mean images?"
    assert did_you_mean_path("/") == ""


def test_suggesting_imports_no_torch() -> None:
    code = "import sys, alphatune.cli.main, alphatune.core.suggestions; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=60)


@pytest.mark.parametrize("words", [("--alphas", "0", "0.1", "0.2"), ("--mean", "0.5", "0.5")])
def test_a_list_with_spaces(run: Run, words: tuple[str, ...]) -> None:
    code, _, err = run("tune", "resnet18", "--data", "d", *words)
    assert code == 2
    assert "separated by commas" in err
    code, _, err = run("tune", "resnet18", "imagenet", "--data", "d")
    assert code == 2
    assert "commas" not in err
