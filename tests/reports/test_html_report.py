"""report.html: complete, well formed, self-contained, and safe whatever things are called."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from made_up_results import (
    HOSTILE,
    fronted,
    kept_runs,
    made_result,
    made_scores,
    refined,
    scored,
    single_run,
    typed,
    written,
)

from alphatune.reports.changes import NEW
from alphatune.reports.drawings import draw_all
from alphatune.reports.html import render_html
from alphatune.reports.markdown import render_markdown
from alphatune.reports.palette import DARK, LIGHT, READABLE, contrast
from alphatune.reports.scores import StoredScores
from alphatune.reports.summary import summarise_tune
from alphatune.settings.naming import as_options

DRAWS_FIGURES = True

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """A page taken apart, and whether every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.within: list[tuple[str, str]] = []  # (innermost tag, text)
        self.source = text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), tag
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.within.append((self.open[-1], data))
            self.text.append(data)

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag in names]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def headings(self) -> list[str]:
        return [" ".join(text.split()) for tag, text in self.within if re.fullmatch(r"h[1-6]", tag)]


@cache
def variant(name: str) -> tuple[dict[str, Any], StoredScores | None]:
    stored = made_scores()
    document = made_result(stored)
    if name == "tuned":
        return document, stored
    if name == "hostile":
        stored = made_scores(classes=len(HOSTILE), names=HOSTILE, pictures=12)
        thumbnails = tuple(
            replace(t, name=HOSTILE[i % len(HOSTILE)]) for i, t in enumerate(stored.thumbnails)
        )
        document = refined(made_result(stored))
        document["model"] |= {"source": HOSTILE[0], "checkpoint": "\udcff.pth", "weights_key": HOSTILE[2]}
        document["chosen"]["alpha"] = {HOSTILE[0]: 0.1, HOSTILE[1]: 0.2, "\udcff": 0.3}
        return document | {"warnings": list(HOSTILE)}, replace(stored, thumbnails=thumbnails)
    if name == "kept":
        return made_result(stored, kept=True, metric="top1"), kept_runs(stored)
    if name == "kept, nothing better":
        document = made_result(stored, kept=True)
        return document | {"best": dict.fromkeys(document["best"], 0.0)}, single_run(stored)
    if name == "only a temperature":
        found = refined(made_result(stored))
        found["chosen"]["alpha"] = 0.0
        runs = stored.runs | {
            "chosen": replace(stored.chosen, predicted=stored.baseline.predicted, top1=stored.baseline.top1)
        }
        return found, replace(stored, runs=runs, thumbnails=())
    if name == "finer":
        return refined(document), stored
    if name == "some layers":
        return fronted(document), stored
    if name == "by channel":
        return refined(document, by_channel=True, temperature=1.0), stored
    if name == "group norm":
        curve = [p | {"alpha": 1 - p["alpha"]} for p in document["curve"]]
        best = {metric: 1 - alpha for metric, alpha in document["best"].items()}
        chosen = document["chosen"] | {"alpha": 1 - 0.12}
        return document | {
            "baseline_alpha": 1.0,
            "curve": curve,
            "best": best,
            "chosen": chosen,
            "search": None,
        }, stored
    if name == "without scores":
        return document, None
    if name == "by a score":
        return scored(document, HOSTILE[0]), None
    if name == "one example":
        stored = made_scores(1, 1)
        return made_result(stored) | {"gain": None}, stored
    if name == "many classes":
        stored = made_scores(5000, 1000)
        return made_result(stored), stored
    raise AssertionError(name)


VARIANTS = (
    "tuned", "hostile", "kept", "kept, nothing better", "only a temperature", "finer", "some layers", "by channel",
    "group norm", "without scores", "by a score", "one example", "many classes",
)  # fmt: skip


@cache
def page(name: str) -> Page:
    document, stored = variant(name)
    return Page(render_html(typed(document), stored)[0])


each = pytest.mark.parametrize("name", VARIANTS)


# --- the form --------------------------------------------------------------------------------


