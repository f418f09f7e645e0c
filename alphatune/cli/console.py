"""What goes to the terminal: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alphatune.cli.stderr import tell
from alphatune.cli.usage import as_options
from alphatune.core.metrics import METRICS

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.gain import Gain
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
    return _Stderr(stderr=True, highlight=False, soft_wrap=True)


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


def remark_on(model: Source, warnings: Sequence[str]) -> None:
    """What a person should know beside the result: where the weights were, and the warnings."""
    if model.weights_key:
        note(f"weights taken from {model.weights_key!r} in {model.checkpoint}")
    warn(warnings)


def metrics_text(metrics: Metrics) -> str:
    """``top1=0.8103 top5=0.9872 loss=0.8788 ece=0.1245``."""
    return " ".join(f"{name}={metrics[name]:.4f}" for name in METRICS)


def gain_text(gain: Gain, beyond: str = "") -> str:
    """``Cross-fitted gain in top1: +0.0028 (95 % interval ..., p = ...; method)``."""
    low, high = gain.ci
    return (
        f"{gain.scheme.capitalize()} gain in {gain.metric}{beyond}: {gain.delta:+.4f} "
        f"({100 * gain.confidence:.0f} % interval {low:+.4f} to {high:+.4f}, p = {gain.p:.2g}; "
        f"{gain.method})"
    )


def table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table; columns are (heading, "left" or "right"), cells are taken literally."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading, side in columns:
        grid.add_column(heading, justify="right" if side == "right" else "left")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    return grid


def sparkline(values: Sequence[float]) -> str:
    """Values as eight heights of bar."""
    low, high = min(values), max(values)
    if high == low:
        return BARS[3] * len(values)
    return "".join(BARS[round(7 * (v - low) / (high - low))] for v in values)


@contextmanager
def progress_bar(title: str, quiet: bool) -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar with rate and time left on stderr, on a terminal only."""
    if quiet or not is_terminal(sys.stderr):
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.0f} images/s" if task.speed else "")

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield update
