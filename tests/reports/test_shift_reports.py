"""Shifts, repairs and the number of labels in every report: the document's numbers, and nothing hidden."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_results import (
    CONDITIONS,
    HOSTILE,
    by_labels,
    compared,
    made_examples,
    made_result,
    made_scores,
    shifted,
    typed,
)
from rich.console import Console
from test_html_report import Page

from alphatune.cli import console
from alphatune.cli.tune_result import show_result
from alphatune.reports.html import render_html
from alphatune.reports.markdown import render_markdown, render_summary
from alphatune.reports.model_card import CardFacts, render_card
from alphatune.reports.next_steps import shift_settings
from alphatune.reports.notebook import to_html, to_text
from alphatune.reports.scores import StoredScores, read_scores, to_arrays, write_scores
from alphatune.reports.summary import summarise_tune
from alphatune.results.tune import Tuned

#: repairs as the reports call them
CALLED = {
    "plain": "plain", "temperature": "temperature", "averages": "running statistics", "affine": "γ and β",
    "global": "one α", "layer": "α a layer", "channel": "α a channel",
}  # fmt: skip


@cache
def stored() -> StoredScores:
    return replace(made_scores(), examples=made_examples())


@cache
def variant(name: str) -> dict[str, Any]:
    made = made_result(made_scores())
    return {
        "shift": lambda: shifted(made),
        "shift, alpha": lambda: shifted(made, chosen="layer"),
        "shift, by loss": lambda: shifted(made, chosen="global", metric="loss", over="worst"),
        "shift, kept": lambda: shifted(made_result(made_scores(), kept=True), chosen="plain"),
        "repairs": lambda: compared(made),
        "label curve": lambda: by_labels(shifted(made)),
        "hostile": lambda: by_labels(shifted(made, names=HOSTILE[:5])),
    }[name]()


SHIFTS = ("shift", "shift, alpha", "shift, by loss")
each = pytest.mark.parametrize("name", SHIFTS)


@cache
def page(name: str) -> Page:
    return Page(render_html(typed(variant(name)), stored())[0])


def said(document: Tuned) -> Iterator[tuple[str, str]]:
    """What every report says, in one line each, without marks of Markdown."""
    yield "html", Page(render_html(document, stored())[0]).words
    for name, text in (
        ("markdown", render_markdown(document)), ("step summary", render_summary(document, "out")),
        ("notebook", to_html(document)), ("text", to_text(document)), ("card", card(document)),
        ("terminal", terminal(document)),
    ):  # fmt: skip
        yield name, " ".join(text.replace("\\", "").split())


def card(document: Tuned) -> str:
    facts = CardFacts(
        name="net", architecture="Net", repo="me/net", license=None, alpha={"bn1": 0.0}, temperature=1.0,
        tuned_temperature=1.0, head="", stock_is_unpatched=True, patchable=True, tuned_weights_sha256="ab" * 32,
    )  # fmt: skip
    return render_card(facts, document, "")


def terminal(document: Tuned, width: int = 140, verbose: bool = False) -> str:
    out = Console(width=width, highlight=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "stdout", lambda: out)
        show_result(document, "out", verbose=verbose, onward=False)
    return out.export_text()


def change(metric: str, value: float) -> str:
    return f"{100 * value:+.2f}" if metric.startswith("top") else f"{value:+.4f}"


def ends(metric: str, interval: list[float], sign: int = 1) -> str:
    low, high = sorted(sign * end for end in interval)
    return f"{change(metric, low)} to {change(metric, high)}"


def verdict(metric: str, before: float, after: float, interval: list[float]) -> str:
    if min(interval) <= 0 <= max(interval):
        return "undecided"
    return "better" if (after > before) == metric.startswith("top") else "worse"


# --- the headline ----------------------------------------------------------------------------


@each
def test_the_headline_is_about_shifts_that_were_not_tuned_on(name: str) -> None:
    made = variant(name)
    metric, unseen = made["metric"], made["shift"]["unseen_mean"]
    sign = 1 if metric == "top1" else -1
    points = " points" if sign == 1 else ""
    expected = (
        f"On shifts it has not seen: {'top-1' if sign == 1 else 'loss'} {change(metric, sign * unseen['delta'])}"
        f"{points} (95 % interval {ends(metric, unseen['ci'], sign)}); on those it was tuned on: "
    )
    assert summarise_tune(typed(made)).sentence.startswith(expected)
    for report, words in said(typed(made)):
        assert (expected if report != "text" else expected.replace("α", "alpha")) in words, report


def test_what_is_deployed_is_in_the_first_line() -> None:
    for chosen, decision in (
        ("affine", "Use tuned γ and β (no α)"), ("averages", "Use running statistics measured anew (no α)"),
        ("temperature", "Use temperature 1.3 (no α)"), ("layer", "Use α = 0.02 to 0.3 by layer"),
    ):  # fmt: skip
        document = typed(compared(made_result(made_scores()), chosen=chosen))
        found = summarise_tune(document)
        assert found.decision == decision
        assert found.taken
        reason = document.repairs.reason if document.repairs else ""
        assert [note.lower() for note in found.notes] == [f"{reason}.".lower()]
    assert summarise_tune(typed(variant("shift, kept"))).decision.startswith("Keep α = 0")


def test_a_gain_that_may_be_luck_is_called_that() -> None:
    made = variant("shift")
    doubtful = made["shift"]["unseen_mean"] | {"ci": [-0.001, 0.109]}
    found = summarise_tune(typed(made | {"shift": made["shift"] | {"unseen_mean": doubtful}}))
    assert "+5.40 points (95 % interval -0.10 to +10.90), which may be luck; on" in found.sentence
    assert "luck" not in summarise_tune(typed(made)).sentence


def test_the_gain_of_a_free_repair_is_its_own() -> None:
    """The gain beside α is of α; what is expected of γ and β is theirs."""
    made = variant("repairs")
    (own,) = (each for each in made["repairs"]["tried"] if each["name"] == "affine")
    new = [worth for worth in summarise_tune(typed(made)).gains if worth.of == "γ and β"][-1]
    assert new.change == -own["over_plain"]["delta"] != -made["gain"]["delta"]


# --- what got worse --------------------------------------------------------------------------


@each
def test_a_condition_that_got_worse_is_named_everywhere(name: str) -> None:
    for report, words in said(typed(variant(name))):
        assert re.search(r"Worse in [\w-]+: clean [-+][\d.]+( points)? \(undecided\), fog", words), report
        assert re.search(r"fog [-+][\d.]+( points)? \(beyond luck\)\.", words), report
        assert re.search(r"the shift was not tuned on: fog [-+][\d.]+", words), report
        assert "guard on clean is not met: top-1 may fall by up to 0.91 points" in words, report


def test_where_none_got_worse_that_is_said() -> None:
    made = variant("shift")
    conditions = [c | {"chosen": c["baseline"] | {"top1": 0.9}} for c in made["shift"]["conditions"]]
    unseen = [u for u in made["shift"]["unseen"] if u["gain"]["delta"] > 0]
    shift = made["shift"] | {"conditions": conditions, "unseen": unseen}
    notes = " ".join(summarise_tune(typed(made | {"shift": shift})).notes)
    assert "No condition that it was tuned on got worse in top-1." in notes
    assert "Worse" not in notes


# --- the tables ------------------------------------------------------------------------------


@each
def test_the_table_of_conditions_holds_the_numbers_of_the_document(name: str) -> None:
    made, words = variant(name), page(name).words
    metric, markdown = made["metric"], render_markdown(typed(made))
    rows = [(c["name"], c["baseline"], c["chosen"], c["ci"][metric]) for c in made["shift"]["conditions"]]
    rows.append(("mean", made["baseline"], made["chosen"]["metrics"], made["chosen"]["ci"][metric]))
    for label, baseline, chosen, interval in rows:
        before, after = baseline[metric], chosen[metric]
        row = f"{before:.4f} {after:.4f} {change(metric, after - before)} {ends(metric, interval)} "
        row += verdict(metric, before, after, interval)
        own = [
            t["by_condition"].get(label, t["metrics"])[metric] for t in made["repairs"]["tried"] if t["name"] != "plain"
        ]  # fmt: skip
        row = " ".join([row, *(f"{value:.4f}" for value in own)])
        assert row in words, label
        assert re.sub(r"[\s|*]+", " ", row) in re.sub(r"[\s|*]+", " ", markdown), label
    before, after = made["shift"]["worst"]
    pick = min if metric == "top1" else max
    own = [pick(m[metric] for m in t["by_condition"].values()) for t in made["repairs"]["tried"][1:]]
    row = f"worst {before:.4f} {after:.4f} {change(metric, after - before)} "
    assert row + " ".join(f"{value:.4f}" for value in own) in words
    for severities in ("severity 3", "severities 2 to 4", "severities 1 to 5", "severities 1, 3, 5"):
        assert severities in words


@pytest.mark.parametrize("name", [*SHIFTS, "repairs"])
def test_the_table_of_repairs_holds_the_numbers_of_the_document(name: str) -> None:
    made = variant(name)
    metric, sign = made["metric"], 1 if made["metric"] == "top1" else -1
    markdown = re.sub(r"[\s|]+", " ", render_markdown(typed(made)))
    for tried in made["repairs"]["tried"]:
        row = [
            str(tried["numbers"]),
            "free" if tried["free"] else "slower",
            f"{sign * tried['objective']:.4f}",
        ]
        if gain := tried["over_plain"]:
            row += [change(metric, sign * gain["delta"]), ends(metric, gain["ci"], sign)]
        else:
            row += ["–"]
        (found,) = re.findall(f"{re.escape(' '.join(row))}[^–]*?(?=free|slower|Each|In each|$)", markdown)
        if gain := tried["behind_best"]:
            assert f" {change(metric, gain['delta']).removeprefix('+')} {ends(metric, gain['ci'])}" in found
        else:
            assert " best " in found
        assert (" chosen " in found) == (tried["name"] == made["repairs"]["chosen"])
        assert ("ruled out by the guard" in found) == tried["guarded"]
        assert " ".join(row) in page(name).words
    for report, words in said(typed(made)):
        for called in CALLED.values():
            assert (called if report != "text" else called.replace("α", "alpha")) in words, report


def test_unseen_shifts_and_guards_are_there_in_full() -> None:
    made = variant("shift")
    for words in (page("shift").words, re.sub(r"[\s|*]+", " ", render_markdown(typed(made))),
                  " ".join(terminal(typed(made), verbose=True).split())):  # fmt: skip
        for unseen in made["shift"]["unseen"]:
            gain = unseen["gain"]
            assert f"{change('top1', gain['delta'])} points {ends('top1', gain['ci'])}" in words
        assert "0.50 points +0.40 points +0.91 points" in words
        assert "not significantly worse -0.0100 +0.0312" in words
        assert words.count("not met") >= 2  # in the table, too


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 0.2, "better"), (-0.1, 0.1, "undecided"), (-0.2, -0.1, "worse")]
)
@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_a_verdict_rests_on_the_interval(metric: str, low: float, high: float, word: str) -> None:
    sign = 1 if metric == "top1" else -1
    made = shifted(made_result(made_scores()), metric=metric)
    first = made["shift"]["conditions"][0]
    moved = first["baseline"][metric] + sign * ((low + high) / 2 or 0.001)
    interval = sorted(sign * end for end in (low, high))
    first = first | {"chosen": first["chosen"] | {metric: moved}, "ci": {metric: interval}}
    made["shift"]["conditions"][0] = first
    words = re.sub(r"[\s|]+", " ", render_markdown(typed(made)))
    assert (
        f"{moved:.4f} {change(metric, moved - first['baseline'][metric])} {ends(metric, interval)} {word}"
        in words
    )


def test_the_number_of_labels_is_a_table_of_the_documents_numbers() -> None:
    made = variant("label curve")
    words = page("label curve").words
    for row in made["label_curve"]["rows"]:
        parts = [row[kind] for kind in ("clean", "seen", "unseen")]
        cells = " ".join(
            f"{p['value']:.4f}{'' if row['repair'] == 'plain' else ' ' + ends('top1', p['ci'])}"
            for p in parts
        )
        assert f"{row['images']} {CALLED[row['repair']]} {cells}" in words
    for report, text in said(typed(made)):
        sentence = made["label_curve"]["crossings"][0]
        assert (sentence if report != "text" else sentence.replace("α", "alpha")) in text, report
        assert ("By number of labelled images" in text) == (
            report in ("html", "markdown", "step summary", "card")
        )
    shown = terminal(typed(made))
    assert re.search(r"25 +α a channel +0\.8010 +0\.4780 ↓ +0\.5640 ↓", shown)
    assert re.search(r"1500 +α a layer +0\.8222 ↑", shown)
    assert "3000 images that took no part" in words


def test_sections_stand_in_the_order_of_the_question() -> None:
    found = [a["id"] for a in page("label curve").all("section")]
    assert found[:4] == ["conditions", "repairs", "labels", "curves"]
    linked = [a["href"] for a in page("label curve").all("a")]
    assert linked[:4] == ["#conditions", "#repairs", "#labels", "#curves"]
    titles = ("Conditions", "α beside what is free", "By number", "Next", "Curve", "Each shift", "Guards")
    text = render_markdown(typed(variant("label curve")))
    order = [text.index(f"## {title}") for title in titles]
    assert order == sorted(order)
    folded = render_summary(typed(variant("label curve")), "out").partition("<details>")[2]
    assert "## Guards" in folded
    assert "## Conditions" not in folded


def test_a_free_repair_costs_nothing_and_is_no_point_of_the_curve() -> None:
    for name in ("shift", "repairs"):
        words = page(name).words
        assert "None: γ and β fold into the convolutions" in words
        assert "measured, chosen" not in words
        assert "norm layers have tuned γ and β" in words
        assert "are as they were" not in words
        assert "kept the layers as" not in card(typed(variant(name)))
    assert "measured, chosen" in page("shift, by loss").words


def test_without_any_of_it_nothing_is_said_of_it() -> None:
    for report, words in said(typed(made_result(made_scores()))):
        for word in ("Conditions", "unseen", "Worse in", "γ", "labelled images", "Guards"):
            assert word not in words, report


def test_the_terminal_is_80_columns_wide() -> None:
    for name in ("label curve", "shift, by loss", "shift, kept"):
        text = terminal(typed(variant(name)), width=80, verbose=True)
        assert max(map(len, text.splitlines())) <= 80
        for metrics in variant(name)["shift"]["conditions"]:
            assert f"{metrics['baseline'][variant(name)['metric']]:.4f}" in text
        assert "…" not in text  # nothing is cut


def test_hostile_names_of_conditions_are_text() -> None:
    made = variant("hostile")
    found = Page(render_html(typed(made), replace(stored(), examples=made_examples(HOSTILE[:5])))[0])
    assert "<script>alert(1)</script>" not in found.source
    assert found.words.count("<script>alert(1)</script>") >= 4
    assert not [attrs for tag, attrs in found.tags if tag in ("bold", "script")]
    for text in (found.source, to_html(typed(made)), to_text(typed(made)), terminal(typed(made))):
        assert "\u202e" not in text
        assert "\x07" not in text
    for text in (render_markdown(typed(made)), card(typed(made)), render_summary(typed(made), "out")):
        assert "<script>" not in text
        assert "<b>" not in text
    assert "<script>" not in to_html(typed(made))


# --- pictures --------------------------------------------------------------------------------


def test_examples_are_kept_with_the_scores(tmp_path: Path) -> None:
    write_scores(stored(), tmp_path)
    found = read_scores(tmp_path)
    assert found is not None
    assert [(e.condition, e.severity) for e in found.examples] == [
        (e.condition, e.severity) for e in stored().examples
    ]
    assert all(
        np.array_equal(a.pixels, b.pixels) for a, b in zip(found.examples, stored().examples, strict=True)
    )
    assert not [key for key in to_arrays(made_scores()) if key.startswith("example")]  # as files before it


def test_each_condition_has_a_row_of_pictures() -> None:
    images = [image for image in page("shift").all("img") if str(image["alt"]).startswith("image ")]
    assert [image["alt"] for image in images] == [
        f"image {i}: {name}{f', severity {levels[0]}' if levels else ''}"
        for name, levels, *_ in CONDITIONS
        for i in (1, 2, 3, 4)
    ]  # fmt: skip
    assert len({image["src"] for image in images}) == 20
    without = Page(render_html(typed(variant("shift")), made_scores())[0])
    assert "look like" not in without.words


# --- what is next ----------------------------------------------------------------------------


def test_other_images_are_looked_at_under_the_same_shifts() -> None:
    document = typed(variant("shift"))
    assert shift_settings(document.shift) == ("contrast:3,gaussian-noise:2-4,fog,jpeg:1,jpeg:3,jpeg:5",)
    commands = {step.command: step.caption for step in summarise_tune(document, "out").next}
    (check,) = (c for c in commands if c.startswith("alphatune evaluate out --data OTHER_IMAGES"))
    assert "--shift contrast:3,gaussian-noise:2-4,fog,jpeg:1,jpeg:3,jpeg:5" in check
    (export,) = (c for c in commands if c.startswith("alphatune export"))
    assert "no cost" in commands[export]
    assert not [c for c in commands if "common" in c]


@pytest.mark.parametrize("kept", [False, True])
def test_after_images_as_they_are_come_shifts(kept: bool) -> None:
    steps = summarise_tune(typed(made_result(made_scores(), kept=kept)), "out").next
    assert len(steps) <= 3
    (step,) = (step for step in steps if "--shift common" in step.command)
    assert step.caption == "find out what α is worth when cameras or lighting change"


def test_what_these_tests_draw_is_what_a_tune_writes() -> None:
    from jsonschema import Draft202012Validator

    from alphatune.results.schemas import read_schema

    validator = Draft202012Validator(read_schema("tune"))
    for name in (*SHIFTS, "shift, kept", "repairs", "label curve"):
        errors = [f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(variant(name))]
        assert errors == [], name
