"""The command line through its entry point: streams, exit codes, files, and bad input."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY, Run, slow, write_images
from safetensors.torch import load_file
from tiny import tiny

import alphatune
from alphatune.core.toml import tomllib

COMMON = ("--input-size", "12", "--crop-pct", "1", "--mean", "0.5", "--std", "0.25", "--workers", "0")


@pytest.fixture
def job(tiny_checkpoint: Path, image_folder: Path) -> list[object]:
    return [TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, *COMMON]


def command(*argv: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alphatune", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


# --- the main job ----------------------------------------------------------------------------


def test_tune_writes_the_folder_and_one_json_object(run: Run, job: list, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = run("tune", *job, "--alphas", "0,0.1,0.3", "--output", out, "--format", "json")
    assert code == 0
    result = json.loads(stdout)
    assert result == json.loads((out / "result.json").read_text())
    assert [p["alpha"] for p in result["curve"]] == [0, 0.1, 0.3]
    assert all(p["measured"] for p in result["curve"])
    assert result["model"]["patched"] == ["bn1", "bn2"]
    assert result["model"]["weights_key"] == "state_dict"
    assert "'state_dict'" in stderr
    assert result["data"]["n"] == 48
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "alphatune.json", "run.toml", "result.json", "curve.csv", "report.md",
        "report.html", "figures", "scores.npz",
    }  # fmt: skip
    for artifact in result["artifacts"]:
        from alphatune.core.hashing import sha256

        assert sha256(out / artifact["path"]) == artifact["sha256"]
    curve = pd.read_csv(out / "curve.csv")
    assert curve["loss"].tolist() == pytest.approx([p["loss"] for p in result["curve"]])
    report = (out / "report.md").read_text()
    assert "| 0.1 |" in report
    assert result["model"]["checkpoint_sha256"] in report


def test_tuned_folder_evaluates_to_the_tuned_figures(run: Run, job: list, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("tune", *job, "--alphas", "0,0.1", "--accept", "best", "--metric", "loss", "-o", out)
    tuned = json.loads((out / "result.json").read_text())
    data = ["--data", job[job.index("--data") + 1], "--workers", 0, "--trust-code"]
    code, stdout, _ = run("evaluate", out, *data, "--format", "json")
    assert code == 0
    evaluated = json.loads(stdout)
    assert evaluated["metrics"] == pytest.approx(tuned["chosen"]["metrics"], abs=1e-6)
    assert evaluated["data"]["preprocessing"] == tuned["data"]["preprocessing"]
    stock = tiny()
    stock.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    torch.save(stock.state_dict(), tmp_path / "stock.pt")
    _, stdout, _ = run(
        "evaluate", TINY, "--checkpoint", tmp_path / "stock.pt", *data, *COMMON[:-2], "--format", "json"
    )
    assert json.loads(stdout)["metrics"] == tuned["baseline"]


def test_evaluate_at_an_alpha(run: Run, job: list, tmp_path: Path) -> None:
    run("tune", *job, "--alphas", "0,0.2", "-o", tmp_path / "out")
    tuned = json.loads((tmp_path / "out" / "result.json").read_text())
    _, stdout, _ = run("evaluate", *job, "--alpha", 0.2, "--format", "json")
    metrics = json.loads(stdout)["metrics"]
    assert metrics["loss"] == tuned["curve"][1]["loss"]


def test_tuned_folder_can_be_tuned_again(run: Run, job: list, tmp_path: Path) -> None:
    args = ["--alphas", "0,0.1", "--accept", "best", "--metric", "loss", "--workers", 0]
    run("tune", *job, *args[:-2], "-o", tmp_path / "a")
    code, _, err = run(
        "tune",
        tmp_path / "a",
        "--trust-code",
        "--data",
        job[job.index("--data") + 1],
        *args,
        "-o",
        tmp_path / "b",
    )
    assert code == 0, err
    a, b = (json.loads((tmp_path / n / "result.json").read_text()) for n in "ab")
    assert a["curve"] == b["curve"]  # from α = 0 again
    code, _, err = run(
        "tune", tmp_path / "a", "--trust-code", "--data", "x", "-o", tmp_path / "a", "--overwrite"
    )
    assert code == 2
    assert "holds the input" in err


def test_run_toml_repeats_the_run(run: Run, job: list, tmp_path: Path) -> None:
    run("tune", *job, "--alphas", "0,0.1", "--limit", 30, "--seed", 3, "-o", tmp_path / "a")
    code, _, err = run("tune", "--config", tmp_path / "a" / "run.toml", "-o", tmp_path / "b")
    assert code == 0, err
    a, b = (json.loads((tmp_path / n / "result.json").read_text()) for n in "ab")
    assert a["curve"] == b["curve"]
    assert b["data"]["n"] == 30
    code, stdout, _ = run("evaluate", "--config", tmp_path / "a" / "run.toml", "--format", "json")
    assert code == 0
    assert json.loads(stdout)["metrics"] == a["baseline"]


def test_same_seed_same_bytes(run: Run, job: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        run("tune", *job, "--alphas", "0,0.1", "-o", "out")
    for file in sorted(f for f in (tmp_path / "a" / "out").rglob("*") if f.is_file()):
        other = tmp_path / "b" / file.relative_to(tmp_path / "a")
        if file.name == "result.json":
            assert timeless(file) == timeless(other)
        elif file.name not in REPORTS:
            assert file.read_bytes() == other.read_bytes(), file.name


#: they quote what α costs, and the time that the tune took
REPORTS = ("report.md", "report.html")


def timeless(result: Path) -> dict:
    """A result without what was read off a clock."""
    document = json.loads(result.read_text())
    del document["seconds"], document["deployment"], document["env"]["kernel_build_seconds"]
    document["artifacts"] = [a for a in document["artifacts"] if a["path"] not in REPORTS]
    return document


def test_cache_and_decoder_change_nothing_but_their_record(run: Run, job: list, tmp_path: Path) -> None:
    def tuned(name: str, *options: object) -> dict:
        code, stdout, err = run(
            "tune", *job, "--alphas", "0,0.1", "-o", tmp_path / name, "--format", "json", *options
        )
        assert code == 0, err
        return json.loads(stdout)

    plain = tuned("a")
    assert plain["env"]["cache"] == "ram"  # auto
    assert plain["data"]["decoder"].startswith("PIL ")
    for where in ("none", "disk"):
        other = tuned(where, "--cache", where)
        assert other["env"]["cache"] == where
        assert other["curve"] == plain["curve"]
    _, stdout, _ = run("evaluate", *job, "--format", "json")
    assert json.loads(stdout)["env"]["cache"] == "none"
    _, stdout, _ = run("evaluate", *job, "--cache", "ram", "--format", "json")
    assert json.loads(stdout)["env"]["cache"] == "ram"
    assert "cache ram" in run("tune", *job, "--dry-run", "-o", tmp_path / "x")[1].replace("\n", " ")
    assert run("tune", *job, "--cache", "device", "-o", tmp_path / "x")[0] == 2
    pytest.importorskip("torchcodec")
    other = tuned("b", "--decoder", "torchcodec")
    assert other["data"]["decoder"].startswith("torchcodec ")
    assert other["curve"] == plain["curve"]


def test_dry_run_runs_and_writes_nothing(run: Run, job: list, tmp_path: Path) -> None:
    code, stdout, _ = run("tune", *job, "--dry-run", "-o", tmp_path / "out", "--format", "json")
    assert code == 0
    plan = json.loads(stdout)
    assert plan["model"]["patched"] == ["bn1", "bn2"]
    assert plan["data"]["n"] == 48
    assert not (tmp_path / "out").exists()
    assert "Plan" in run("tune", *job, "--dry-run", "-o", tmp_path / "out")[1]


def test_min_positions_and_exclude(run: Run, job: list, tmp_path: Path) -> None:
    _, stdout, _ = run(
        "tune", *job, "--min-positions", 100, "-o", tmp_path / "a", "--alphas", "0,0.1", "--format", "json"
    )
    result = json.loads(stdout)
    assert result["model"]["patched"] == ["bn1"]
    assert result["model"]["skipped"][0]["name"] == "bn2"
    assert "positions" in result["model"]["skipped"][0]["reason"]
    _, stdout, _ = run(
        "tune", *job, "--exclude", "bn1", "-o", tmp_path / "b", "--alphas", "0,0.1", "--format", "json"
    )
    assert json.loads(stdout)["model"]["patched"] == ["bn2"]


def test_only_some_layers_take_an_alpha(run: Run, job: list, tmp_path: Path) -> None:
    words = ["tune", *job, "--alphas", "0,0.1", "--accept", "best", "--format", "json"]
    _, stdout, _ = run(*words, "--layers", "*2", "-o", tmp_path / "a")
    result = json.loads(stdout)
    assert result["model"]["patched"] == ["bn2"]
    assert "--layers" in result["command_line"]
    assert tomllib.loads((tmp_path / "a" / "run.toml").read_text())["layers"] == ["*2"]
    _, stdout, _ = run(*words, "--layers", "bn1", "--layers", "*2", "-o", tmp_path / "b")
    assert json.loads(stdout)["model"]["patched"] == ["bn1", "bn2"]
    code, _, err = run(*words, "--layers", "bn1", "--exclude", "bn1", "-o", tmp_path / "c")
    assert code == 4, err


# --- streams and formats ---------------------------------------------------------------------


def test_human_output_is_a_table_with_the_decision(run: Run, job: list, tmp_path: Path) -> None:
    code, stdout, stderr = run("tune", *job, "--alphas", "0:0.4:5", "-o", tmp_path / "out")
    assert code == 0
    assert "alpha" in stdout
    assert "α" in stdout
    assert str(tmp_path / "out") in stdout.replace("\n", "")
    assert "\x1b" not in stdout + stderr  # no terminal, no colour, no bar


def test_quiet_format_and_quiet_option(run: Run, job: list, tmp_path: Path) -> None:
    code, stdout, stderr = run(
        "tune", *job, "--alphas", "0,0.1", "-o", tmp_path / "out", "--format", "quiet", "-q"
    )
    assert (code, stdout, stderr) == (0, f"{tmp_path / 'out'}\n", "")


@pytest.mark.slow
def test_piped_output_is_plain_where_ci_forces_terminals(job: list, tmp_path: Path) -> None:
    done = command(
        "tune", *job, "--alphas", "0,0.1", "-o", tmp_path / "out", "--format", "json",
        env={**os.environ, "GITHUB_ACTIONS": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "\x1b" not in done.stdout


def test_one_example_is_reported_without_intervals(run: Run, job: list, tmp_path: Path) -> None:
    for form in ("human", "json"):
        args = ["--limit", 1, "--alphas", "0,0.1", "-o", tmp_path / form, "--format", form]
        assert run("tune", *job, *args)[0] == 0


def test_results_hold_from_any_folder(
    run: Run, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "net.py").write_text(Path(TINY.rpartition(":")[0]).read_text())
    monkeypatch.chdir(here)
    args = [
        "net.py:tiny",
        "--checkpoint",
        tiny_checkpoint,
        "--data",
        os.path.relpath(image_folder, here),
        *COMMON,
    ]
    code, _, err = run("tune", *args, "--alphas", "0,0.1", "-o", "out")
    assert code == 0, err
    monkeypatch.chdir(there)
    code, _, err = run("evaluate", here / "out", "--trust-code", "--data", image_folder)
    assert code == 0, err
    code, _, err = run("tune", "--config", here / "out" / "run.toml", "-o", "again")
    assert code == 0, err


def test_alpha_of_an_evaluation_goes_to_the_tuned_layers(run: Run, job: list, tmp_path: Path) -> None:
    from alphatune.data.preprocessing import Preprocessing
    from alphatune.models.sources import build

    out, data, source = tmp_path / "out", job[job.index("--data") + 1], build(TINY)
    alphatune.patch_(source.model, 0.2, exclude="bn1")
    alphatune.save(source.model, out, source=source, preprocessing=Preprocessing(input_size=(3, 12, 12)))
    evaluate = ["evaluate", out, "--trust-code", "--data", data, "--alpha", 0.3, "--format", "json"]
    assert json.loads(run(*evaluate)[1])["model"]["patched"] == ["bn2"]
    assert run(*evaluate, "--model-kwargs", "num_classes=9")[0] == 2


def test_dry_run_checks_what_the_run_would(run: Run, image_folder: Path, tmp_path: Path) -> None:
    for name in ("no_norm", "odd"):
        args = [TINY.replace(":tiny", f":{name}"), "--data", image_folder, *COMMON, "-o", tmp_path / "out"]
        assert run("tune", *args, "--dry-run")[0] == 4


def test_local_dir_is_not_overwritten(run: Run, image_folder: Path, tmp_path: Path) -> None:
    import timm

    folder = tmp_path / "m"
    timm.models.save_for_hf(
        timm.create_model("resnet10t", num_classes=4), str(folder), safe_serialization=True
    )
    (folder / "alphatune.json").write_text("{}")
    code, _, err = run("tune", f"local-dir:{folder}", "--data", image_folder, "-o", folder, "--overwrite")
    assert code == 2
    assert "holds the input" in err


def test_user_supplied_names_are_not_markup(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "[red]<b>x|y</b>", per_class=6)
    args = [TINY, "--checkpoint", tiny_checkpoint, "--data", folder, *COMMON, "--alphas", "0,0.1"]
    code, _, err = run("tune", *args, "-o", tmp_path / "out")
    assert code == 0, err
    report = (tmp_path / "out" / "report.md").read_text()
    assert "<b>" not in report
    assert r"\[red\]&lt;b&gt;x\|y" in report


def test_layers_with_a_single_position_are_reported(run: Run, tmp_path: Path, image_folder: Path) -> None:
    source = tmp_path / "flat.py"
    source.write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 4))\n"
    )
    args = ["tune", f"{source}:net", "--data", image_folder, *COMMON, "--alphas", "0,0.1", "--format", "json"]
    result = json.loads(run(*args, "-o", tmp_path / "a")[1])
    assert result["model"]["remarks"] == [
        {"name": "3", "remark": "one position: the example's variance is 0"}
    ]
    assert "one position" in (tmp_path / "a" / "report.md").read_text()
    result = json.loads(run(*args, "-o", tmp_path / "b", "--min-positions", 2)[1])
    assert result["model"]["patched"] == ["0"]


def test_output_survives_an_ascii_terminal(job: list, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = command("tune", *job, "--alphas", "0,0.1", "-o", tmp_path / "out", env=environment)
    assert done.returncode == 0, done.stderr


def test_inspect(run: Run, tiny_checkpoint: Path) -> None:
    args = ["inspect", TINY, "--checkpoint", tiny_checkpoint, "--input-size", 12]
    code, stdout, _ = run(*args, "--format", "json")
    assert code == 0
    result = json.loads(stdout)
    assert result["summary"] == {"patchable": 2}
    first = result["layers"][0]
    assert (first["name"], first["kind"], first["num_features"], first["eps"]) == (
        "bn1",
        "BatchNorm2d",
        8,
        1e-3,
    )
    assert (first["spatial"], first["healthy"]) == ([12, 12], True)
    code, stdout, _ = run(*args)
    assert "patchable" in stdout
    assert run(*args, "--format", "quiet")[1] == "patchable=2\n"


def test_inspect_shows_like_layers_as_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer is counted once, problems come first, and --all has a row each."""
    monkeypatch.setenv("COLUMNS", "80")
    _, stdout, _ = run("inspect", "resnet26", "--no-pretrained", "--format", "json")
    layers = json.loads(stdout)["layers"]
    _, page, _ = run("inspect", "resnet26", "--no-pretrained")
    counts = [int(n) for n in re.findall(r"^ *(\d+)  BatchNorm", page, re.MULTILINE)]
    assert sum(counts) == len(layers)
    assert len(counts) == len({tuple(layer["spatial"]) for layer in layers})
    assert "--all" in page
    _, page, _ = run("inspect", "resnet26", "--no-pretrained", "--all")
    assert [
        name for name in (layer["name"] for layer in layers) if not re.search(rf"^{name} ", page, re.M)
    ] == []

    file = TINY.replace(":tiny", ":odd")
    _, page, _ = run("inspect", file, "--input-size", 12)
    lines = page.splitlines()
    first = next(line for line in lines[1:] if line)
    assert first.startswith("! bn2: OddNorm")  # what is wrong before anything else
    rows = [line.split()[1] for line in lines if re.match(" *1  ", line)]
    assert rows == ["OddNorm", "BatchNorm2d"]


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"])
def test_inspect_takes_what_is_no_classifier(run: Run, name: str) -> None:
    """Maps of logits, and a list of boxes; their layers can be patched all the same."""
    args = [f"torchvision:{name}", "--no-pretrained", "--input-size", 64]
    code, stdout, _ = run("inspect", *args, "--format", "json")
    assert code == 0
    document = json.loads(stdout)
    assert document["model"]["num_classes"] is None
    assert document["summary"]["patchable"] == len(document["layers"])
    assert "no classifier" in run("inspect", *args)[1]
    code, _, stderr = run("bench", *args)
    assert code == 2
    assert "--score" in stderr