@each
def test_nothing_is_loaded_and_nothing_runs(name: str) -> None:
    found = page(name)
    assert not found.all("script", "link", "iframe", "object", "embed", "base", "form", "use-credentials")
    for _tag, attrs in found.tags:
        assert not [key for key in attrs if key.startswith("on")]
        if source := attrs.get("src"):
            assert source.startswith("data:image/")
        if target := attrs.get("href"):
            assert target.startswith("#") or target == "https://arxiv.org/abs/1906.03548"
        assert "url(" not in (attrs.get("style") or "") or "url(#" in (attrs.get("style") or "")
    style = found.source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (a["content"] for a in found.all("meta") if a.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@each
def test_it_can_be_read_by_anyone(name: str) -> None:
    found = page(name)
    assert found.source.lstrip().startswith("<!doctype html>")
    assert found.all("html")[0]["lang"] == "en"
    assert "width=device-width" in str(next(a for a in found.all("meta") if a.get("name") == "viewport"))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for image in found.all("img"):
        assert image["alt"]
    for figure in found.all("svg"):
        if figure.get("aria-hidden") == "true":  # of a legend, beside its words
            continue
        assert figure["role"] == "img"
        assert len(figure["aria-label"] or "") > 20
    assert all(a.get("scope") in ("row", "col") for a in found.all("th"))
    for box in found.tags:
        if "scroll" in (box[1].get("class") or "").split():
            assert box[1]["tabindex"] == "0"
            assert box[1]["aria-label"]
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for a in found.all("a", "use")} | {
        f"#{i}" for _, a in found.tags for v in a.values() for i in re.findall(r"url\(#([^)]+)\)", v or "")
    }
    assert {t.removeprefix("#") for t in targets if t and t.startswith("#")} <= set(ids)
    labels = {a["aria-labelledby"] for a in found.all("section")}
    assert labels <= set(ids)


@pytest.mark.parametrize("name", ["hostile", "kept", "by channel"])
def test_the_same_result_gives_the_same_page(name: str) -> None:
    document, stored = variant(name)
    assert render_html(typed(document), stored)[0] == page(name).source


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(palette: dict[str, str]) -> None:
    for text, grounds in READABLE.items():
        for ground in grounds:
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for mark in ("before", "tuned", "worse", "optimum"):  # marks of a figure
        assert contrast(palette[mark], palette["card"]) >= 3
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_every_colour_of_the_page_is_of_the_palette() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)  # figures are told apart by value
    source = page("finer").source
    root = source.partition("*, *::before")[0]
    assert f"--ink: {LIGHT['ink']};" in root
    assert f"--ink: {DARK['ink']};" in root
    rest = source.partition("*, *::before")[2]
    assert not re.findall(r"(?<!&)#[0-9a-f]{3,8}\b(?=[;\"])", rest)
    assert set(re.findall(r"var\(--([a-z-]+)\)", rest)) <= LIGHT.keys()


# --- what is called strangely ----------------------------------------------------------------


def test_hostile_names_are_text() -> None:
    found = page("hostile")
    assert "<script>alert(1)</script>" not in found.source
    assert "<script>alert(1)</script>" in found.words
    assert "{{ 7 * 7 }}" in found.words
    assert "\u202e" not in found.source
    assert "\x07" not in found.source
    found.source.encode()  # no half of a surrogate pair is left
    labels = [text for tag, text in found.within if tag == "text"]
    assert any(label.startswith("<script>alert(1)") for label in labels)
    assert any("$x^2$" in label for label in labels)  # not as mathematics
    assert not [attrs for tag, attrs in found.tags if tag == "bold"]


def test_a_score_of_ones_own_may_be_called_anything() -> None:
    found = page("by a score")
    assert "<script>alert(1)</script> 0.62" not in found.source
    assert "<script>alert(1)</script>" in found.words


# --- what it says ----------------------------------------------------------------------------


