"""``alphatune compare`` and ``evaluate --scores``: figures, pairing, files and bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from conftest import TESTS, TINY, Run
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import written as tune_written
from scipy import stats

from alphatune.core.errors import InputError
from alphatune.core.metrics import INFO, Metric
from alphatune.jobs.tune import run_tune
from alphatune.reports.compared import Compared, read_compared
from alphatune.reports.evaluation_scores import read_evaluation, write_evaluation
from alphatune.reports.side_by_side import compare_document
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.metrics import AnyMetrics
from alphatune.results.serialisation import to_json
from alphatune.settings import TuneSettings
from alphatune.statistics.calibration_error import expected_calibration_error
from alphatune.statistics.gain import paired_gain
from alphatune.statistics.holm import holm
from alphatune.statistics.permutation_test import exchange_p
from alphatune.statistics.scores import Scores, summarise

DRAWS_FIGURES = True

SETTINGS: dict[str, Any] = {
    "input_size": "12", "crop_pct": 1.0, "mean": "0.5", "std": "0.25", "workers": "0", "trust_code": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tiny_checkpoint: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tune by ECE whose α is not 0, and whose best single α is what was chosen."""
    folder = tmp_path_factory.mktemp("tuned") / "out"
    run_tune(
        TuneSettings(
            model=TINY, checkpoint=str(tiny_checkpoint), data=str(image_folder), alphas="0,0.1,0.3", metric="ece",
            accept="best", output=str(folder), no_cache=True, **SETTINGS,
        )
    )  # fmt: skip
    document = json.loads((folder / "result.json").read_text())
    assert document["chosen"]["alpha"] > 0
    return folder


#: those of more than two classes
METRICS: tuple[Metric, ...] = ("top1", "top5", "loss", "ece", "macro_recall", "macro_f1")


