"""Write the reports of a tune into its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphatune.reports.artifacts import write_result
from alphatune.reports.curve import curve_frame
from alphatune.reports.depth import FILE, draw_depth
from alphatune.reports.markdown import render_markdown
from alphatune.reports.scores import StoredScores, write_scores


def write_reports(
    folder: Path, document: dict[str, Any], scores: StoredScores | None = None
) -> dict[str, Any]:
    """Write scores.npz, curve.csv, report.md, where α differ by layer their figure, and, last, result.json.

    Args:
        scores: of every example; a score of the user's own has none.

    Returns:
        What ``write_result`` wrote.
    """
    if scores is not None:
        write_scores(scores, folder)
    curve_frame(document).to_csv(folder / "curve.csv", index=False)
    (folder / "report.md").write_text(render_markdown(document), encoding="utf-8")
    if isinstance(alphas := document["chosen"]["alpha"], dict):
        draw_depth(alphas, folder / FILE)
    return write_result(folder, document)