def test_inspect_says_why_not(run: Run) -> None:
    code, stdout, _ = run("inspect", TINY.replace(":tiny", ":odd"), "--input-size", 12)
    assert code == 0
    assert "subclass of BatchNorm" in stdout


def test_help_is_complete() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("tune", "evaluate", "inspect"))
    for name in ("tune", "evaluate", "inspect"):
        assert command(name, "--help").returncode == 0


def test_help_does_not_import_torch() -> None:
    code = "import sys; sys.argv = ['alphatune', '--help']\nfrom alphatune.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'timm' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_version_and_installed_script() -> None:
    script = Path(sys.executable).parent / "alphatune"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"alphatune {alphatune.__version__}\n"


# --- bad input -------------------------------------------------------------------------------


def bad_inputs(tmp_path: Path, checkpoint: Path, images: Path) -> dict[str, tuple[list[object], int, str]]:
    """Arguments of tune, the exit code, and what the one line must say."""
    good = [TINY, "--checkpoint", checkpoint, "--data", images, *COMMON, "-o", tmp_path / "out"]

    def swap(option: str, value: object) -> list[object]:
        args = list(good)
        args[args.index(option) + 1] = value
        return args

    (tmp_path / "empty").mkdir()
    existing = tmp_path / "existing"
    existing.mkdir()
    (existing / "thesis.txt").write_text("only copy")
    broken = write_images(tmp_path / "broken", per_class=2)
    (broken / "cat" / "001.png").write_text("no image")
    seven = write_images(tmp_path / "seven", per_class=1, classes=tuple("abcdefg"))
    two = write_images(tmp_path / "two", per_class=1, classes=("a", "b"))
    cifar = "alphatune.models.cifar:resnet20"
    evil = tmp_path / "evil.pt"
    torch.save({"state_dict": argparse.Namespace(lr=1), "x": 1}, evil)
    nan = tiny().state_dict()
    nan["bn1.running_var"][0] = -1
    torch.save(nan, tmp_path / "negative.pt")
    for name, key, value in (
        ("zero", "bn2.running_var", 0.0), ("nan", "conv2.weight", float("nan")), ("infinite", "bn1.weight", float("inf")),
    ):  # fmt: skip
        state = tiny().state_dict()
        state[key].fill_(value)
        torch.save(state, tmp_path / f"{name}.pt")
    no_norm = TINY.replace(":tiny", ":no_norm")
    return {
        "missing checkpoint": (swap("--checkpoint", tmp_path / "no.pt"), 3, "no.pt"),
        "missing data": (swap("--data", tmp_path / "nowhere"), 3, "nowhere"),
        "empty folder": (swap("--data", tmp_path / "empty"), 3, "no images found"),
        "unreadable image": (swap("--data", broken), 3, "cat/001.png"),
        "unknown architecture": (["resnet5", *good[1:]], 2, "resnet5"),
        "unknown factory": (["nowhere.at_all:net", *good[1:]], 2, "nowhere"),
        "checkpoint of another architecture": ([cifar, *good[1:]], 3, "another architecture"),
        "untrusted checkpoint": (swap("--checkpoint", evil), 3, "argparse.Namespace"),
        "negative variance": (swap("--checkpoint", tmp_path / "negative.pt"), 6, "bn1"),
        "statistics of nothing": (swap("--checkpoint", tmp_path / "zero.pt"), 6, "bn2"),
        "NaN weight": (swap("--checkpoint", tmp_path / "nan.pt"), 6, "conv2.weight"),
        "infinite weight": (swap("--checkpoint", tmp_path / "infinite.pt"), 6, "bn1.weight"),
        "model without norms": ([no_norm, "--data", images, *COMMON, "-o", tmp_path / "out"], 4, "BatchNorm"),
        "unknown norm": (
            [TINY.replace(":tiny", ":odd"), "--data", images, *COMMON, "-o", tmp_path / "out"],
            4,
            "OddNorm",
        ),
        "too many classes": (swap("--data", seven), 2, "label 6, the model 4 outputs"),
        "too few classes": (swap("--data", two), 2, "2 classes, the model 4 outputs"),
        "alpha above 1": ([*good, "--alphas", "0,1.5"], 2, "[0, 1]"),
        "alpha below 0": ([*good, "--alphas=-0.5"], 2, "[0, 1]"),
        "alpha no number": ([*good, "--alphas", "many"], 2, "many"),
        "existing output": (swap("-o", existing), 2, "exists"),
        "foreign output": ([*swap("-o", existing), "--overwrite"], 2, "not written by alphatune"),
        "output is a file": (swap("-o", "x.json"), 2, "folder"),
        "unknown metric": ([*good, "--metric", "f1"], 2, "f1"),
        "unknown option": ([*good, "--alhpas", "0"], 2, "alhpas"),
        "no data": (good[:3], 2, "data"),
        "no model": ([], 2, "MODEL"),
        "unknown device": ([*good, "--device", "tpu9"], 2, "tpu9"),
        "absent device": ([*good, "--device", "cuda:99"], 2, "cuda:99"),
        "bad batch size": ([*good, "--batch-size", "0"], 2, "--batch-size"),
        "bad workers": ([*good, "--workers", "-1"], 2, "--workers"),
        "bad mean": ([*good, "--mean", "red"], 2, "--mean"),
        "bad limit": ([*good, "--limit", "0"], 2, "--limit"),
        "bad exclude": ([*good, "--exclude", "layer9"], 2, "layer9"),
        "bad layers": ([*good, "--layers", "layer9"], 2, "layers pattern 'layer9' matches no norm layer"),
        "bad kwargs": ([*good, "--model-kwargs", "colour"], 2, "colour"),
        "refused kwargs": ([*good, "--model-kwargs", "colour=1"], 2, "colour"),
        "missing config": ([*good, "--config", tmp_path / "no.toml"], 2, "no.toml"),
        "wrong input size": ([*good, "--input-size", "1,12,12"], 2, "input"),
    }


