"""tune --calibrate, tune --recalibrate and inspect --data through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run, write_images
from forks import run_distributed
from safetensors.torch import load_file
from tiny import grouped, tiny

from alphatune.core.hashing import sha256
from alphatune.data.datasets import open_data
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.jobs.averages import mixed

COMMON = ("--input-size", "12", "--crop-pct", "1", "--mean", "0.5", "--std", "0.25", "--workers", "0")
GROUPED, MIXED = TINY.replace(":tiny", ":grouped"), TINY.replace(":tiny", ":mixed")
ALPHAS = ("--metric", "loss", "--accept", "best", "--format", "json", "--alphas")


@pytest.fixture(scope="session")
def training_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both splits; training images of two of the four classes, which is nobody's business."""
    root = tmp_path_factory.mktemp("splits")
    write_images(root / "train", per_class=15, classes=("ant", "bee"))
    write_images(root / "validation", per_class=3)
    return root


@pytest.fixture(scope="session")
def grouped_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("weights") / "grouped.pt"
    torch.save(grouped().state_dict(), path)
    return path


@pytest.fixture
def group_job(grouped_checkpoint: Path, image_folder: Path) -> list[object]:
    return [GROUPED, "--checkpoint", grouped_checkpoint, "--data", image_folder, *COMMON]


@pytest.fixture
def job(tiny_checkpoint: Path, image_folder: Path) -> list[object]:
    return [TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, *COMMON]


# --- calibrate -------------------------------------------------------------------------------


