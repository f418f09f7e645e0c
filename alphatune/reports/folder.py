"""Write the reports of a tune into its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphatune.reports.artifacts import list_artifacts, write_result
from alphatune.reports.curve import curve_frame
from alphatune.reports.drawings import FOLDER, Drawn, write_figures
from alphatune.reports.html import render_html
from alphatune.reports.markdown import render_markdown
from alphatune.reports.scores import StoredScores, write_scores

PAGE = "report.html"


def write_reports(
    folder: Path, document: dict[str, Any], scores: StoredScores | None = None
) -> dict[str, Any]:
    """Write scores.npz, curve.csv, report.md, report.html with its figures, and, last, result.json.

    Args:
        scores: of every example; a score of the user's own has none.

    Returns:
        What ``write_result`` wrote.
    """
    if scores is not None:
        write_scores(scores, folder)
    curve_frame(document).to_csv(folder / "curve.csv", index=False)
    (folder / "report.md").write_text(render_markdown(document), encoding="utf-8")
    page, drawn = render_html({**document, "artifacts": list_artifacts(folder)}, scores)
    (folder / PAGE).write_text(page, encoding="utf-8")
    write_figures(drawn, folder / FOLDER)
    return write_result(folder, document)


def file_names(drawn: Drawn) -> list[str]:
    """What ``write_figures`` writes, relative to the tuned folder."""
    return [f"{FOLDER}/{drawing.name}.{kind}" for drawing in drawn.all() for kind in ("svg", "png")]