CASES = [
    "missing checkpoint", "missing data", "empty folder", "unreadable image", "unknown architecture",
    "unknown factory", "checkpoint of another architecture", "untrusted checkpoint", "negative variance",
    "statistics of nothing", "NaN weight", "infinite weight",
    "model without norms", "unknown norm", "too many classes", "too few classes", "alpha above 1",
    "alpha below 0", "alpha no number", "existing output", "foreign output", "output is a file",
    "unknown metric", "unknown option", "no data", "no model", "unknown device", "absent device",
    "bad batch size", "bad workers", "bad mean", "bad limit", "bad exclude", "bad layers", "bad kwargs", "refused kwargs",
    "missing config", "wrong input size",
]  # fmt: skip


def test_every_bad_input_is_run(tmp_path: Path, tiny_checkpoint: Path, image_folder: Path) -> None:
    assert set(bad_inputs(tmp_path, tiny_checkpoint, image_folder)) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_with_its_code(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, image_folder: Path, case: str
) -> None:
    args, code, words = bad_inputs(tmp_path, tiny_checkpoint, image_folder)[case]
    got, stdout, stderr = run("tune", *args)
    lines = [line for line in stderr.splitlines() if not line.startswith("warning: ")]
    assert got == code, stderr
    assert stdout == ""
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "existing" / "thesis.txt").read_text() == "only copy"