def made_up(n: int = 200, seed: int = 0, shift: float = 0.0) -> Scores:
    """Scores of ten classes; with a shift some of the wrong predictions become right, and all surer."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n, dtype=np.int32) % 10
    hard = rng.random(n)
    right = hard < 0.7 + shift
    predicted = np.where(right, targets, (targets + 1 + np.arange(n) % 8) % 10).astype(np.int32)
    loss = (hard * 2 - shift + 0.1 * rng.standard_normal(n)).clip(0.01).astype(np.float32)
    return Scores(
        ids=np.arange(n, dtype=np.int64) * 3, targets=targets, predicted=predicted, loss=loss, top1=right,
        top5=right | (hard < 0.9), confidence=np.exp(-loss).astype(np.float32),
    )  # fmt: skip


def evaluation(path: Path, scores: Scores, classes: tuple[str, ...] = (), **changes: Any) -> Path:
    """A file as ``evaluate --scores`` writes it; changes are of ``data`` and ``model``, by ``data__decoder``."""
    document = json.loads((TESTS / "written" / "evaluate.json").read_text())
    document["model"] |= {"source": "net", "checkpoint": "a.pth", "checkpoint_sha256": "a" * 64, "alpha": 0.0}
    document["data"] |= {"source": "val", "root": "/data/val", "split": "", "decoder": "PIL 12"}
    document |= {"metrics": dict(summarise(scores).items()), "scores": None, "warnings": []}
    for name, value in changes.items():
        part, _, key = name.partition("__")
        document[part][key] = document[part][key] | value if isinstance(value, dict) else value
    write_evaluation(path, scores, msgspec.convert(document, EvaluateDocument), classes)
    return path


def compared(*paths: object, **options: Any) -> dict[str, Any]:
    document = compare_document([read_compared(str(p)) for p in paths], **options)
    plain: dict[str, Any] = json.loads(to_json(document))
    return plain


def by_metric(document: dict[str, Any], index: int = 0) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in document["comparisons"][index]["differences"]}


# --- figures ---------------------------------------------------------------------------------


def test_against_itself_nothing_differs(tuned: Path) -> None:
    document = compared(tuned, tuned)
    for row in by_metric(document).values():
        assert (row["difference"], row["ci"], row["p"], row["p_adjusted"]) == (0.0, [0.0, 0.0], 1.0, 1.0)
        assert row["verdict"] == "undecided"
        assert "-" not in f"{row['difference']:+.4f}"
    predictions = document["comparisons"][0]["predictions"]
    assert predictions["differ"] == predictions["first_only"] == predictions["other_only"] == 0
    assert [e["rank"] for e in document["entries"]] == [1, 1]
    assert document["comparisons"][0]["remarks"] == []


def test_swapping_the_two_negates_the_differences(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a.npz", made_up())
    b = evaluation(tmp_path / "b.npz", made_up(shift=0.1))
    there, back = by_metric(compared(a, b)), by_metric(compared(b, a))
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}
    for metric in METRICS:
        one, other = there[metric], back[metric]
        assert one["difference"] == pytest.approx(-other["difference"], abs=1e-12)
        assert one["ci"] == pytest.approx([-x for x in reversed(other["ci"])], abs=1e-9)
        assert one["p"] == pytest.approx(other["p"])
        assert one["verdict"] == opposite[other["verdict"]]
    assert there["top1"]["verdict"] == "better"
    first, second = (compared(*pair)["comparisons"][0]["predictions"] for pair in ((a, b), (b, a)))
    assert (first["first_only"], first["other_only"]) == (second["other_only"], second["first_only"])


def test_mcnemar_by_hand(tmp_path: Path) -> None:
    before = replace(made_up(100), top1=np.arange(100) < 50)
    after = replace(before, top1=(np.arange(100) >= 3) & (np.arange(100) < 62))  # 3 lost, 12 won
    document = compared(evaluation(tmp_path / "a.npz", before), evaluation(tmp_path / "b.npz", after))
    row = by_metric(document)["top1"]
    assert row["difference"] == pytest.approx(0.09)
    # Of 15 that changed sides 12 one way or more extreme, both tails, every split as likely.
    assert row["p"] == pytest.approx(2 * sum(stats.binom.pmf(k, 15, 0.5) for k in range(4)))
    assert row["p"] == pytest.approx(0.03516, abs=1e-5)
    counts = document["comparisons"][0]["predictions"]
    assert (counts["first_only"], counts["other_only"], counts["both_right"], counts["both_wrong"]) == (
        3,
        12,
        47,
        38,
    )


def test_figures_are_those_of_a_tunes_own_statistics(tmp_path: Path) -> None:
    one, other = made_up(), made_up(shift=0.05)
    paths = evaluation(tmp_path / "a.npz", one), evaluation(tmp_path / "b.npz", other)
    rows = by_metric(compared(*paths, seed=5))
    for metric in METRICS:
        gain, row = paired_gain(other, one, metric, seed=5), rows[metric]
        sign = INFO[metric].sign
        assert row["difference"] == sign * gain.delta
        assert row["ci"] == sorted(sign * x for x in gain.ci)
        if metric == "ece":
            assert row["p"] == exchange_p(one, other, seed=5)
        else:
            assert (row["p"], row["method"]) == (gain.p, gain.method)
        means = [getattr(summarise(s), metric) for s in (one, other)]
        assert row["difference"] == pytest.approx(means[1] - means[0], abs=1e-6)


def test_exchanging_by_hand() -> None:
    """All 256 ways to exchange eight examples, by the ECE itself."""
    first, other = (made_up(8, seed) for seed in (0, 3))
    observed = summarise(other).ece - summarise(first).ece
    as_large = 0
    for pattern in range(2**8):
        moved = np.array([pattern >> i & 1 for i in range(8)], dtype=bool)
        parts = [
            expected_calibration_error(
                np.where(moved, b.confidence, a.confidence), np.where(moved, b.top1, a.top1)
            )
            for a, b in ((first, other), (other, first))
        ]
        as_large += abs(parts[1] - parts[0]) >= abs(observed) - 1e-12
    exact = as_large / 2**8
    assert 0.05 < exact < 0.95
    assert exchange_p(first, other, resamples=20_000) == pytest.approx(exact, abs=0.015)
    assert exchange_p(other, first, seed=2) == exchange_p(first, other, seed=2)
    assert exchange_p(first, first) == 1


def test_same_seed_same_output(tmp_path: Path) -> None:
    paths = [evaluation(tmp_path / f"{i}.npz", made_up(shift=i / 20)) for i in range(3)]
    assert compared(*paths) == compared(*paths)
    assert by_metric(compared(*paths, seed=1))["ece"]["ci"] != by_metric(compared(*paths))["ece"]["ci"]


def test_several_comparisons_are_adjusted_metric_by_metric(tmp_path: Path) -> None:
    paths = [evaluation(tmp_path / f"{i}.npz", made_up(shift=i / 40)) for i in range(4)]
    document = compared(*paths)
    assert document["correction"] == "holm"
    assert any("3 comparisons" in w for w in document["warnings"])
    for metric in METRICS:
        rows = [by_metric(document, i)[metric] for i in range(3)]
        assert [r["p_adjusted"] for r in rows] == holm([r["p"] for r in rows])
        alone = by_metric(compared(paths[0], paths[2]))[metric]
        assert (alone["p"], alone["ci"]) == (rows[1]["p"], rows[1]["ci"])
        assert alone["p_adjusted"] == alone["p"]
    assert document["ranking"] == ["D", "C", "B", "A"]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2, 0.9, 0.6]) == pytest.approx([0.6, 1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_p_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a <= b <= min(1.0, len(p) * a + 1e-12) for a, b in zip(p, adjusted, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.asarray(adjusted)[order]) >= 0).all()


def test_equal_figures_share_a_rank(tmp_path: Path) -> None:
    paths = [evaluation(tmp_path / f"{i}.npz", made_up(shift=s)) for i, s in enumerate((0.1, 0.0, 0.1))]
    assert [e["rank"] for e in compared(*paths, metric="top1")["entries"]] == [1, 3, 1]
    by_loss = compared(*paths, metric="loss")
    assert by_loss["ranking"][-1] == "B"  # the largest


# --- runs of a tune --------------------------------------------------------------------------


def test_before_and_after_of_a_tune(tuned: Path) -> None:
    result = json.loads((tuned / "result.json").read_text())
    document = compared(f"{tuned}:baseline", tuned)
    before, after = document["entries"]
    assert (before["metrics"], after["metrics"]) == (result["baseline"], result["chosen"]["metrics"])
    assert (before["alpha"], after["alpha"]) == (0.0, result["chosen"]["alpha"])
    assert after["baseline"] == result["baseline"]
    assert after["deployment"] == result["deployment"]
    assert before["deployment"] is before["decision"] is before["gain"] is None
    assert document["metric"] == "ece"  # what it was tuned for
    for metric, row in by_metric(document).items():
        assert row["difference"] == pytest.approx(
            after["metrics"][metric] - before["metrics"][metric], abs=1e-6
        )
    assert by_metric(document)["ece"]["difference"] < 0
    assert any(w.startswith("B had α chosen") for w in document["warnings"])


def test_a_result_file_finds_the_scores_beside_it_only_if_they_are_its_own(
    tuned: Path, tmp_path: Path
) -> None:
    assert compared(tuned / "result.json", tuned)["comparisons"][0]["paired"]
    copied = tmp_path / "copied"
    shutil.copytree(tuned, copied)
    assert compared(copied, tuned)["comparisons"][0]["paired"]
    np.savez(copied / "scores.npz", ids=np.arange(3))
    comparison = compared(tuned, copied)["comparisons"][0]
    assert not comparison["paired"]
    assert "is not the one that result.json speaks of" in comparison["reason"]
    (copied / "scores.npz").unlink()
    comparison = compared(tuned, copied / "result.json")["comparisons"][0]
    assert "name the tuned folder" in comparison["reason"]
    assert comparison["same_data"]  # by name and number: means are shown, untested
    assert [r["ci"] for r in comparison["differences"]] == [None] * len(METRICS)
    assert compared(tuned, copied)["ranking"] == ["A", "B"]


def test_another_best_is_a_run_of_its_own(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    document = run_tune(
        TuneSettings(
            model=TINY, checkpoint=str(tiny_checkpoint), data=str(image_folder), alphas="0,0.1,0.3", metric="ece",
            limit=15, output=str(tmp_path / "kept"), no_cache=True, **SETTINGS,
        )
    )  # fmt: skip
    assert document["decision"]["keep_baseline"]  # too few to tell
    best = document["best"]["ece"]
    assert best > 0
    result = compared(tmp_path / "kept", f"{tmp_path / 'kept'}:best")
    (point,) = [p for p in document["curve"] if p["alpha"] == best]
    assert result["entries"][1]["alpha"] == best
    assert result["entries"][1]["metrics"] == {k: point[k] for k in ("n", *METRICS)}
    assert "only 15 examples" in result["comparisons"][0]["reason"]


# --- what is not paired, and what is remarked ------------------------------------------------


def test_other_data_are_shown_side_by_side_and_it_says_why(tmp_path: Path) -> None:
    scores = made_up()
    a = evaluation(tmp_path / "a.npz", scores, ("ant", "bee"))
    cases = {
        "of which 150 have the same position": (scores.take(slice(0, 150)), ("ant", "bee")),
        "the labels of 1 of 200": (
            replace(scores, targets=np.r_[9, scores.targets[1:]].astype(np.int32)),
            (),
        ),
        "number 1 is 'bee' and 'cat'": (scores, ("ant", "cat")),
    }
    for i, (words, (other, classes)) in enumerate(cases.items()):
        document = compared(a, evaluation(tmp_path / f"other{i}.npz", other, classes))
        comparison = document["comparisons"][0]
        assert not comparison["same_data"]
        assert words in comparison["reason"]
        assert (comparison["differences"], comparison["predictions"]) == ([], None)
        assert [e["rank"] for e in document["entries"]] == [1, None]
        assert document["ranking"] == ["A"]
        assert document["entries"][1]["metrics"] == dict(summarise(other).items())


def test_differences_of_the_conditions_are_remarked(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a.npz", made_up())
    b = evaluation(
        tmp_path / "b.npz", made_up(), data__decoder="torchcodec 1", data__preprocessing={"crop_pct": 0.875},
        data__root="/elsewhere/val", model__checkpoint_sha256="b" * 64, env__dtype="bfloat16",
    )  # fmt: skip
    remarks = " | ".join(compared(a, b)["comparisons"][0]["remarks"])
    for words in (
        "crop_pct 1 and 0.875",
        "PIL 12 and torchcodec 1",
        "/elsewhere/val",
        "other weights",
        "bfloat16",
    ):
        assert words in remarks
    c = evaluation(tmp_path / "c.npz", made_up(), model__source="another")
    (remark,) = compared(a, c)["comparisons"][0]["remarks"]
    assert remark == "other architecture: net and another"


def test_averages_measured_anew_are_remarked(tmp_path: Path, tuned: Path) -> None:
    """Also of the run before tuning, which by its weights' name is the model as it was given."""
    given, again = tuned, tmp_path / "again"
    shutil.copytree(tuned, again)
    document = json.loads((again / "result.json").read_text())
    measured = tune_written("tune-searched-recalibrated")["recalibration"]
    measured["data"] |= {"source": "train", "n": 60}
    document["recalibration"] = measured
    (again / "result.json").write_text(json.dumps(document))
    (remark,) = compared(f"{given}:baseline", f"{again}:baseline")["comparisons"][0]["remarks"]
    assert remark == "other moving averages: those of the weights and measured anew on 60 examples of train"