def test_calibrate_sweeps_from_one_and_writes_the_moments(
    run: Run, group_job: list, training_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, stdout, err = run(
        "tune", *group_job, "--calibrate", training_images, *ALPHAS, "0.9,0.95,0", "-o", out
    )
    assert code == 0, err
    result = json.loads(stdout)
    assert result["baseline_alpha"] == 1
    assert [p["alpha"] for p in result["curve"]] == [1, 0.95, 0.9, 0]
    assert result["model"]["patched"] == ["bn1", "bn2"]
    assert result["model"]["skipped"] == []
    assert result["recalibration"] is None
    calibration = result["calibration"]
    assert (calibration["data"]["n"], calibration["data"]["split"]) == (30, "train")
    assert (calibration["layers"], calibration["kinds"]) == (2, {"GroupNorm": 2})
    assert {"path": "moments.safetensors", "sha256": sha256(out / "moments.safetensors")} in result[
        "artifacts"
    ]
    assert set(load_file(out / "model.safetensors")) == set(grouped().state_dict())
    report = (out / "report.md").read_text()
    assert "moving averages of 2 GroupNorm measured on 30 examples" in report
    assert "transductive" not in report

    data = ["--data", group_job[group_job.index("--data") + 1], "--workers", 0, "--trust-code"]
    _, stdout, err = run("evaluate", out, *data, "--format", "json")
    assert json.loads(stdout)["metrics"] == pytest.approx(result["chosen"]["metrics"], abs=1e-6)
    # The folder keeps them: tuned again without --calibrate, or repeated from its run.toml with it.
    code, stdout, err = run("tune", out, *data, *ALPHAS, "0.9,0.95,0", "-o", tmp_path / "again")
    assert code == 0, err
    assert json.loads(stdout)["curve"] == result["curve"]
    code, stdout, err = run("tune", "--config", out / "run.toml", "-o", tmp_path / "c", "--format", "json")
    assert code == 0, err
    assert json.loads(stdout)["curve"] == result["curve"]
    assert (tmp_path / "c" / "moments.safetensors").read_bytes() == (out / "moments.safetensors").read_bytes()


def test_without_calibrate_the_hint_names_it(run: Run, group_job: list, tmp_path: Path) -> None:
    for extra in ([], ["--dry-run"]):
        code, _, err = run("tune", *group_job, "-o", tmp_path / "out", *extra)
        assert code == 4
        assert "--calibrate" in err
        assert len(err.splitlines()) == 1


def test_calibrated_and_kept(run: Run, group_job: list, training_images: Path, tmp_path: Path) -> None:
    args = ["--calibrate", training_images, "--calibrate-limit", 10, "--alphas", "0", "-o", tmp_path / "out"]
    code, stdout, err = run("tune", *group_job, *args)
    assert code == 0, err
    assert "Calibrated: moving averages of 2 GroupNorm measured on 10 examples" in stdout
    assert (tmp_path / "out" / "moments.safetensors").exists()
    assert "Keep α = 1 (plain GroupNorm)" in stdout
    code, stdout, _ = run("tune", *group_job, *args[:-1], tmp_path / "dry", "--dry-run", "--format", "json")
    plan = json.loads(stdout)
    assert plan["calibration"]["data"]["n"] == 10
    assert plan["model"]["patched"] == ["bn1", "bn2"]
    assert plan["alphas"] == [1, 0]


def test_both_kinds_of_layers_need_exclude(run: Run, image_folder: Path, tmp_path: Path) -> None:
    args = [MIXED, "--data", image_folder, *COMMON, *ALPHAS, "0.9", "-o", tmp_path / "out"]
    code, stdout, _ = run("tune", *args)
    assert code == 0
    assert json.loads(stdout)["model"]["skipped"][0]["kind"] == "InstanceNorm2d"
    args[-1] = tmp_path / "second"
    assert run("tune", *args, "--calibrate", image_folder)[0] == 4
    code, stdout, err = run("tune", *args, "--calibrate", image_folder, "--exclude", "bn1")
    assert code == 0, err
    result = json.loads(stdout)
    assert result["model"]["patched"] == ["bn2"]
    assert any("that the gain is then reported on" in warning for warning in result["warnings"])


# --- recalibrate -----------------------------------------------------------------------------


def test_recalibrate_tells_both_effects_apart(
    run: Run, job: list, training_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stored = json.loads(run("evaluate", *job, "--format", "json")[1])["metrics"]
    code, stdout, err = run(
        "tune", *job, "--recalibrate", training_images, "--batch-size", 7, *ALPHAS, "0.1", "-o", out
    )
    assert code == 0, err
    result = json.loads(stdout)
    found = result["recalibration"]
    assert (found["data"]["n"], found["data"]["split"], found["layers"]) == (30, "train", 2)
    assert (found["order"], found["augmentation"], found["unreached"]) == ("one-pass", "none", [])
    assert found["before"] == pytest.approx(stored, abs=1e-6)
    assert found["after"] == result["baseline"]
    gain = found["gain"]
    assert (gain["metric"], gain["examples"]) == ("loss", 48)
    assert gain["delta"] == pytest.approx(stored["loss"] - found["after"]["loss"], abs=1e-6)
    assert gain["ci"][0] <= gain["delta"] <= gain["ci"][1]
    assert result["calibration"] is None
    assert "relative to the recalibrated model" in (out / "report.md").read_text()

    stock = tiny()
    stock.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    torch.save(stock.state_dict(), tmp_path / "stock.pt")
    args = [TINY, "--checkpoint", tmp_path / "stock.pt", *job[3:], "--batch-size", 7, "--format", "json"]
    assert json.loads(run("evaluate", *args)[1])["metrics"] == found["after"]


def test_batches_of_one_pass_are_mixed(image_folder: Path) -> None:
    examples = open_data(image_folder)
    batches = Batches(examples, Preprocessing((3, 12, 12), crop_pct=1.0), 12, torch.device("cpu"))
    shuffled = list(mixed(batches, 0))
    assert all(len(set(batch.targets.tolist())) == 1 for batch in batches)  # as class folders come
    assert all(len(set(batch.targets.tolist())) > 1 for batch in shuffled)
    ids = torch.cat([batch.ids for batch in shuffled])
    assert sorted(ids.tolist()) == list(range(48))
    assert torch.cat([batch.targets for batch in shuffled]).tolist() == examples.targets[ids].tolist()
    inputs = torch.cat([batch.inputs for batch in batches])
    assert torch.equal(torch.cat([batch.inputs for batch in shuffled]), inputs[ids])


def test_layer_by_layer_with_augmentation_repeats(
    run: Run, job: list, training_images: Path, tmp_path: Path
) -> None:
    args = [
        "--recalibrate",
        training_images,
        "--recalibrate-order",
        "layer-by-layer",
        "--calibrate-limit",
        20,
    ]
    results = []
    for name, extra in {
        "plain": [],
        "crop": ["--recalibrate-augment", "auto"],
        "again": ["--recalibrate-augment", "cifar", "--batch-size", 3],
    }.items():
        code, stdout, err = run("tune", *job, *args, *extra, *ALPHAS, "0", "-o", tmp_path / name)
        assert code == 0, err
        results.append(json.loads(stdout)["recalibration"])
    assert [r["augmentation"] for r in results] == ["none", "cifar", "cifar"]
    assert all(r["order"] == "layer-by-layer" and r["data"]["n"] == 20 for r in results)
    plain, crop, again = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "crop", "again"))
    assert not torch.allclose(plain["bn2.running_var"], crop["bn2.running_var"], rtol=1e-3)
    for key in crop:  # augmentation is of the example, not of the batch
        torch.testing.assert_close(crop[key], again[key], rtol=1e-5, atol=1e-6)
    human = run("tune", *job, *args, "--alphas", "0", "-o", tmp_path / "human")[1]
    assert "Recalibrated: moving averages of 2 layers" in human


