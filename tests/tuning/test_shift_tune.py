"""``tune --shift``: α, and what is free, over several conditions, through the command's real entry point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TESTS, TINY, Run, slow, write_images
from forks import run_captured, run_distributed

import alphatune
from alphatune.core.errors import ConfigurationError
from alphatune.statistics.conditions import conditions_of, images_of

SHIFTS = "contrast:5,gaussian-noise:5"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many"), per_class=40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Weights of tests/tiny.py that tell the classes apart, but not under a shift."""
    from PIL import Image
    from tiny import tiny

    torch.manual_seed(1)
    files = sorted(images.rglob("*.png"))
    labels = torch.tensor([sorted({f.parent.name for f in files}).index(f.parent.name) for f in files])
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files]) / 255
    model = tiny().train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model((pixels - 0.5) / 0.5), labels).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "trained.pth"
    torch.save(model.eval().state_dict(), path)
    return path


@pytest.fixture
def command(images: Path, trained: Path, tmp_path: Path) -> list[str]:
    return [
        "tune", TINY, "--checkpoint", str(trained), "--data", str(images), "--input-size", "12", "--crop-pct", "1",
        "--mean", "0.5", "--std", "0.5", "--metric", "loss", "--format", "json", "--thumbnails", "1",
        "--output", str(tmp_path / "tuned"), "--workers", "0",
    ]  # fmt: skip


def tuned(run: Run, *argv: object) -> dict[str, Any]:
    code, out, err = run(*argv)
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def test_each_condition_is_what_evaluating_the_tuned_folder_gives(
    run: Run, command: list[str], images: Path, tmp_path: Path
) -> None:
    document = tuned(run, *command, "--shift", SHIFTS, "--guard", "none", "--alphas", "0,0.1,0.3")
    shift = document["shift"]
    names = [each["name"] for each in shift["conditions"]]
    assert names == ["clean", "contrast", "gaussian-noise"]
    for key in ("top1", "loss"):
        values = [each["chosen"][key] for each in shift["conditions"]]
        assert document["chosen"]["metrics"][key] == pytest.approx(np.mean(values), abs=1e-6)
        values = [each["baseline"][key] for each in shift["conditions"]]
        assert document["baseline"][key] == pytest.approx(np.mean(values), abs=1e-6)
    folder = tmp_path / "tuned"
    again = ["evaluate", folder, "--data", images, "--shift", SHIFTS, "--trust-code", "--format", "json"]
    evaluated = tuned(run, *again)
    for before, after in zip(shift["conditions"], evaluated["conditions"], strict=True):
        assert after["metrics"]["loss"] == pytest.approx(before["chosen"]["loss"], abs=1e-5)
        assert after["metrics"]["top1"] == before["chosen"]["top1"]
    stored = np.load(folder / "scores.npz")
    assert sorted(set(conditions_of(stored["ids"]))) == [1, 2, 3]
    repairs = document["repairs"]
    assert {"plain", "temperature", "averages", "affine"} <= {each["name"] for each in repairs["tried"]}
    assert repairs["chosen"] in {each["name"] for each in repairs["tried"]}
    assert document["decision"]["reason"] == repairs["reason"]