def test_numbers_are_those_of_the_result() -> None:
    document, stored = variant("tuned")
    words = page("tuned").words
    for metric in ("top1", "top5", "loss", "ece"):
        before, after = document["baseline"][metric], document["chosen"]["metrics"][metric]
        change = after - before
        word = "the same"
        if change:
            better = (change > 0) == (metric in ("top1", "top5"))
            share = metric in ("top1", "top5")
            much = f"{100 * change:+.2f} points" if share else f"{change:+.4f}"
            much = f"{100 * change / before:+.1f} %" if metric == "loss" else much
            low, high = document["chosen"]["ci"][metric]
            word = f"{much} {'undecided' if low <= 0 <= high else 'better' if better else 'worse'}"
        assert f"{before:.4f} → {after:.4f} {word}" in words
    for point in document["curve"]:
        assert f"{point['alpha']:g} {point['top1']:.4f}" in words
    low, high = document["curve"][2]["ci"]["loss"]
    assert f"{low:+.4f} … {high:+.4f}" in words
    assert "loss -0.0123 (95 % interval -0.0201 to -0.0045), p = 0.0021" in words
    assert "1.10 times that of the plain model, 1.25 times" in words
    assert stored is not None
    right = (~stored.baseline.top1 & stored.chosen.top1).sum()
    assert f"{right} became right" in words
    for text in (
        "ab" * 32,
        "cd" * 32,
        "net.pth",
        "a warning with <tags> & ampersands",
        "head.bn",
        "one position",
        "1 image left out",
        "bad.jpg cut off",
    ):
        assert text in words


@each
def test_it_begins_with_the_summary(name: str) -> None:
    """Decision, why, what else there is, gates, what to do next: before any figure or statistics."""
    document = typed(variant(name)[0])
    summary = summarise_tune(document)
    found = page(name)
    assert found.headings()[0] == summary.decision
    first = " ".join(found.source.partition('<nav aria-label="Sections"')[0].partition("<h1>")[2].split())
    words = Page(f"<main><h1>{first}</main>").words
    said = [as_options(sentence).replace("`", "") for sentence in (summary.sentence, *summary.missed)]
    said += [f"{step.caption} {step.command}" for step in summary.next]
    said += [w.interval_text for w in summary.gains if w.label == NEW and summary.after_name]
    for text in said:
        assert without_space(text) in without_space(words)
    assert "p =" not in words
    assert "folds" not in words


def without_space(text: str) -> str:
    """Words beside code have a space between them, or none."""
    return "".join(text.split())


def test_a_temperature_has_its_own_gain_beside_that_of_alpha() -> None:
    words = page("finer").words
    expected = "-0.0123 (95 %: -0.0201 to -0.0045)"
    assert f"expected on new images: α beyond a temperature {expected}" in words
    assert f"expected on new images: temperature {expected}" in words


def test_an_interval_with_zero_in_it_may_be_luck() -> None:
    document, _ = variant("kept")
    document = document | {"gain": document["gain"] | {"ci": [-0.0045, 0.0291], "significant": False}}
    words = Page(render_html(typed(document), None)[0]).words
    assert "(95 %: -0.45 to +2.91; may be luck)" in words
    assert "may be luck)" not in page("tuned").words


def test_gates_say_why_they_passed_or_failed() -> None:
    document, _ = variant("tuned")
    gates = [
        {"name": "min-gain", "limit": 0.1, "value": 0.0, "passed": False, "reason": "too small <b>: `min_gain`"},
        {"name": "max-regression top1", "limit": 0.1, "value": 0.0, "passed": True, "reason": "top1 stays"},
    ]  # fmt: skip
    words = Page(render_html(typed(document | {"gates": gates}), None)[0]).words
    assert "✗ failed min-gain : too small <b>: --min-gain" in words
    assert "✓ passed max-regression top1 : top1 stays" in words
    assert "Gates" not in page("tuned").words


def test_statistics_are_in_a_fold() -> None:
    for name in ("tuned", "finer"):
        (fold,) = re.findall(r'<section id="statistics".*?</section>', page(name).source, re.DOTALL)
        assert "<details>" in fold.partition("<p>")[0]
        assert "p = 0.0021" in fold
        assert "p = 0.0021" not in page(name).source.replace(fold, "")