NO_NUMBERS = ("²", "①", "१²", "9" * 5000, "1e3", " ", "", "+1", "1_0")


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("tune", "--batch-size"),
        ("tune", "--workers"),
        ("bench", "--batch-size"),
        ("bench", "--threads"),
        ("tune", "--limit"),
    ],
)
def test_no_whole_number(run: Run, job: list, tmp_path: Path, command: str, option: str, text: str) -> None:
    """Digits of other scripts, and more of them than an int may have."""
    if option in ("--threads", "--limit") and text in ("+1", "1_0"):
        pytest.skip("numbers, as typer reads them")
    words = [*job, "-o", tmp_path / "out", "--dry-run"] if command == "tune" else [TINY, "--input-size", "12"]
    code, _, err = run(command, *words, f"{option}={text}")
    assert code == 2, err
    assert option.strip("-") in err


@pytest.mark.parametrize(
    "option", ["--alphas", "--mean", "--std", "--input-size", "--crop-pct", "--val-fraction", "--min-gain"]
)
@pytest.mark.parametrize("text", ["²", "0:1:²", "0:1:" + "9" * 5000, "①", "1e999", "nan", ",", "x"])
def test_no_number(run: Run, job: list, tmp_path: Path, option: str, text: str) -> None:
    code, _, err = run("tune", *job, "-o", tmp_path / "out", "--dry-run", f"{option}={text}")
    assert code == 2, err


