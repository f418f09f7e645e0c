"""Results in notebooks and interactive sessions: decision and figures, whatever names hold, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import TESTS
from made_up_results import HOSTILE, made_result, made_scores, typed
from msgspec.structs import replace
from tiny import tiny

import alphatune
from alphatune.reports.summary import summarise_tune
from alphatune.results.bench import BenchDocument
from alphatune.results.comparison import CompareDocument
from alphatune.results.diagnosis import DoctorDocument
from alphatune.results.document import Document
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.export import ExportDocument
from alphatune.results.inspection import InspectDocument
from alphatune.results.page import ReportDocument
from alphatune.results.plan import ImagesPlan
from alphatune.results.training import TrainDocument

WRITTEN = TESTS / "written"
KINDS: dict[str, Any] = {
    "bench": BenchDocument, "compare": CompareDocument, "doctor": DoctorDocument, "evaluate": EvaluateDocument,
    "export": ExportDocument, "inspect": InspectDocument, "report": ReportDocument, "train": TrainDocument,
}  # fmt: skip


class Page(HTMLParser):
    """Elements that are balanced, their names, and the text; what has an end tag of its own only in SVG."""

    EMPTY = ("circle", "path", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.open.append(tag)
        assert not [name for name, value in attrs if name.startswith("on") or "url(" in (value or "")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.EMPTY
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


#: nothing that loads, runs, links or reaches the rest of the page
ALLOWED = {
    "div", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "b", "svg", "text", *Page.EMPTY,
}  # fmt: skip


def shown(result: Any) -> Page:
    html = result._repr_html_()
    assert len(html) < 20_000
    assert not re.search(r"[^-]color:|background", html)  # those of the notebook hold, light or dark
    page = Page(html)
    assert page.names <= ALLOWED
    return page


def read(file: Path) -> Document | None:
    document = json.loads(file.read_text(encoding="utf-8"))
    command = document.get("command")
    if command == "tune":
        return typed(document)
    if command == "dry-run" and file.stem == "dry-run-tune":
        return msgspec.convert(document, ImagesPlan)
    found: Document | None = msgspec.convert(document, KINDS[command]) if command in KINDS else None
    return found


RESULTS = {file.stem: document for file in sorted(WRITTEN.glob("*.json")) if (document := read(file))}


@pytest.mark.parametrize("name", RESULTS)
def test_whatever_a_command_found(name: str) -> None:
    document = RESULTS[name]
    page = shown(document)
    assert len(page.text) > 20
    assert "None" not in page.text
    for warning in getattr(document, "warnings", ()):
        assert " ".join(warning.split()) in page.text


@pytest.mark.parametrize("kept", [False, True])
def test_a_tune_shows_its_decision_first_and_both_figures(kept: bool) -> None:
    document = typed(made_result(made_scores(), kept=kept))
    found, page = summarise_tune(document), shown(document)
    assert page.text.startswith(found.decision)
    assert found.sentence in page.text
    for figure in found.figures:
        assert f"{figure.before:.4f} {figure.after:.4f}" in page.text
    assert {"svg", "polyline"} <= page.names
    text = alphatune.to_text(document)
    assert text.startswith(found.decision.replace("α", "alpha"))
    assert all(f"{figure.before:.4f}" in text for figure in found.figures)
    assert max(map(len, text.splitlines()[4:9])) < 80


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_of_any_kind(hostile: str) -> None:
    inspected = read(WRITTEN / "inspect.json")
    assert isinstance(inspected, InspectDocument)
    layer = replace(inspected.layers[0], name=hostile, healthy=False, health=hostile)
    tuned = typed(made_result(made_scores()))
    for document in (
        replace(inspected, layers=(layer,), warnings=(hostile,)),
        replace(tuned, warnings=(hostile,), model=replace(tuned.model, source=hostile)),
    ):
        text = shown(document).text
        letters = re.findall(r"\w{2,}", hostile)
        assert all(word in text for word in letters)
        assert "\u202e" not in text
        assert "\u202e" not in alphatune.to_text(document)


def test_many_layers_are_cut_short() -> None:
    inspected = read(WRITTEN / "inspect.json")
    assert isinstance(inspected, InspectDocument)
    layers = tuple(replace(inspected.layers[0], name=f"layer{i}") for i in range(1000))
    html = replace(inspected, layers=layers)._repr_html_()
    assert "900 more" in html
    assert len(html) < 60_000


@pytest.fixture(scope="module")
def result() -> Any:
    torch.manual_seed(0)
    model = tiny().train()
    for _ in range(5):
        model(torch.randn(16, 3, 12, 12))
    batches = [(torch.randn(30, 3, 12, 12), torch.randint(0, 4, (30,))) for _ in range(4)]
    return alphatune.tune(model.eval(), batches, alphas="0,0.1,0.3", metric="loss", temperature=True)


def test_the_result_of_the_library(result: Any) -> None:
    page = shown(result)
    assert page.text.startswith("Keep α" if result.decision.reason.startswith("no") else page.text[:3])
    assert f"{result.baseline.loss:.4f}" in page.text
    assert f"{result.chosen.loss:.4f}" in page.text
    assert repr(result) == str(result) == alphatune.to_text(result)
    assert f"{result.chosen.loss:.4f}" in repr(result)
    assert len(repr(result)) < 3000


def test_a_score_of_ones_own(result: Any) -> None:
    def margin(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.gather(1, targets[:, None])[:, 0]

    batches = [(torch.randn(30, 3, 12, 12), torch.randint(0, 4, (30,)))]
    found = alphatune.tune_score(tiny().eval(), batches, margin, alphas="0,0.1")
    assert "margin" in shown(found).text
    assert "margin" in repr(found)


def test_a_notebooks_formatter_takes_it(result: Any) -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(result)
    assert data["text/html"] == result._repr_html_()
    assert data["text/plain"] == repr(result)


def test_a_document_is_shown_without_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from alphatune.results.stored import decode_measured; "
        f"path = Path({str(WRITTEN / 'tune.json')!r}); document = decode_measured(path.read_bytes(), path); "
        "assert '<svg' in document._repr_html_(); "
        "print({'torch', 'matplotlib', 'pandas'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
