"""What goes to the terminal: results to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alphatune.cli.stderr import tell
from alphatune.cli.usage import as_options
from alphatune.core.progress import Display

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.metrics import Metrics
    from alphatune.results.model import Source

BARS = "▁▂▃▄▅▆▇█"


def stdout() -> Console:
    """For the result. Wide when piped, so that no table is cut to 80 columns."""
    return Console(width=None if is_terminal(sys.stdout) else 140, highlight=False)


class _Stderr(Console):
    """Says nothing more when its reader has left, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        del self._buffer[:]


def stderr() -> Console:
    """For everything else; above the bar, where one is shown."""
    bars = sys.modules.get("alphatune.cli.progress_bar")
    shown: Console | None = bars.console_on_screen() if bars else None
    whole_lines = not is_terminal(sys.stderr)  # a terminal would break a line within a word
    return shown or _Stderr(stderr=True, highlight=False, soft_wrap=whole_lines)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person may be reading; None is a stream that the caller closed."""
    return stream is not None and stream.isatty()


def note(message: str) -> None:
    """A remark to a person, taken literally."""
    stderr().print(Text(as_options(message), style="dim"))


def warn(messages: Sequence[str]) -> None:
    for message in messages:
        stderr().print(Text.assemble(("warning: ", "yellow"), as_options(message)))


def fail(messages: Sequence[str]) -> None:
    """What ended with an exit code of its own, though there is a result."""
    for message in messages:
        tell(f"error: {as_options(message)}")


class Announcements:
    """What a job says before its work begins, to whoever is not ``quiet``; nothing of it is said again after it."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet or os.environ.get("RANK", "0") != "0"  # one of torchrun's processes speaks
        self._said: list[str] = []

    def __call__(self, text: str) -> None:
        self._said.append(text)
        if not self._quiet:
            stderr().print(Text(as_options(text)))

    def rest(self, warnings: Sequence[str]) -> list[str]:
        """The warnings that were not announced."""
        return [warning for warning in warnings if warning not in self._said]


def remark_on(model: Source, warnings: Sequence[str]) -> None:
    """What a person should know beside the result: where the weights were, and the warnings."""
    if model.weights_key:
        note(f"weights taken from {model.weights_key!r} in {model.checkpoint}")
    warn(warnings)


def metrics_text(metrics: Metrics) -> str:
    """``top1=0.8103 top5=0.9872 loss=0.8788 ece=0.1245``, and whatever else there is."""
    return " ".join(f"{name}={value:.4f}" for name, value in metrics.items() if name != "n")


def show_next(commands: Sequence[tuple[str, str]]) -> None:
    """Commands to go on with, and what each is for; they are never broken, so that they can be copied."""
    out = stdout()
    out.print(Text("Next:", style="bold"))
    for command, caption in commands:
        if caption:
            out.print(Text(f"  # {caption}", style="dim"))
        out.print(Text(f"  {command}"), soft_wrap=True)


def table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table of (heading, side) columns; cells are printed as they are, not as markup.

    The side is "left", "right", or "number": right, and never broken.
    """
    grid = Table(
        title=title or None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        show_header=any(heading for heading, _ in columns),
    )
    for heading, side in columns:
        grid.add_column(heading, justify="left" if side == "left" else "right", no_wrap=side == "number")
    for row in rows:
        grid.add_row(*(Text(str(cell), overflow="fold") for cell in row))
    return grid


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def sparkline(values: Sequence[float]) -> str:
    """Values as eight heights of bar."""
    low, high = min(values), max(values)
    if high == low:
        return BARS[3] * len(values)
    return "".join(BARS[round(7 * (v - low) / (high - low))] for v in values)


@contextmanager
def progress_bar(quiet: bool, phase: str = "loading", *, resumes: bool = False) -> Iterator[Display | None]:
    """What shows the progress of a command: on a terminal only, and by the first of torchrun's processes.

    Args:
        phase: what the command begins with.
        resumes: whether a run that is interrupted can go on with --resume.
    """
    if quiet or not is_terminal(sys.stderr) or os.environ.get("RANK", "0") != "0":
        yield None
        return
    from alphatune.cli import progress_bar

    with progress_bar.progress_bar(stderr(), phase, resumes=resumes) as bar:
        yield bar