def test_several_are_listed(tuned: Path) -> None:
    warnings = " ".join(compared(tuned, tuned, tuned)["warnings"])
    assert "A, B and C had α chosen" in warnings


def test_a_score_of_ones_own_is_compared_by_its_mean(tmp_path: Path, tuned: Path) -> None:
    document = json.loads((tuned / "result.json").read_text())
    for name, value in (("a", 0.5), ("b", 0.75)):
        own = tune_written("tune-by-a-score") | {
            "score": {"source": "iou.py:iou", "name": "iou"}, "best": {"score": 0.1}, "data": document["data"],
            "baseline": {"n": 48, "score": 0.25},
            "chosen": {"alpha": 0.1, "temperature": 1.0, "metrics": {"n": 48, "score": value}},
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
    result = compared(tmp_path / "a.json", tmp_path / "b.json")
    comparison = result["comparisons"][0]
    assert "not kept for every example" in comparison["reason"]
    assert [(r["metric"], r["difference"], r["p"]) for r in comparison["differences"]] == [
        ("score", 0.25, None)
    ]
    assert result["ranking"] == ["B", "A"]
    mixed = compared(tuned, tmp_path / "a.json")
    assert "score of its own" in mixed["comparisons"][0]["reason"]
    assert mixed["entries"][1]["rank"] is None


# --- evaluate --scores -----------------------------------------------------------------------


@pytest.fixture
def kept(
    run: Run, tuned: Path, image_folder: Path, tmp_path: Path
) -> tuple[Path, dict[str, Any], list[object]]:
    path = tmp_path / "scores.of.evaluation.npz"
    command = ["evaluate", tuned, "--trust-code", "--data", image_folder, "--workers", 0, "--scores", path]
    code, stdout, err = run(*command, "--format", "json")
    assert code == 0, err
    return path, json.loads(stdout), command


def test_an_evaluation_keeps_its_scores(kept: Any, run: Run, tuned: Path, tmp_path: Path) -> None:
    path, document, command = kept
    inside, stored = read_evaluation(path)
    assert dict(summarise(stored.runs["evaluated"]).items()) == document["metrics"]
    assert json.loads(to_json(inside)) == document | {"scores": None}
    assert stored.classes == ("ant", "bee", "cat", "dog")
    first = path.read_bytes()
    code, _, err = run(*command)
    assert code == 2
    assert "--overwrite" in err
    assert run(*command, "--overwrite")[0] == 0
    assert path.read_bytes() == first
    path.write_bytes(b"mine")
    assert run(*command, "--overwrite")[0] == 2
    assert path.read_bytes() == b"mine"
    assert run(*command[:-1], tmp_path / "scores.json")[0] == 2
    assert list(tmp_path.glob(".*")) == []


def test_an_evaluation_is_paired_with_the_tune_it_evaluates(
    kept: Any, run: Run, tuned: Path, tmp_path: Path
) -> None:
    path, document, _ = kept
    printed = tmp_path / "evaluation.json"
    printed.write_text(json.dumps(document))
    for form in (path, printed):
        result = compared(tuned, form)
        comparison = result["comparisons"][0]
        assert comparison["paired"]
        assert [r["difference"] for r in comparison["differences"]] == pytest.approx(
            [0] * len(METRICS), abs=1e-6
        )
        assert result["entries"][1]["alpha"] == pytest.approx(result["entries"][0]["alpha"])
    path.unlink()
    assert "have changed" in compared(tuned, printed)["comparisons"][0]["reason"]
    printed.write_text(json.dumps(document | {"scores": None}))
    assert "without `scores`" in compared(tuned, printed)["comparisons"][0]["reason"]


# --- the command -----------------------------------------------------------------------------


def test_streams_and_formats(run: Run, tuned: Path) -> None:
    code, stdout, stderr = run("compare", f"{tuned}:baseline", tuned, "--format", "json")
    assert code == 0
    document = json.loads(stdout)
    assert document["entries"][1]["name"] == str(tuned)
    assert "warning: B had α chosen" in stderr
    code, stdout, stderr = run("compare", f"{tuned}:baseline", tuned, "--format", "quiet", "-q")
    assert (code, stderr) == (0, "")
    loss = by_metric(document)["loss"]
    assert f"loss={loss['difference']:+.4f} p_loss={loss['p']:.3g}" in stdout
    assert stdout.startswith("other=B top1=")
    assert stdout.count("\n") == 1
    code, stdout, _ = run("compare", f"{tuned}:baseline", tuned, tuned)
    assert code == 0
    for words in (
        "B - A, paired over 48 examples",
        "p (Holm)",
        "predictions differ",
        "By ECE, best first: B",
    ):
        assert words in stdout
    assert "\x1b" not in stdout


def test_files_of_a_comparison(run: Run, tuned: Path, tmp_path: Path) -> None:
    command = ["compare", f"{tuned}:baseline", tuned, "--format", "json", "-q"]
    for ending in ("json", "md", "csv"):
        path = tmp_path / f"out.{ending}"
        code, stdout, err = run(*command, "--output", path)
        assert code == 0, err
        first = path.read_bytes()
        assert run(*command, "--output", path)[0] == 2
        assert run(*command, "--output", path, "--overwrite")[0] == 0
        assert path.read_bytes() == first
        path.write_text("mine")
        assert run(*command, "--output", path, "--overwrite")[0] == 2
        path.write_bytes(first)
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(stdout)
    frame = pd.read_csv(tmp_path / "out.csv")
    assert frame["metric"].tolist() == [*METRICS, *METRICS]
    rows = by_metric(json.loads(stdout))
    assert frame["difference"].tolist()[len(METRICS) :] == pytest.approx(
        [rows[m]["difference"] for m in METRICS]
    )
    report = (tmp_path / "out.md").read_text()
    assert "# alphatune compare" in report
    assert f"{rows['loss']['difference']:+.4f}" in report


def test_names_in_markdown_are_taken_literally(run: Run, tmp_path: Path) -> None:
    name = evaluation(tmp_path / "a|<b>.npz", made_up(), data__source="x|<i>y")
    code, _, err = run("compare", name, name, "-o", tmp_path / "c.md")
    assert code == 0, err
    report = (tmp_path / "c.md").read_text()
    assert "<b>" not in report
    assert "<i>" not in report
    assert r"x\|&lt;i&gt;y" in report


def test_bad_input(run: Run, tuned: Path, tmp_path: Path, image_folder: Path) -> None:
    result = json.loads((tuned / "result.json").read_text())

    def written(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    nothing = tmp_path / "nothing"
    nothing.mkdir()
    good = evaluation(tmp_path / "good.npz", made_up())
    uneven = made_up()
    evaluation(tmp_path / "uneven.npz", replace(uneven, loss=uneven.loss[:5]))
    cases: list[tuple[list[object], int, str]] = [
        ([tuned], 2, "two or more"),
        ([tuned, f"{tuned}:worst"], 2, "unknown run 'worst'"),
        ([tuned, f"{tuned}:best"], 2, "keeps no run 'best'"),
        ([tuned, f"{good}:baseline"], 2, "has no run"),
        ([tuned] * 27, 2, "2 to 26"),
        ([tuned, good, "-o", tmp_path / "x.txt"], 2, ".json, .md or .csv"),
        ([tuned, good, "-o", tmp_path / "no" / "x.md"], 2, "cannot write"),
        ([tuned, tmp_path / "missing"], 3, "No such file"),
        ([tuned, nothing], 3, "holds no result.json"),
        ([tuned, image_folder / "ant" / "000.png"], 3, "cannot read"),
        ([tuned, written("text.npz", "hello")], 3, "evaluate with --scores"),
        ([tuned, tmp_path / "uneven.npz"], 3, "damaged"),
        ([tuned, written("list.json", [])], 3, "not a result"),
        ([tuned, written("error.json", {"error": {"code": 3, "message": "gone"}})], 3, "an error: gone"),
        ([tuned, written("new.json", result | {"schema": 99})], 3, "schema 99"),
        ([tuned, written("bench.json", result | {"command": "bench"})], 3, "'bench'"),
        ([tuned, written("half.json", {k: v for k, v in result.items() if k != "chosen"})], 3, "damaged"),
        ([tuned, written("flat.json", result | {"model": 3})], 3, "damaged"),
        ([tuned, written("nan.json", json.dumps(result | {"baseline": {"n": 1, "top1": float("nan")}}))], 3, "nan"),
    ]  # fmt: skip
    for args, expected, words in cases:
        code, stdout, err = run("compare", *args)
        assert (code, stdout) == (expected, ""), (args, err)
        assert words in err, args
    code, stdout, _ = run("compare", tuned, nothing, "--format", "json")
    assert (code, json.loads(stdout)["error"]["code"]) == (3, 3)


def test_scores_that_do_not_fit_their_result_are_refused(tmp_path: Path) -> None:
    path = evaluation(tmp_path / "a.npz", made_up(), metrics__n=7)
    with pytest.raises(InputError, match="200 scores of 7 examples"):
        read_compared(str(path))


# --- how often luck is taken for a difference ------------------------------------------------


def equals(n: int, rng: np.random.Generator, sharpness: float) -> tuple[Scores, Scores]:
    """Two networks of which neither is better: logits that share most of their noise, two classes.

    Args:
        sharpness: what logits are multiplied by; 1 is calibrated.
    """
    targets = rng.integers(0, 2, n).astype(np.int32)
    shared, made = rng.standard_normal(n), []
    for _ in range(2):
        # Of unit variance about ±1, so that the log odds are twice the evidence.
        evidence = (2 * targets - 1) + 0.9 * shared + np.sqrt(1 - 0.9**2) * rng.standard_normal(n)
        odds = 2 * evidence * sharpness
        right = (odds > 0) == (targets == 1)
        made.append(
            Scores(
                ids=np.arange(n), targets=targets, predicted=(odds > 0).astype(np.int32), top1=right,
                loss=np.logaddexp(0, -odds * (2 * targets - 1)).astype(np.float32), top5=np.ones(n, bool),
                confidence=(1 / (1 + np.exp(-np.abs(odds)))).astype(np.float32),
            )
        )  # fmt: skip
    return made[0], made[1]


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [1.0, 2.0])
@pytest.mark.parametrize("n", [200, 1000])
def test_equal_networks_are_rarely_told_apart(n: int, sharpness: float) -> None:
    runs, told = 300, dict.fromkeys(("top1", "loss", "ece"), 0)
    written = (TESTS / "written" / "evaluate.json").read_bytes()
    document = msgspec.json.decode(written, type=EvaluateDocument)
    for seed in range(runs):
        pair = [
            Compared(name, "evaluated", document, summarise(scores).extended(AnyMetrics), scores, (), "")
            for name, scores in zip("ab", equals(n, np.random.default_rng(seed), sharpness), strict=True)
        ]
        rows = by_metric(json.loads(to_json(compare_document(pair, seed=seed))))
        for metric in told:
            told[metric] += rows[metric]["verdict"] != "undecided"
    print(f"n = {n}, sharpness {sharpness:g}: {told} of {runs}")
    # 5 % of 300 runs exceed 23 once in a hundred times.
    assert max(told.values()) <= 23