@pytest.mark.parametrize("command", ["tune", "evaluate"])
def test_a_forgotten_checkpoint_is_named_as_the_cause(
    run: Run, image_folder: Path, tmp_path: Path, command: str
) -> None:
    args = [TINY, "--data", image_folder, *COMMON, *(["-o", tmp_path / "out"] if command == "tune" else [])]
    code, _, err = run(command, *args)
    assert code == 0
    assert "no --checkpoint was given" in err
    assert "all 2 norm layers are as before training" in err
    assert "order of the labels" not in err  # which is not the cause


def test_resuming_says_what_it_goes_on_from(run: Run, job: list, tmp_path: Path) -> None:
    code, _, err = run("tune", *job, "--alphas", "0,0.1", "-o", tmp_path / "out", "--resume")
    assert code == 0
    assert "nothing was saved" in err


def test_failure_in_json_is_one_object(run: Run, job: list, tmp_path: Path) -> None:
    for args in (["--format", "json"], ["--format=json"]):
        code, stdout, _ = run("tune", *job, "--alphas", "7", "-o", tmp_path / "out", *args)
        error = json.loads(stdout)["error"]
        assert error["code"] == code == 2
        assert "[0, 1]" in error["message"]
        assert error["hint"]
    code, stdout, _ = run("tune", *job, "--no-such-option", "--format", "json")
    assert json.loads(stdout)["error"]["code"] == code == 2


