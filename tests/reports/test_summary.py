"""The summary of a tune: what every report begins with says what the numbers are."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from conftest import TESTS, TINY, Run
from made_up_results import made_result, made_scores, refined, scored, typed, written

from alphatune.reports.changes import HERE, NEW
from alphatune.reports.summary import summarise_tune

WRITTEN = sorted(file.stem for file in (TESTS / "written").glob("tune*.json"))


@pytest.mark.parametrize("name", WRITTEN)
def test_any_tune_has_a_summary(name: str) -> None:
    document = typed(written(name))
    summary = summarise_tune(document, "some where")
    assert summary.decision.startswith("Keep α" if document.decision.keep_baseline else "Use α")
    assert summary.sentence.endswith(".")
    assert 1 <= len(summary.next) <= 3
    assert all("'some where" in step.command or "some where" in step.command for step in summary.next)


@pytest.mark.parametrize("metric", ["top1", "loss", "ece"])
@pytest.mark.parametrize("kept", [False, True])
def test_figures_are_those_of_the_document(metric: str, kept: bool) -> None:
    document = typed(made_result(made_scores(), metric=metric, kept=kept))
    summary = summarise_tune(document)
    assert summary.taken != kept
    for figure in summary.figures:
        assert figure.before == document.baseline[figure.metric]
        if not kept:
            assert figure.after == document.chosen.metrics[figure.metric]
    gain = document.gain
    assert gain is not None
    (new,) = (each for each in summary.gains if each.label == NEW)
    sign = -1 if metric != "top1" else 1
    assert new.change == sign * gain.delta
    assert new.interval == tuple(sorted(sign * end for end in gain.ci))
    assert summary.gains[0].label == HERE


@pytest.mark.parametrize("metric", ["top1", "top5", "loss", "ece"])
def test_no_change_is_called_better_without_an_interval_that_says_so(metric: str) -> None:
    made = made_result(made_scores())
    made["baseline"][metric] = 0.5
    up = 1 if metric.startswith("top") else -1
    for ends, verdict in (((-0.1, 0.1), "undecided"), ((0.05, 0.1), "better"), ((-0.1, -0.05), "worse")):
        made["chosen"]["ci"][metric] = sorted(up * end for end in ends)
        made["chosen"]["metrics"][metric] = 0.5 + up * (sum(ends) / 2 or 0.01)
        (figure,) = (f for f in summarise_tune(typed(made)).figures if f.metric == metric)
        assert figure.verdict == verdict
    made["chosen"] |= {"ci": {}, "temperature": 1.5}  # as an earlier version wrote it
    (figure,) = (f for f in summarise_tune(typed(made)).figures if f.metric == metric)
    assert figure.verdict == "untested"


def test_a_temperature_stands_beside_alpha() -> None:
    document = typed(refined(made_result(made_scores())))
    summary = summarise_tune(document)
    assert "temperature 1.25" in summary.decision
    assert document.refinement is not None
    if document.refinement.temperature_gain:
        assert [each.of for each in summary.gains if each.label == NEW][-1] == "temperature"


def test_a_score_is_called_by_its_name() -> None:
    document = typed(scored(made_result(made_scores())))
    summary = summarise_tune(document)
    assert [figure.label for figure in summary.figures] == [document.score_name]


@pytest.mark.parametrize("passed", [True, False])
def test_gates_say_what_is_next(passed: bool) -> None:
    gate = {
        "name": "max-regression top1",
        "limit": 0.0,
        "value": 0.1,
        "passed": passed,
        "reason": "top-1 fell",
    }
    document = typed(made_result(made_scores()) | {"gates": [gate]})
    commands = [step.command for step in summarise_tune(document, "out").next]
    assert any("alphatune export out" in command for command in commands) == passed
    assert any("--metric top1" in command for command in commands) != passed


def made_costly(n: int, **changes: object) -> dict:
    """A tune that deploys α in all layers of a network that would fold."""
    made = made_result(made_scores(n))
    cost = {
        "batch_size": 32, "alpha": 0.12, "kernel": "compiled", "ratio_to_plain": 1.1, "ratio_to_folded": 1.4,
    }  # fmt: skip
    return made | {"deployment": cost} | changes


def test_layers_are_suggested_where_alpha_costs_much() -> None:
    suggested = commands(made_costly(1200))["budget"]
    assert "--latency-budget 1.05" in suggested
    assert "budget" not in commands(made_costly(400))  # too few to tell layers apart
    cheap = made_costly(1200)
    cheap["deployment"]["ratio_to_folded"] = 1.1
    assert "budget" not in commands(cheap)
    failed = {"name": "max-latency-ratio", "limit": 1.25, "value": 1.4, "passed": False, "reason": "slow"}
    assert "--latency-budget 1.25" in commands(made_costly(400, gates=[failed]))["budget"]
    below = failed | {"limit": 0.9}  # no network is faster than the folded one
    assert "budget" not in commands(made_costly(400, gates=[below]))


def test_what_was_not_compared_has_no_best() -> None:
    made = made_result(made_scores(), metric="top1")
    for point in made["curve"][3:]:
        point["n"] = 100
    summary = summarise_tune(typed(made))
    assert [figure.metric for figure in summary.figures if figure.best_alpha is not None] == ["top1"]


def test_the_next_commands_run(
    run: Run, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(
        "tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--input-size", 12, "--crop-pct", 1,
        "--mean", 0.5, "--std", 0.25, "--workers", 0, "--alphas", "0,0.5", "--accept", "best", "--metric", "ece",
        "-o", "tuned",
    )  # fmt: skip
    assert code == 0, err
    lines = [line.strip() for line in out.partition("Next:")[2].splitlines()]
    commands = [line for line in lines if line.startswith("alphatune ")]
    assert commands
    for command in commands:
        words = shlex.split(
            command.replace("OTHER_IMAGES", str(image_folder)).replace("MORE_IMAGES", str(image_folder))
        )
        code, _, err = run(*words[1:])
        assert code == 0, err


def searched(**changes: object) -> dict:
    """A search whose gain may be luck."""
    made = made_result(made_scores(), metric="top1", kept=True)
    made["gain"] |= {"significant": False, "delta": 0.004, "ci": [-0.008, 0.016]}
    return made | changes


def commands(made: dict) -> dict[str, str]:
    """The next commands by what is added to the folder's name, in a folder of another name than it was written to."""
    steps = summarise_tune(typed(made), "out").next
    return {shlex.split(step.command)[-1].removeprefix("out-"): step.command for step in steps}


def test_a_limit_is_raised_before_more_images_are_asked_for() -> None:
    made = searched()
    n = made["baseline"]["n"]
    words = shlex.split(commands(made)["more"])
    assert ("MORE_IMAGES" in words, "--limit" in words) == (True, False)
    base = made["command_line"]
    words = shlex.split(commands(made | {"command_line": f"{base} --limit {n}"})["more"])
    assert "MORE_IMAGES" not in words  # there are more at hand
    assert int(words[words.index("--limit") + 1]) > n
    words = shlex.split(commands(made | {"command_line": f"{base} --limit {10 * n}"})["more"])
    assert "MORE_IMAGES" in words
    assert int(words[words.index("--limit") + 1]) > 10 * n  # which run.toml would hold them to


def test_nobody_is_asked_for_images_that_nobody_has() -> None:
    caption = {s.command: s.caption for s in summarise_tune(typed(searched()), "out").next}
    assert any("0.4 points" in text for text in caption.values())  # the gain that is meant
    far = searched()
    far["gain"] |= {"delta": 0.00001}
    assert "more" not in commands(far)
