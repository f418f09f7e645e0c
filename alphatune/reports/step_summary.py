"""The summary of a CI run: the Markdown report where the runner shows it beside the log."""

from __future__ import annotations

import os
from pathlib import Path

from alphatune.reports.markdown import escape, render_markdown
from alphatune.results.tune import Tuned

#: GitHub drops a step's whole summary if it is longer than 1 MiB
MOST_BYTES = 900_000
VARIABLE = "GITHUB_STEP_SUMMARY"
_CUT = "\n\n*Cut here: the summary of a step may not be longer. The whole report is in report.md.*\n"


def append_step_summary(document: Tuned) -> Path | None:
    """Append the report to the file that ``$GITHUB_STEP_SUMMARY`` names; None where it names none.

    A summary that cannot be written does not fail the job that it sums up.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        with Path(path).open("a+b") as file:
            room = MOST_BYTES - file.seek(0, os.SEEK_END)
            file.write(cut(render_summary(document), room))
    except OSError:
        return None
    return Path(path)


def render_summary(document: Tuned) -> str:
    """report.md, the gates before it; figures lie beside the report, where a summary cannot show them."""
    lines = []
    for gate in document.gates:
        mark = "✅ passed" if gate.passed else "❌ **failed**"
        lines.append(f"| {escape(gate.name)} | {mark} | {escape(gate.reason)} |\n")
    gates = "\n## Gates\n\n| gate | | |\n|---|---|---|\n" + "".join(lines) if lines else ""
    title, _, rest = render_markdown(document).partition("\n")
    rest = "\n".join(line for line in rest.splitlines() if not line.startswith("!["))
    return f"{title}: {escape(document.model.source)}\n{gates}{rest}\n\n"


def cut(text: str, room: int) -> bytes:
    """The text in at most so many bytes of UTF-8, cut at the end of a line, and saying so."""
    data = text.encode()
    if len(data) <= room:
        return data
    end = data.rfind(b"\n", 0, max(0, room - len(_CUT.encode())))
    return data[:end] + _CUT.encode() if end > 0 else b""