def test_what_is_deployed_is_in_the_written_weights(run: Run, command: list[str], tmp_path: Path) -> None:
    """Whichever repair it is: the folder, read back, has the deployed metrics (the test above), and γ and β if tuned."""
    from safetensors.torch import load_file
    from tiny import tiny

    document = tuned(run, *command, "--shift", SHIFTS, "--guard", "none", "--alphas", "0,0.1")
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    before = torch.load(command[3], weights_only=True)
    norms = [n for n, m in tiny().named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    moved = {
        key
        for norm in norms
        for key in ("weight", "bias", "running_mean", "running_var")
        if not torch.equal(weights[f"{norm}.{key}"], before[f"{norm}.{key}"])
    }
    expected: dict[str, set[str]] = {
        "affine": {"weight", "bias"},
        "averages": {"running_mean", "running_var"},
    }
    assert moved == expected.get(document["repairs"]["chosen"], set())
    untouched = set(before) - {f"{norm}.{key}" for norm in norms for key in moved}
    assert all(torch.equal(weights[key], before[key]) for key in untouched)


def test_alpha_is_deployed_where_it_is_asked_for(run: Run, command: list[str]) -> None:
    document = tuned(
        run, *command, "--shift", SHIFTS, "--guard", "none", "--alphas", "0,0.1,0.3", "--choose", "alpha"
    )
    assert document["repairs"]["chosen"] not in ("averages", "affine")


def test_shifts_that_were_left_out_are_tested_on_images_that_were_too(run: Run, command: list[str]) -> None:
    document = tuned(run, *command, "--shift", SHIFTS, "--guard", "none", "--alphas", "0,0.1,0.3")
    assert document["repairs"]["chosen"] != "plain"  # or there is nothing to test
    shift = document["shift"]
    assert [each["condition"] for each in shift["unseen"]] == ["contrast", "gaussian-noise"]
    assert all(each["gain"]["examples"] == 80 for each in shift["unseen"])  # half of 160 images
    deltas = [each["gain"]["delta"] for each in shift["unseen"]]
    assert shift["unseen_mean"]["delta"] == pytest.approx(np.mean(deltas), abs=1e-9)


def test_a_guard_that_nothing_keeps_leaves_the_network_alone(run: Run, command: list[str]) -> None:
    document = tuned(
        run, *command, "--shift", SHIFTS, "--guard", "clean:loss=0", "--alphas", "0,0.5,1", "--rivals", "none"
    )
    assert document["chosen"]["alpha"] == 0
    assert document["shift"]["guards"][0] == {
        "condition": "clean", "metric": "loss", "margin": 0.0, "cost": 0.0, "bound": 0.0, "passed": True,
        "reason": document["shift"]["guards"][0]["reason"],
    }  # fmt: skip


def test_data_of_ones_own(run: Run, command: list[str], images: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "night", per_class=9)
    place = command.index("--data")
    named = [*command[:place], *command[place + 2 :], "--data", f"clean={images}", "--data", f"night={other}"]
    document = tuned(run, *named, "--alphas", "0,0.1", "--rivals", "none", "--objective", "worst")
    clean, night = document["shift"]["conditions"]
    assert (clean["name"], clean["baseline"]["n"], night["name"], night["baseline"]["n"]) == (
        "clean",
        160,
        "night",
        36,
    )
    assert not night["made"]
    assert document["baseline"]["loss"] == pytest.approx(
        (clean["baseline"]["loss"] + night["baseline"]["loss"]) / 2
    )
    assert document["shift"]["worst"][0] == max(clean["baseline"]["loss"], night["baseline"]["loss"])
    again = tuned(
        run,
        "tune",
        "--config",
        tmp_path / "tuned" / "run.toml",
        "--output",
        tmp_path / "b",
        "--format",
        "json",
    )
    assert again["curve"] == document["curve"]


def test_the_cache_knows_the_shifts_and_their_seed(
    run: Run, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHATUNE_CACHE", str(tmp_path / "cache"))
    argv = [*command, "--shift", SHIFTS, "--alphas", "0,0.1", "--rivals", "none"]
    first = tuned(run, *argv)
    second = tuned(run, *argv, "--overwrite")
    assert second["cache"] is not None
    assert first["shift"] == second["shift"]
    other = tuned(run, *argv, "--overwrite", "--seed", "1")
    assert other["cache"] is None
    noise = [each["shift"]["conditions"][2]["baseline"]["loss"] for each in (first, other)]
    assert noise[0] != noise[1]  # the noise is another


def test_few_labels(run: Run, command: list[str]) -> None:
    document = tuned(
        run,
        *command,
        "--shift",
        SHIFTS,
        "--guard",
        "none",
        "--alphas",
        "0,0.1",
        "--label-counts",
        "20,60,1000",
    )
    curve = document["label_curve"]
    assert {row["images"] for row in curve["rows"]} == {20, 60}  # half of 160 images do not have 1000
    assert {"plain", "averages", "affine", "global", "global and affine"} == {
        row["repair"] for row in curve["rows"]
    }
    for row in curve["rows"]:
        if row["repair"] == "plain":
            assert row["clean"]["ci"] == row["seen"]["ci"] == [0.0, 0.0]
        assert row["unseen"] is not None
    assert curve["tested_on"] == 80


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--objective", "worst"], "more than one condition"),
        (["--guard", "clean:top1"], "more than one condition"),
        (["--shift", SHIFTS, "--metric", "ece"], "cannot be averaged"),
        (["--shift", SHIFTS, "--guard", "noise:top1"], "names no condition"),
        (["--shift", "contrats"], "contrast"),
        (["--shift", SHIFTS, "--label-counts", "ten"], "whole numbers"),
        (["--shift", SHIFTS, "--score", "x.py:f"], "shift"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(
    run: Run, command: list[str], argv: list[str], message: str
) -> None:
    code, _, err = run(*command, *argv)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def conditions_in_python(images: Path, trained: Path) -> tuple[torch.nn.Module, Any]:
    """The trained network, and its images under their conditions."""
    from tiny import tiny

    from alphatune.data.conditions import make_conditions
    from alphatune.data.loading import Batches
    from alphatune.data.preprocessing import Preprocessing
    from alphatune.data.shifts import parse_shifts
    from alphatune.data.splits import open_data

    model = tiny().eval()
    model.load_state_dict(torch.load(trained, weights_only=True))
    preprocessing = Preprocessing((3, 12, 12), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
    clean = Batches(open_data(str(images)), preprocessing, 32, torch.device("cpu"))
    return model, make_conditions(clean, parse_shifts(SHIFTS))


def test_what_is_known_is_not_measured_again(images: Path, trained: Path) -> None:
    from alphatune.core.distributed import World
    from alphatune.core.progress import Meter
    from alphatune.evaluation.predictor import Predictor
    from alphatune.norms.patching import patched
    from alphatune.tuning.candidate import Candidate, exact_scores
    from alphatune.tuning.ordering import halves_of
    from alphatune.tuning.passes import Passes
    from alphatune.tuning.unseen import unseen_gains

    model, data = conditions_in_python(images, trained)
    everything, halves = np.arange(len(data)), halves_of(data.targets, data.ids, 0)
    chosen = Candidate(0.1)
    with patched(model):
        passes = Passes(Predictor(model), data, 0.0, World(), Meter())
        plain, known = (exact_scores(passes, everything, each) for each in (Candidate(0.0), chosen))
        measured = unseen_gains(passes, halves, plain, lambda *_: chosen, "loss", seed=0)
        done = passes.meter.done
        again = unseen_gains(
            passes, halves, plain, lambda *_: chosen, "loss", known=[(chosen, known)], seed=0
        )
        assert passes.meter.done == done
    assert [each.condition for each in again.each] == [*data.names[1:]]
    for each, other in zip(again.each, measured.each, strict=True):
        assert each.gain.delta == pytest.approx(other.gain.delta, abs=1e-6)  # batches of other sizes


def test_in_python(images: Path, trained: Path) -> None:
    model, data = conditions_in_python(images, trained)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = alphatune.tune(model, data, alphas="0,0.1,0.3", metric="loss", guard=["none"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    loss = result.chosen.loss
    result.apply_(model)
    with torch.no_grad():
        parts = [
            (torch.nn.functional.cross_entropy(model(b.inputs), b.targets, reduction="none"), b) for b in data
        ]
    losses, number = (
        torch.cat([part for part, _ in parts]),
        conditions_of(torch.cat([b.ids for _, b in parts]).numpy()),
    )
    assert loss == pytest.approx(np.mean([losses[number == k].mean() for k in (1, 2, 3)]), abs=1e-5)
    with pytest.raises(ConfigurationError, match="cannot be averaged"):
        alphatune.tune(model, data, metric="ece")


@pytest.mark.parametrize("name", ["averages", "affine", slow("global_and_affine"), slow("channel")])
def test_every_fit_goes_back_until_the_guards_are_kept(images: Path, trained: Path, name: str) -> None:
    """A guard that nothing keeps: what comes back is the plain network, whatever is fitted."""
    from tiny import tiny

    from alphatune.core.distributed import World
    from alphatune.core.progress import Meter
    from alphatune.data.conditions import make_conditions
    from alphatune.data.loading import Batches
    from alphatune.data.preprocessing import Preprocessing
    from alphatune.data.shifts import parse_shifts
    from alphatune.data.splits import open_data
    from alphatune.evaluation.predictor import Predictor
    from alphatune.norms.patching import patched
    from alphatune.tuning.fits import Fits
    from alphatune.tuning.granularity import GRANULARITIES, units_of
    from alphatune.tuning.objective import Guard, Judged, Objective, Purpose
    from alphatune.tuning.passes import Passes

    class Never(Guard):
        def judge(self, worse: np.ndarray, purpose: Purpose) -> Judged:
            return super().judge(worse, purpose)._replace(passed=False)

    model = tiny().eval()
    model.load_state_dict(torch.load(trained, weights_only=True))
    clean = Batches(
        open_data(str(images)),
        Preprocessing((3, 12, 12), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0),
        32,
        torch.device("cpu"),
    )
    data = make_conditions(clean, parse_shifts("gaussian-noise:5"))
    with patched(model):
        passes = Passes(Predictor(model), data, 0.0, World(), Meter())
        units = {each: units_of(model, each, next(iter(data)).inputs) for each in GRANULARITIES}
        for guards, changed in (((), True), ((Never(1, "loss"),), False)):
            fits = Fits(passes, Objective("loss", "mean", guards), False, 0, None, lambda _: 0.3, units)
            fit = getattr(fits, name, None) or fits.level(name)  # type: ignore[arg-type]
            candidate = fits.guarded(fit)(np.arange(len(data)), "test")
            assert candidate.is_same_number(type(candidate)(0.0)) != changed


def test_what_is_fitted_on_one_half_is_judged_by_the_other(
    images: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many numbers fit the very images that they were tuned on, and a guard judged by these says nothing."""
    from alphatune.core.distributed import World
    from alphatune.core.progress import Meter
    from alphatune.evaluation.predictor import Predictor
    from alphatune.norms.patching import patched
    from alphatune.tuning import step_back
    from alphatune.tuning.candidate import Candidate
    from alphatune.tuning.fits import Fits
    from alphatune.tuning.objective import Guard, Objective
    from alphatune.tuning.passes import Passes

    model, data = conditions_in_python(images, trained)
    fitted_on: dict[float, np.ndarray] = {}
    judged: list[float] = []

    def fit(positions: np.ndarray, _: str) -> Candidate:
        alpha = 0.1 * (1 + len(fitted_on))
        fitted_on[alpha] = positions
        return Candidate(alpha)

    measure = step_back.exact_scores

    def exact_scores(passes: Passes, rows: np.ndarray, candidate: Candidate) -> Any:
        if candidate.alpha in list(fitted_on)[1:]:
            own = images_of(data.ids[fitted_on[candidate.alpha]])
            assert not np.isin(images_of(data.ids[rows]), own).any()
            assert (conditions_of(data.ids[rows]) == 1).all()
            judged.append(candidate.alpha)
        return measure(passes, rows, candidate)

    monkeypatch.setattr(step_back, "exact_scores", exact_scores)
    with patched(model):
        passes = Passes(Predictor(model), data, 0.0, World(), Meter())
        fits = Fits(passes, Objective("loss", guards=(Guard(1, "top1"),)), False, 0, None, lambda _: 0.3, {})
        fits.guarded(fit)(np.arange(len(data)), "test")
    assert [len(positions) for positions in fitted_on.values()] == [480, 240, 240]
    assert judged == [0.2, pytest.approx(0.3)]


@pytest.mark.parametrize("deployed", [False, True])
def test_a_fit_on_all_images_that_goes_farther_than_the_halves_is_judged_too(
    images: Path, trained: Path, deployed: bool
) -> None:
    from alphatune.core.distributed import World
    from alphatune.core.progress import Meter
    from alphatune.evaluation.predictor import Predictor
    from alphatune.norms.patching import patched
    from alphatune.tuning.candidate import Candidate
    from alphatune.tuning.fits import Fits
    from alphatune.tuning.objective import Guard, Objective
    from alphatune.tuning.out_of_fold import OutOfFold
    from alphatune.tuning.passes import Passes
    from alphatune.tuning.refinement import _fit_all

    model, data = conditions_in_python(images, trained)
    everything = np.arange(len(data))

    def fit(positions: np.ndarray, _: str) -> Candidate:
        return Candidate(1.0 if len(positions) == len(data) else 0.0)

    class Far(Fits):
        def named(self, name: str) -> Any:
            return fit

    with patched(model):
        passes = Passes(Predictor(model), data, 0.0, World(), Meter())
        found = {}
        for guards in ((), (Guard(1, "top1"),)):
            fits = Far(passes, Objective("loss", guards=guards), False, 0, None, lambda _: 0.3, {})
            if deployed:
                plain = OutOfFold.of(passes, [everything[::2], everything[1::2]], [Candidate(0.0)] * 2)
                candidate = _fit_all(fits, "affine", {}, 0.0, 1.0, plain)
            else:
                candidate = fits.guarded(fit)(everything, "test")
            found[bool(guards)] = candidate.single_alpha
    assert found[False] == 1.0
    assert found[True] < 1.0


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    for each in (*document["repairs"]["tried"], *document["refinement"]["levels"]):
        del each["seconds"]
    passing = ("command_line", "env", "seconds", "artifacts", "deployment", "passes")
    return {key: value for key, value in document.items() if key not in passing}


@pytest.mark.slow
def test_several_processes_and_a_run_that_was_interrupted_find_the_same(
    command: list[str], trained: Path, tmp_path: Path
) -> None:
    """A device fails in both processes somewhere in the comparison with what is free."""
    faulty = f"{TESTS / 'faulty.py'}:faulty"
    words = ["tune", faulty, *command[2:-4], "--shift", SHIFTS, "--guard", "none", "--alphas", "0,0.1,0.3"]
    words += ["--granularity", "layer", "--checkpoint-minutes", "0", "--workers", "0", "--output"]

    def run_in(processes: int, output: str, *more: str, **environment: str) -> list[Any]:
        argv = [*words, str(tmp_path / output), *more]
        env = {"ALPHATUNE_CACHE": "off", **environment}
        return run_distributed(processes, argv, environment=env) if processes > 1 else [run_captured(argv)]

    def document_of(done: list[Any]) -> dict[str, Any]:
        assert done[0].returncode == 0, done[0].stderr
        return without_times(json.loads(done[0].stdout))

    alone = document_of(run_in(1, "alone"))
    assert document_of(run_in(2, "both")) == alone
    failed = run_in(2, "out", FAULT="gpu 60")
    assert 0 not in [each.returncode for each in failed]
    assert document_of(run_in(2, "out", "--resume")) == alone