def test_a_bug_is_no_traceback(run: Run, job: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import alphatune.jobs.tune

    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(alphatune.jobs.tune, "tune", bug)
    code, _, stderr = run("tune", *job, "-o", tmp_path / "out")
    assert code == 70
    assert stderr.splitlines()[-1].startswith("error: internal error: ZeroDivisionError: oops")
    code, _, stderr = run("tune", *job, "-o", tmp_path / "out", "-v")
    assert "Traceback" in stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), slow(signal.SIGTERM, 143)])
def test_interrupts_leave_nothing_behind(tmp_path: Path, job: list, number: int, code: int) -> None:
    args = [*job, "--alphas", "0:1:50001", "-o", tmp_path / "out", "-v", "--format", "json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "alphatune", "tune", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A job in the background inherits "ignore Ctrl-C", which is no terminal's state.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    process.stderr.readline()  # "settings: ...", printed when the work begins
    time.sleep(3)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert json.loads(stdout)["error"]["code"] == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--data", "-o"])
def test_a_name_that_is_not_utf8(run: Run, job: list[object], tmp_path: Path, option: str) -> None:
    """It could not stand in result.json: to be told before anything is measured."""
    odd = tmp_path / "d\udcff"
    if option == "--data":
        write_images(odd)
    code, out, err = run(
        "tune", *job, "--alphas", "0,0.5", "-o", tmp_path / "out", option, odd, "--format", "json"
    )
    assert code == 2
    assert json.loads(out)["error"]["message"].startswith("expected UTF-8, got")
    assert "rename" in err


def test_a_current_folder_that_is_not_utf8(
    run: Run, job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "d\udcff"
    odd.mkdir()
    monkeypatch.chdir(odd)
    code, _, err = run("tune", *job, "--alphas", "0,0.5", "-o", "out")
    assert code == 2
    assert "expected UTF-8" in err
    assert run("--help")[0] == 0


# --- stdout that cannot be written, code that leaves -----------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["schema"], ["schema", "tune"], ["compare", "a", "b", "--format", "json"]])
def test_a_full_disk_behind_stdout_is_no_failed_gate(words: list[str]) -> None:
    """Python would end with 1 or 120, and a traceback."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "alphatune", *words], stdout=full, stderr=subprocess.PIPE, text=True,
                              timeout=60)  # fmt: skip
    assert done.returncode == (3 if "compare" in words else 5), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot ")


INSPECT = f"inspect {TINY} --input-size 12"
SPOKEN = [
    "", "--help", "--version", "--show-completion", "tune --help", "doctor --help", "schema", "schema tune",
    INSPECT, f"{INSPECT} --format quiet", "compare a b --format json",
]  # fmt: skip


def end_of_a_pipe_that_nobody_reads() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.slow
@pytest.mark.parametrize("words", SPOKEN)
def test_a_reader_that_left_is_no_failed_gate(words: str) -> None:
    with os.fdopen(end_of_a_pipe_that_nobody_reads(), "w") as pipe:
        # A shell above it: completion is shown for the shell that asks.
        done = subprocess.run(
            ["bash", "-c", f"{shlex.join([sys.executable, '-m', 'alphatune', *words.split()])}; exit $?"],
            stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == (3 if "compare a" in words else 141), done.stderr
    assert "internal" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_where_nobody_reads_stderr_the_work_is_done() -> None:
    """Of a shell's ``2>&1 | head`` stdout decides."""
    for together in (False, True):  # what is told of random weights finds no reader first
        with os.fdopen(end_of_a_pipe_that_nobody_reads(), "w") as pipe:
            done = subprocess.run(
                [sys.executable, "-m", "alphatune", *INSPECT.split()],
                stdout=pipe if together else subprocess.PIPE, stderr=pipe, text=True, timeout=60,
            )  # fmt: skip
        assert done.returncode == (141 if together else 0)
        assert together or "bn1" in done.stdout


@pytest.mark.parametrize("code", ["import sys\nsys.exit(0)", "def net():\n    raise SystemExit(1)"])
def test_code_of_ones_own_that_exits(run: Run, tmp_path: Path, code: str) -> None:
    """It must not look as if alphatune had done its work, or a gate had failed."""
    (tmp_path / "own.py").write_text(code)
    found, _, err = run("inspect", f"{tmp_path / 'own.py'}:net")
    assert found == 2
    assert "SystemExit" in err
