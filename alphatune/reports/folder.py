"""Write the reports of a tune into its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from alphatune.reports.artifacts import list_artifacts, write_result
from alphatune.reports.curve import curve_frame
from alphatune.reports.drawings import FOLDER, Drawn, write_figures
from alphatune.reports.html import render_html
from alphatune.reports.markdown import render_markdown
from alphatune.reports.scores import StoredScores, write_scores
from alphatune.results.tune import ScoreTuneDocument, Tuned, TuneDocument

PAGE = "report.html"

_D = TypeVar("_D", TuneDocument, ScoreTuneDocument)


def write_reports(folder: Path, document: _D, scores: StoredScores | None = None) -> _D:
    """Write scores.npz, curve.csv, report.md, report.html with its figures, and, last, result.json.

    Args:
        scores: of every example; a score of the user's own has none.

    Returns:
        What ``write_result`` wrote.
    """
    if scores is not None:
        write_scores(scores, folder)
    curve_frame(document).to_csv(folder / "curve.csv", index=False)
    write_figures(write_pages(folder, document, scores), folder / FOLDER)
    return write_result(folder, document)


def write_pages(folder: Path, document: Tuned, scores: StoredScores | None) -> Drawn:
    """Write report.md and report.html; returns the figures in the latter."""
    (folder / "report.md").write_text(render_markdown(document), encoding="utf-8")
    page, drawn = render_html(replace(document, artifacts=list_artifacts(folder)), scores)
    (folder / PAGE).write_text(page, encoding="utf-8")
    return drawn


def file_names(drawn: Drawn) -> list[str]:
    """What ``write_figures`` writes, relative to the tuned folder."""
    return [f"{FOLDER}/{drawing.name}.{kind}" for drawing in drawn.all() for kind in ("svg", "png")]
