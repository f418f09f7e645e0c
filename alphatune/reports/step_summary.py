"""The summary of a CI run: the report where the runner shows it beside the log, all but its first part folded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from alphatune.reports.markdown import render_summary
from alphatune.results.tune import Tuned

#: GitHub drops a step's whole summary if it is longer than 1 MiB
MOST_BYTES = 900_000
VARIABLE = "GITHUB_STEP_SUMMARY"
_CUT = "\n\n</details>\n\n*Cut here: the summary of a step may not be longer. The whole report is in report.md.*\n"


def append_step_summary(document: Tuned, folder: str) -> Path | None:
    """Append the report to the file that ``$GITHUB_STEP_SUMMARY`` names; None where it names none.

    A summary that cannot be written does not fail the job that it sums up.

    Args:
        folder: the tuned folder, as commands are to name it.
    """
    return _append(render_summary(document, folder)) if os.environ.get(VARIABLE) else None


def append_failure(code: int, message: str) -> Path | None:
    """The same of a tune that ended with an error: a reader of the run need not look for it in the log."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", message)), default=2))
    return _append(f"# alphatune tune\n\n❌ **Exit code {code}**\n\n{fence}text\n{message}\n{fence}\n")


def _append(text: str) -> Path | None:
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        with Path(path).open("a+b") as file:
            room = MOST_BYTES - file.seek(0, os.SEEK_END)
            file.write(cut(text, room))
    except OSError:
        return None
    return Path(path)


def cut(text: str, room: int) -> bytes:
    """The text in at most so many bytes of UTF-8, cut at the end of a line, and saying so."""
    data = text.encode()
    if len(data) <= room:
        return data
    end = data.rfind(b"\n", 0, max(0, room - len(_CUT.encode())))
    return data[:end] + _CUT.encode() if end > 0 else b""