def test_figures_of_a_section_share_one_legend() -> None:
    found = page("tuned")
    lists = re.findall(r'<ul class="legend".*?</ul>', found.source, re.DOTALL)
    assert len(lists) == 3
    labels = [re.findall(r"</svg>(.*?)</li>", each) for each in lists]
    assert labels[0][-1] == "chosen: α = 0.12"
    for some in labels:
        assert len(some) == len(set(some)) >= 4
    drawn = [" ".join(text.split()) for tag, text in found.within if tag == "text"]
    assert not {"measured", "interpolated", "gap to confidence", "better"} & set(drawn)


def test_points_of_fewer_examples_are_marked_in_the_table() -> None:
    document, _ = variant("tuned")
    curve = [p | {"n": 200 if p["alpha"] > 0.12 else p["n"]} for p in document["curve"]]
    found = Page(render_html(typed(document | {"curve": curve}), None)[0])
    (row,) = re.findall(r'<tr class="muted"><th scope="row">([\d.]+)</th>', found.source)
    assert row == "0.15"
    assert "not comparable, 200 examples" in found.words
    assert "not comparable" not in page("tuned").words


def test_it_says_nothing_of_where_it_was_written() -> None:
    """A page is taken from the cache for a run that writes elsewhere."""
    words = page("tuned").source
    assert "/tmp/secret" not in words
    assert "--overwrite" not in words
    assert "--workers" not in words
    assert "ef" * 32 not in words  # the hash of run.toml
    assert "alphatune tune my.py:net" in words
    document, stored = variant("tuned")
    other = document | {
        "command_line": document["command_line"].replace("/tmp/secret", "/elsewhere") + " --min-gain 0.1 --no-cache",
        "cache": {"key": "00" * 32, "measured": "2026-01-01T00:00:00+00:00"},
        "artifacts": [*document["artifacts"], {"path": "report.html", "sha256": "11" * 32}],
    }  # fmt: skip
    assert render_html(typed(other), stored)[0] == words


def test_sections_are_those_that_there_is_something_for() -> None:
    sections = {name: {a["id"] for a in page(name).all("section")} for name in VARIANTS}
    always = {"curves", "cost", "layers", "statistics", "provenance"}
    assert all(always <= found for found in sections.values())
    assert sections["tuned"] == always | {"reliability", "classes", "images"}
    assert sections["kept, nothing better"] == always | {"reliability"}
    assert sections["finer"] == sections["tuned"] | {"companions"}
    assert sections["without scores"] == sections["by a score"] == always | {"missing"}
    assert "scores.npz" in page("without scores").words
    for name in VARIANTS:
        linked = {a["href"] for a in page(name).all("a")}
        assert {f"#{s}" for s in sections[name] - {"missing"}} <= linked


def test_alpha_0_that_is_kept_is_compared_with_the_best_other() -> None:
    words = page("kept").words
    assert "α = 0.06 (not chosen)" in words
    assert "On these images: α = 0; α = 0.06 looked best, but is not taken" in words
    assert "None: the norm layers are those of the plain model" in words
    assert "no other α is better" in page("kept, nothing better").words


def test_a_temperature_alone_moves_no_prediction() -> None:
    words = page("only a temperature").words
    assert "No prediction of any class became right or wrong" in words
    assert "0 became right and 0 wrong" in words
    assert "T = 1.25 is part of the tuned model" in words
    assert page("only a temperature").headings()[0] == "Use α = 0 and temperature 1.25"


def test_all_classes_are_there_and_those_not_drawn_are_counted() -> None:
    found = page("many classes")
    assert "All 1000 classes as a table" in found.words
    (counted,) = re.findall(
        r"Not drawn in top-1: (\d+) worse, (\d+) better, (\d+) the same; in loss", found.words
    )
    assert sum(map(int, counted)) == 970
    assert "With 1000 classes, 1000 intervals are looked at" in found.words
    assert "Bonferroni" in found.words
    assert len(found.source.encode()) < 3_000_000