def test_recalibrate_is_the_remedy_for_impossible_averages(
    run: Run, job: list, tiny_checkpoint: Path, training_images: Path, tmp_path: Path
) -> None:
    state = torch.load(tiny_checkpoint)["state_dict"]
    state["module.bn1.running_var"][0] = -1.0
    torch.save(state, tmp_path / "broken.pt")
    args = [TINY, "--checkpoint", tmp_path / "broken.pt", *job[3:], *ALPHAS, "0"]
    assert run("tune", *args, "-o", tmp_path / "a")[0] == 6
    code, stdout, err = run("tune", *args, "--recalibrate", training_images, "-o", tmp_path / "b")
    assert code == 0, err
    found = json.loads(stdout)["recalibration"]
    assert found["before"] is None
    assert found["gain"] is None


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        (["--calibrate", "DATA"], 4, "keeps no moving averages"),
        (["--calibrate-limit", "5"], 2, "needs --calibrate"),
        (["--calibrate-split", "train"], 2, "needs --calibrate"),
        (["--recalibrate-order", "layer-by-layer"], 2, "needs --recalibrate"),
        (["--recalibrate-augment", "crop"], 2, "needs --recalibrate"),
        (["--recalibrate", "DATA", "--calibrate-limit", "0"], 2, "--calibrate-limit"),
        (["--recalibrate", "DATA", "--calibrate-split", "evening"], 2, "evening"),
        (["--recalibrate", "DATA", "--recalibrate-order", "sideways"], 2, "sideways"),
        (["--recalibrate", "no-such-folder"], 3, "no-such-folder"),
    ],
)
def test_bad_options_are_one_line_before_anything_runs(
    run: Run, job: list, training_images: Path, tmp_path: Path, extra: list, code: int, words: str
) -> None:
    extra = [training_images if e == "DATA" else e for e in extra]
    got, stdout, err = run("tune", *job, *extra, "-o", tmp_path / "out", "--dry-run")
    assert got == code, err
    assert stdout == ""
    assert words in err
    assert len([line for line in err.splitlines() if not line.startswith("warning")]) == 1


def test_recalibrate_without_batch_norms(
    run: Run, group_job: list, image_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run("tune", *group_job, "--recalibrate", image_folder, "-o", tmp_path / "out")
    assert code == 4
    assert "--calibrate" in err


def test_the_output_is_not_written_over_these_images(run: Run, job: list, tmp_path: Path) -> None:
    write_images(tmp_path / "out" / "train", per_class=2)
    (tmp_path / "out" / "alphatune.json").write_text("{}")
    args = ["--recalibrate", tmp_path / "out" / "train", "-o", tmp_path / "out", "--overwrite"]
    code, _, err = run("tune", *job, *args)
    assert code == 2
    assert "holds the input" in err


def test_several_processes_end_with_the_same_averages(
    run: Run, job: list, training_images: Path, tmp_path: Path
) -> None:
    args = [*job, "--recalibrate", training_images, "--batch-size", 4, *ALPHAS, "0.1"]
    code, stdout, err = run("tune", *args, "-o", tmp_path / "one")
    assert code == 0, err
    done, _ = run_distributed(
        2, ["tune", *args, "-o", tmp_path / "two"], environment={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    one, two = json.loads(stdout), json.loads(done.stdout)
    for part in ("data", "layers", "order"):
        assert one["recalibration"][part] == two["recalibration"][part]
    assert two["recalibration"]["after"] == pytest.approx(one["recalibration"]["after"], abs=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-6, atol=1e-7)


# --- inspect ---------------------------------------------------------------------------------


def test_inspect_says_which_averages_are_stale(
    run: Run, job: list, training_images: Path, tmp_path: Path
) -> None:
    data = ["--data", training_images / "train", *COMMON]
    code, stdout, err = run("inspect", TINY, *data, "--format", "json")
    assert code == 0, err
    document = json.loads(stdout)
    assert (document["data"]["n"], document["data"]["threshold"]) == (30, 0.1)
    assert any(row["stale"] for row in document["layers"])
    assert any("look stale" in warning for warning in document["warnings"])
    assert "stale" in run("inspect", TINY, *data)[1]
    assert "stale=" in run("inspect", TINY, *data, "--format", "quiet")[1]

    args = ["--recalibrate", training_images, "--recalibrate-order", "layer-by-layer", "--alphas", "0"]
    run("tune", *job, *args, "-o", tmp_path / "out")
    _, stdout, _ = run("inspect", tmp_path / "out", "--trust-code", *data, "--format", "json")
    document = json.loads(stdout)
    assert [row["stale"] for row in document["layers"]] == [False, False]
    assert max(row["distance"] for row in document["layers"]) < 1e-5
    assert not any("look stale" in warning for warning in document["warnings"])

    _, stdout, _ = run("inspect", TINY, "--input-size", 12, "--format", "json")
    document = json.loads(stdout)
    assert document["data"] is None
    assert [row["distance"] for row in document["layers"]] == [None, None]
    code, _, err = run("inspect", TINY, "--limit", 3)
    assert code == 2
    assert "--data" in err


def test_inspect_of_layers_that_could_be_calibrated(run: Run, image_folder: Path) -> None:
    code, stdout, err = run("inspect", GROUPED, "--data", image_folder, *COMMON, "--format", "json")
    assert code == 0, err
    document = json.loads(stdout)
    assert document["summary"] == {"calibratable": 2}
    assert all("`calibrate`" in row["reason"] for row in document["layers"])
    assert [row["stale"] for row in document["layers"]] == [None, None]
    assert "calibratable" in run("inspect", GROUPED, "--input-size", 12)[1]
