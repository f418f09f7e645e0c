"""Gates: what they hold against what, what they say, and the exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace as replace_settings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Run, needs_torch
from made_up_results import typed, written
from msgspec.structs import replace

from alphatune.core.errors import ConfigurationError
from alphatune.core.versions import ONNX
from alphatune.jobs.gates import failures, judge, open_gates
from alphatune.reports.scores import ORIGINAL, StoredScores, read_scores, write_scores
from alphatune.results.tune import Gate
from alphatune.settings import TuneSettings
from alphatune.statistics.scores import Scores, summarise

TUNE = written("tune")


def document(**changes: Any) -> dict[str, Any]:
    metrics = {"n": 100, "top1": 0.8, "top5": 0.9, "loss": 0.7, "ece": 0.1}
    values: dict[str, Any] = {
        "metric": "loss",
        "baseline": metrics,
        "chosen": {
            "alpha": 0.1,
            "temperature": 1.0,
            "metrics": metrics | {"top1": 0.79, "loss": 0.5, "ece": 0.12},
        },
        "gain": TUNE["gain"] | {"metric": "loss", "scheme": "cross-fitted", "delta": 0.15},
        "decision": {"keep_baseline": False, "significant": True, "reason": "because"},
        "deployment": TUNE["deployment"] | {"ratio_to_plain": 1.3},
    }
    return TUNE | values | changes


def kept(temperature: float = 1.0) -> dict[str, Any]:
    found = document()
    return found | {
        "chosen": {"alpha": 0.0, "temperature": temperature, "metrics": found["baseline"]},
        "decision": {"keep_baseline": True, "significant": False, "reason": "no gain"},
        "deployment": None,
    }


def passes(found: dict[str, Any], **settings: Any) -> bool:
    document = typed(found)
    judged = judge(open_gates(TuneSettings(model="m", data="d", **settings)), document)
    assert judged[0].passed == (failures(replace(document, gates=judged)) == [])
    return judged[0].passed


@pytest.mark.parametrize(
    ("settings", "passed"),
    [
        ({"min_gain": 0.15}, True),  # the limit itself passes
        ({"min_gain": 0.1501}, False),  # 0.2 on all examples would do, and does not count
        ({"max_regression": ("top1=0.01",)}, True),  # 0.8 − 0.79 is 0.010000000000000009
        ({"max_regression": ("top1=0.009",)}, False),
        ({"max_regression": ("loss=0",)}, True),  # it fell
        ({"max_regression": ("loss=-0.3",)}, False),  # and was to fall by more
        ({"max_regression": ("ece=0.01",)}, False),  # lower is better
        ({"max_regression": ("ece=0.02",)}, True),
        ({"max_regression": ("top5=0",)}, True),
        ({"require_significant": True}, True),
        ({"max_latency_ratio": 1.3}, True),
        ({"max_latency_ratio": 1.29}, False),
    ],
)
def test_limits(settings: dict[str, Any], passed: bool) -> None:
    assert passes(document(), **settings) == passed


def test_the_plain_model() -> None:
    assert not passes(kept(), min_gain=0.01)
    assert passes(kept(), min_gain=0.0)
    assert not passes(kept(), require_significant=True)
    assert passes(kept(), max_regression=("top1=0",))
    assert passes(kept(), max_latency_ratio=1.0)


def with_temperature(metric: str, significant: bool = True) -> dict[str, Any]:
    """A tune that took a temperature and no α: ``gain`` is that of the best α beyond a temperature."""
    finer = written("tune-finer")["refinement"]
    level = finer["levels"][0] | {
        "level": "plain",
        "metrics": {"n": 100, "top1": 0.8, "top5": 0.9, "loss": 0.7, "ece": 0.1},
        "calibrated": {"n": 100, "top1": 0.8, "top5": 0.9, "loss": 0.55, "ece": 0.04},
    }
    refinement = finer | {
        "chosen": "plain",
        "levels": [level, level | {"level": "global"}],
        "temperature_gain": TUNE["gain"] | {"metric": "loss", "delta": 0.15, "significant": significant},
    }
    beyond = TUNE["gain"] | {"metric": metric, "scheme": "cross-fitted", "delta": -0.01}
    return kept(temperature=1.4) | {"metric": metric, "refinement": refinement, "gain": beyond}


def test_a_temperature_alone_is_a_gain() -> None:
    found = with_temperature("loss")
    assert passes(found, min_gain=0.15)
    assert not passes(found, min_gain=0.16)
    assert passes(found, require_significant=True)
    assert passes(found, max_latency_ratio=1.0)
    assert not passes(with_temperature("loss", significant=False), require_significant=True)


def test_what_a_temperature_is_worth_in_other_metrics() -> None:
    assert passes(with_temperature("ece"), min_gain=0.06)
    assert not passes(with_temperature("ece"), min_gain=0.07)
    assert not passes(with_temperature("top1"), min_gain=0.01)
    assert passes(with_temperature("top1"), min_gain=0.0)
    for metric in ("ece", "top1"):  # what was tested is the loss
        assert not passes(with_temperature(metric), require_significant=True)


def recalibrated(delta: float | None, significant: bool = False, **changes: Any) -> dict[str, Any]:
    """A tune that kept α = 0, by averages measured anew: ``baseline`` is the model that has them."""
    found = kept()
    before = found["baseline"] | {"top1": 0.8 - (delta or 0.0), "loss": 0.7 + (delta or 0.0)}
    usual = written("tune-searched-recalibrated")["recalibration"]
    gain = None if delta is None else TUNE["gain"] | {"delta": delta, "significant": significant}
    measured = usual | {"before": before, "after": found["baseline"], "gain": gain}
    return found | {"recalibration": measured} | changes


def test_averages_measured_anew_may_be_worse() -> None:
    """The plain model is the one that was given, not the one that tuning began with."""
    worse, better = recalibrated(-0.04, significant=True), recalibrated(0.04, significant=True)
    assert not passes(worse, max_regression=("top1=0.03",))
    assert passes(worse, max_regression=("top1=0.04",))
    assert not passes(worse, max_regression=("loss=0",))
    assert passes(better, max_regression=("loss=-0.04",))
    assert not passes(worse, min_gain=0.0)
    assert passes(better, min_gain=0.04)
    assert not passes(worse, require_significant=True)
    assert passes(better, require_significant=True)
    assert not passes(recalibrated(0.04), require_significant=True)
    assert not passes(recalibrated(None), min_gain=0.0)
    assert passes(better, max_latency_ratio=1.0)


def test_averages_that_could_not_be_evaluated() -> None:
    found = recalibrated(None)
    found["recalibration"]["before"] = None
    assert passes(found, max_regression=("top1=0",))  # whatever there is, is not worse than nothing


def test_better_is_not_called_worse() -> None:
    gates = open_gates(TuneSettings(model="m", data="d", max_regression=("top1=0.01", "loss=0", "top5=0")))
    assert [g.reason for g in judge(gates, typed(document()))] == [
        "top-1 may get worse by at most 0.01; it went from 0.8 to 0.79, 0.01 worse",
        "loss may get worse by at most 0; it went from 0.7 to 0.5, 0.2 better",
        "top-5 may get worse by at most 0; it stays 0.9",
    ]


def interval_of(low: float, high: float, delta: float) -> dict[str, Any]:
    return document(gain=TUNE["gain"] | {"metric": "loss", "ci": [low, high], "delta": delta})


def judged_on_interval(found: dict[str, Any], stored: StoredScores | None = None, **settings: Any) -> Gate:
    gates = open_gates(TuneSettings(model="m", data="d", gate_on="interval", **settings))
    return judge(gates, typed(found), stored)[0]


@pytest.mark.parametrize(
    ("low", "high", "passed", "undecided"),
    [(0.12, 0.2, True, False), (0.1, 0.2, True, False), (0.09, 0.2, False, True), (0.02, 0.08, False, False)],
)
def test_the_whole_interval_of_the_gain(low: float, high: float, passed: bool, undecided: bool) -> None:
    gate = judged_on_interval(interval_of(low, high, (low + high) / 2), min_gain=0.1)
    assert (gate.passed, gate.undecided, gate.interval) == (passed, undecided, (low, high))
    assert ("would decide it" in gate.reason) == undecided
    # A loss that may fall by at most a negative amount has to fall by as much: the same question.
    other = judged_on_interval(interval_of(low, high, (low + high) / 2), max_regression=("loss=-0.1",))
    assert (other.passed, other.undecided) == (passed, undecided)


def test_how_many_images_would_tell() -> None:
    """The interval shrinks with the root of the examples; 80 % of runs ask for 2.8 standard errors, not 1.96."""
    n = TUNE["data"]["n"]
    found = judged_on_interval(interval_of(0.0, 0.2, 0.1), min_gain=0.05)
    needed = n * (2.8016 / 1.96 * 0.1 / 0.05) ** 2
    digits = 10 ** (len(str(round(needed))) - 2)
    assert f"about {round(needed / digits) * digits:,} images would".replace(",", " ") in found.reason


def two_runs(
    counts: dict[str, tuple[int, int, int]], original: bool = False
) -> tuple[StoredScores, dict[str, Any]]:
    """Scores by class: examples, how many became wrong, how many became right; and the document of them."""
    targets, before, after = [], [], []
    for label, (n, lost, won) in enumerate(counts.values()):
        targets += [label] * n
        before += [True] * (n - won) + [False] * won
        after += [False] * lost + [True] * (n - lost)
    runs = {}
    for name, right in (("baseline", before), ("chosen", after)):
        correct = np.array(right)
        label = np.array(targets, dtype=np.int32)
        loss = np.where(correct, 0.1, 2.0).astype(np.float32) + np.float32(0.01 * (name == "chosen"))
        runs[name] = Scores(
            np.arange(len(label)), label, label, loss, correct, correct, np.exp(-loss).astype(np.float32)
        )
    metrics = {name: dict(summarise(scores).items()) for name, scores in runs.items()}
    chosen = {"alpha": 0.1, "temperature": 1.0, "metrics": metrics["chosen"]}
    return StoredScores(runs, tuple(counts)), document(baseline=metrics["baseline"], chosen=chosen)


def test_a_regression_by_its_interval() -> None:
    """Non-inferiority: no worse by more than V, surely, on the same examples."""
    stored, found = two_runs({"cat": (1000, 10, 10), "dog": (1000, 12, 12)})
    sure = judged_on_interval(found, stored, max_regression=("top1=0.01",))
    assert sure.passed
    assert sure.interval is not None
    assert sure.interval[1] == pytest.approx(1.96 * (44 / 2000**2) ** 0.5, rel=0.05)
    unsure = judged_on_interval(found, stored, max_regression=("top1=0.002",))
    assert (unsure.passed, unsure.undecided) == (False, True)
    worse, changed = two_runs({"cat": (1000, 100, 10), "dog": (1000, 120, 12)})
    failed = judged_on_interval(changed, worse, max_regression=("top1=0.002",))
    assert (failed.passed, failed.undecided) == (False, False)
    unknown = judged_on_interval(found, None, max_regression=("top1=0.5",))
    assert not unknown.passed
    assert "interval is not known" in unknown.reason
    assert judged_on_interval(kept(), None, max_regression=("top1=0",)).passed  # nothing changed


def test_averages_measured_anew_count_in_intervals_and_classes(tmp_path: Path) -> None:
    """The model that was given is the one with the averages that were stored, in scores.npz as well."""
    stored, found = two_runs({"cat": (400, 0, 0), "dog": (400, 0, 0)})
    worse, _ = two_runs({"cat": (400, 80, 0), "dog": (400, 0, 0)})
    runs = {"baseline": worse.chosen, "chosen": worse.chosen, ORIGINAL: stored.baseline}
    write_scores(StoredScores(runs, ("cat", "dog")), tmp_path)
    read = read_scores(tmp_path)
    assert read is not None
    assert read.original.top1.all()
    before, after = found["baseline"], dict(summarise(worse.chosen).items())
    usual = written("tune-searched-recalibrated")["recalibration"]
    gain = TUNE["gain"] | {"metric": "top1", "delta": -0.1, "ci": [-0.12, -0.08], "significant": False}
    document = kept() | {"metric": "top1", "baseline": after, "gain": gain,
                         "chosen": {"alpha": 0.0, "temperature": 1.0, "metrics": after},
                         "recalibration": usual | {"before": before, "after": after, "gain": gain}}  # fmt: skip
    lost = judged_on_interval(document, read, max_regression=("top1=0.05",))
    assert (lost.passed, lost.undecided) == (False, False)
    assert "cat 0.2 worse" in judged_on_interval(document, read, max_class_regression=("0.1",)).reason
    assert not judged_on_interval(document, read, min_gain=0.0).undecided


def test_classes() -> None:
    stored, found = two_runs({"cat": (200, 30, 10), "dog": (200, 2, 20), "eel": (5, 4, 0)})

    def gate(text: str, on: str = "estimate") -> Gate:
        gates = open_gates(TuneSettings(model="m", data="d", max_class_regression=(text,), gate_on=on))  # type: ignore[arg-type]
        return judge(gates, typed(found), stored)[0]

    failed = gate("0.05")
    assert failed.name == "max-class-regression top1"
    assert not failed.passed
    assert "cat 0.1 worse (200 images)" in failed.reason
    assert "dog" not in failed.reason
    assert (
        "1 class of fewer than 10 images not judged" in failed.reason
    )  # and eels are not passed over in silence
    assert gate("top1=0.1").passed
    assert "worst: cat" in gate("0.1").reason
    surely = gate("0.001", "interval")
    assert not surely.passed
    assert not surely.undecided
    assert "cat" in surely.reason
    few = gate("0.2", "interval")  # cats and dogs surely keep to it; five eels say nothing
    assert (few.passed, few.undecided) == (False, True)
    assert "eel" in few.reason
    assert "a class would" in few.reason
    assert gate("loss=1.0", "interval").undecided
    assert gate("loss=5.0").passed
    without = judge(
        open_gates(TuneSettings(model="m", data="d", max_class_regression=("0.5",))), typed(found), None
    )
    assert not without[0].passed


def test_many_classes_do_not_fail_by_luck_nor_pass_by_it() -> None:
    """No class has changed its worth. At least one of 50 lies beyond its own interval nearly always, and is not named;
    and one that is truly worse by the limit passes in at most 2.5 %."""
    rng = np.random.default_rng(0)
    failed = passed = 0
    runs = 100
    for _ in range(runs):
        same = {f"{i}": (100, *rng.multinomial(100, [0.1, 0.1, 0.8])[:2].tolist()) for i in range(50)}
        stored, found = two_runs(same)
        gate = judged_on_interval(found, stored, max_class_regression=("0",))
        failed += not gate.passed and not gate.undecided
        worse = {
            f"{i}": (400, *rng.multinomial(400, [0.1 * (i == 0), 0.0, 0.9])[:2].tolist()) for i in range(3)
        }
        stored, found = two_runs(worse)
        passed += judged_on_interval(found, stored, max_class_regression=("0.1",)).passed
    assert failed <= 11  # 5 of 100, by more with a chance of 1 in 200
    assert passed <= 8


@pytest.mark.parametrize("text", ["", "a", "ece=0.1", "top1=nan", "top1="])
def test_a_class_regression_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigurationError, match="max_class_regression"):
        open_gates(TuneSettings(model="m", data="d", max_class_regression=(text,)))


def test_what_was_fitted_is_judged_out_of_fold() -> None:
    """Finer α flatter themselves on the images that they were fitted to: the interval lies around what others saw."""
    stored, found = two_runs({"cat": (1000, 10, 30)})
    finer = written("tune-finer")["refinement"]
    outside = found["baseline"] | {"top1": found["baseline"]["top1"] - 0.05}
    level = finer["levels"][-1] | {"level": "layer", "metrics": outside, "calibrated": outside}
    found["refinement"] = finer | {"chosen": "layer", "levels": [level]}
    gate = judged_on_interval(found, stored, max_regression=("top1=0",))
    assert gate.value == pytest.approx(0.05)
    assert not gate.passed
    assert gate.interval is not None
    assert sum(gate.interval) / 2 == pytest.approx(0.05, abs=1e-3)


def test_every_reason_says_what_was_asked_measured_and_why() -> None:
    settings = TuneSettings(
        model="m", data="d", min_gain=0.1, max_regression=("top1=0.005", "ece=0.1"), require_significant=True,
        max_latency_ratio=1.2, max_class_regression=("loss=0.1",),
    )  # fmt: skip
    stored, _ = two_runs({"cat": (100, 1, 2), "dog": (100, 0, 0)})
    for on in ("estimate", "interval"):
        gates = open_gates(replace_settings(settings, gate_on=on))
        for gate in judge(gates, typed(document()), stored):
            asked, measured = gate.reason.split("; ", 1)
            assert asked
            assert measured
            assert ("would decide it" in measured) == gate.undecided
            assert not re.search("passed|failed", gate.reason)  # which stands before it
            assert gate.reason.count(": ") <= 1


def test_what_is_not_known_does_not_pass() -> None:
    assert not passes(document(gain=None), min_gain=-1.0)
    assert not passes(document(deployment=None), max_latency_ratio=100.0)


def test_all_of_them_in_order() -> None:
    gates = open_gates(
        TuneSettings(model="m", data="d", min_gain=0.2, max_regression=("top1=0.02", "ece=0.001"))
    )
    judged = judge(gates, typed(document()))
    assert [(g.name, g.passed) for g in judged] == [
        ("min-gain", False), ("max-regression top1", True), ("max-regression ece", False),
    ]  # fmt: skip
    assert len(failures(replace(typed(document()), gates=judged))) == 2
    assert "0.15" in judged[0].reason
    assert "at least 0.2" in judged[0].reason


@pytest.mark.parametrize("text", ["top1", "top1=", "top1=a", "top1=nan", "recall=0.1", "=1", "top1=inf"])
def test_a_regression_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigurationError, match="max_regression"):
        open_gates(TuneSettings(model="m", data="d", max_regression=(text,)))


def test_a_gate_does_not_wait_for_the_model(run: Run, image_folder: Path, tmp_path: Path) -> None:
    code, _, err = run("tune", "no-such-model", "--data", image_folder, "--max-regression", "speed=1",
                       "-o", tmp_path / "out")  # fmt: skip
    assert code == 2
    assert "max-regression" in err


def tune(tiny_checkpoint: Path, images: Path) -> list[object]:
    return ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", images, "--input-size", 12, "--crop-pct", 1,
            "--mean", "0.5", "--std", "0.25", "--workers", 0, "--alphas", "0,0.5", "--accept", "best",
            "--metric", "loss"]  # fmt: skip


def test_a_failed_gate_takes_nothing_away(
    run: Run, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHATUNE_CACHE", str(tmp_path / "cache"))
    words = [*tune(tiny_checkpoint, image_folder), "-o", tmp_path / "out"]
    code, out, err = run(*words, "--min-gain", 100, "--max-regression", "top5=1", "--format", "json")
    assert code == 1
    result = json.loads(out)  # one object: the result, not an error
    assert [g["passed"] for g in result["gates"]] == [False, True]
    assert err.splitlines()[-1].startswith("error: gate min-gain failed: ")
    assert "gate max-regression top5 passed: top-5 may get worse by at most 1; it " in err
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert (tmp_path / "out" / "model.safetensors").is_file()
    # Other gates are judged anew, also by intervals and classes, from the scores that were kept.
    code, out, _ = run(*words[:-1], tmp_path / "cached", "--max-class-regression", 1, "--max-class-regression", "loss=-9",
                       "--gate-on", "interval", "--max-regression", "ece=1", "--format", "json")  # fmt: skip
    anew = json.loads(out)
    assert anew["cache"]
    assert code == 1
    assert [g["passed"] for g in anew["gates"]] == [True, True, False]
    assert len(anew["gates"][0]["interval"]) == 2
    # run.toml keeps the gates, for the next run of the pipeline.
    again = run(
        "tune", TINY, "--config", tmp_path / "out" / "run.toml", "--data", image_folder, "-o", tmp_path / "b"
    )
    assert again[0] == 1


def test_a_score_of_ones_own_has_gates(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))\n"
        "def loader():\n    g = torch.Generator().manual_seed(0)\n"
        "    return [(torch.randn(20, 3, 6, 6, generator=g), torch.zeros(20))]\n"
        "def score(outputs, targets):\n    return -outputs.square().mean(1)\n"
    )
    words = [
        "tune",
        f"{own}:net",
        "--data",
        f"{own}:loader",
        "--score",
        f"{own}:score",
        "--alphas",
        "0,0.1",
        "--no-pretrained",
    ]
    code, out, err = run(*words, "--max-regression", "score=-9", "--format", "json", "-o", tmp_path / "a")
    assert code == 1, err
    assert json.loads(out)["gates"][0]["name"] == "max-regression score"
    assert run(*words, "--max-regression", "top1=0", "-o", tmp_path / "b")[0] == 2
    assert run(*words, "--max-regression", "score=9", "-o", tmp_path / "c")[0] == 0


@needs_torch(ONNX)
def test_the_time_of_the_exported_graph(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, run: Run
) -> None:
    """What it takes in onnxruntime is what the gate judges and the report quotes."""
    words = [*tune(tiny_checkpoint, image_folder), "--alphas", "0,0.05,0.2,1", "--runtime", "onnx"]
    code, _, err = run(*words, "--max-latency-ratio", 0.01, "-o", tmp_path / "out")
    assert code == 1, err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert not [w for w in result["warnings"] if "not measured" in w]
    assert (result["deployment"]["runtime"], result["deployment"]["kernel"]) == ("onnxruntime", None)
    assert result["gates"][0]["value"] == result["deployment"]["ratio_to_plain"]
    for name in ("report.md", "report.html"):
        assert "onnxruntime" in (tmp_path / "out" / name).read_text()


@pytest.mark.slow
def test_the_exit_codes_in_a_pipeline(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    """A step passes, a step fails and a step errs, as a shell of a CI runner sees them."""
    summary = tmp_path / "summary.md"
    words = " ".join(f"'{word}'" for word in tune(tiny_checkpoint, image_folder))
    script = tmp_path / "step.sh"
    script.write_text(
        f"set -uo pipefail\nalphatune() {{ '{sys.executable}' -m alphatune \"$@\"; }}\n"
        f"alphatune {words} -o passed --max-regression top5=1 --format json > passed.json; echo $?\n"
        f"alphatune {words} -o failed --min-gain 100 --format json > failed.json; echo $?\n"
        f"alphatune {words} -o erred --max-regression speed=1 --format json > erred.json; echo $?\n"
    )
    env = {**os.environ, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "CI": "true"}
    done = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.split() == ["0", "1", "2"], done.stderr
    documents = [
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("passed", "failed", "erred")
    ]
    assert documents[0]["gates"][0]["passed"]
    assert not documents[1]["gates"][0]["passed"]
    assert documents[2]["error"]["code"] == 2
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 2
    assert "\x1b" not in done.stdout + done.stderr  # a runner is no terminal, whatever GITHUB_ACTIONS says
    text = summary.read_text(encoding="utf-8")
    assert text.count("# alphatune: ") == 2
    assert "❌ **failed**" in text


def test_a_metric_that_was_mistyped() -> None:
    for setting in ("max_regression", "max_class_regression"):
        with pytest.raises(ConfigurationError) as error:
            open_gates(TuneSettings(model="m", data="d", **{setting: ("los=0.01",)}))
        assert error.value.hint == "did you mean loss?"