def test_frequent_moves_are_counted() -> None:
    _, stored = variant("tuned")
    assert stored is not None
    before, after = stored.baseline, stored.chosen
    rows = np.flatnonzero(before.predicted != after.predicted)
    moves = Counter(
        zip(
            before.targets[rows].tolist(),
            before.predicted[rows].tolist(),
            after.predicted[rows].tolist(),
            strict=True,
        )
    )
    (truth, was, now), count = moves.most_common(1)[0]
    assert count > 1
    assert f"class {truth} class {was} class {now} {count} " in page("tuned").words
    assert "Most frequent moves" not in page("only a temperature").words


def test_pictures_show_what_was_predicted() -> None:
    _, stored = variant("tuned")
    assert stored is not None
    images = page("tuned").all("img")
    assert len(images) == len(stored.thumbnails)
    assert all(image["class"] == "tiny" for image in images)
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in images)
    thumbnail = stored.thumbnails[0]
    before, after = (
        stored.class_name(int(run.predicted[thumbnail.row])) for run in (stored.baseline, stored.chosen)
    )
    (own,) = (image for image in images if str(image["alt"]).startswith(f"{thumbnail.name}:"))
    assert str(own["alt"]).endswith(f"predicted {before} before and {after} after")
    large = made_scores(side=96)
    photos = Page(render_html(typed(made_result(large)), large)[0]).all("img")
    assert all("class" not in photo for photo in photos)
    assert all(str(photo["src"]).startswith("data:image/jpeg;base64,") for photo in photos)


def test_what_these_tests_draw_is_what_a_tune_writes() -> None:
    """Made-up results fit the schema of real ones."""
    from jsonschema import Draft202012Validator

    from alphatune.results.schemas import read_schema

    validator = Draft202012Validator(read_schema("tune"))
    for name in ("tuned", "kept", "finer", "some layers", "by channel", "group norm", "by a score"):
        errors = [
            f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(variant(name)[0])
        ]
        assert errors == [], name


@pytest.mark.parametrize("name", ["tune-before-the-search", "tune-before-gates"])
def test_what_an_earlier_version_wrote_is_drawn(name: str) -> None:
    document = typed(written(f"earlier/{name}"))
    assert "alphatune report" in render_html(document, None)[0]
    assert "## Curve" in render_markdown(document)


def test_a_gain_beyond_a_temperature_is_called_that() -> None:
    """Beside a loss that fell by a temperature, "not significant" would seem to be about the temperature."""
    document = refined(made_result(made_scores()))
    for joint in (True, False):
        document["refinement"]["with_temperature"] = joint
        for text in (render_html(typed(document), None)[0], render_markdown(typed(document))):
            assert (" beyond a temperature" in text) == joint


def test_sets_of_layers_are_shown_with_the_budget_and_what_was_chosen() -> None:
    document = fronted(made_result(made_scores()))
    drawing = draw_all(typed(document), made_scores(), None).front
    assert drawing is not None
    assert {key.label for key in drawing.keys} == {"α in fewer and fewer layers", "plain", "budget", "chosen"}
    text = render_markdown(typed(document))
    assert "| 3 | 1.42 |" in text
    assert "| 2 / 1 | 1.08 |" in text
    assert text.count("| over the budget |") == 2
    assert "| ruled out by the guard |" in text
    assert "The budget is 1.1. α in 1 of 3 layers is chosen: 1.08 added up, 1.09 when timed." in text
    assert "onnxruntime, batch of 32, 1 thread" in text
    assert "1.09 when timed" in page("some layers").words
    none = render_markdown(typed(fronted(made_result(made_scores()), chosen=None)))
    assert "No set of layers is deployed." in none
    one = document["refinement"]["front"]
    one["sets"] = one["sets"][:1]
    one |= {"chosen": 0}
    assert draw_all(typed(document), made_scores(), None).front is None
    assert "figures/gain-by-cost.svg" not in render_markdown(typed(document))
