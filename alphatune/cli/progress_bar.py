"""One line on a terminal's stderr that says how far a command is; lines printed meanwhile go above it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from alphatune.core.progress import Display, Progress

#: seconds from one drawing to the next at least
_EVERY = 0.1
#: seconds over which the rate is measured
_WINDOW = 30.0
#: cells of the bar, at least and at most
_NARROWEST, _WIDEST = 10, 40
#: cells of a phase, and of all but the bar, where there is room: so that the bar keeps its place
_PHASE, _BESIDE = 27, 66
#: the one that is on the screen
_on_screen: list[ProgressBarLine] = []


class ProgressBarLine(Display):
    """Phase, bar, percentage, time left and rate, as many of them as the terminal has room for.

    It is drawn by whoever reports progress, and no thread of its own: that would disturb what is timed, and a process
    that is forked while it draws could wait for its lock forever.

    Args:
        resumes: whether a run that is interrupted can go on with --resume.
    """

    def __init__(self, console: Console, resumes: bool) -> None:
        self.console, self._resumes = console, resumes
        self._live = Live(
            get_renderable=lambda: self,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._now, self._drawn, self._announced = Progress(), 0.0, False
        self._seen: deque[tuple[float, int]] = deque()  # when, and what this run had done by then

    def show(self, progress: Progress) -> None:
        before, self._now = self._now, progress
        now, done = time.monotonic(), progress.done - progress.resumed
        if progress.unit != before.unit or (self._seen and done < self._seen[-1][1]):
            self._seen.clear()
        if not self._seen or now - self._seen[-1][0] > _EVERY:
            self._seen.append((now, done))
            while now - self._seen[0][0] > _WINDOW:
                self._seen.popleft()
        if progress.phase != before.phase or now - self._drawn >= _EVERY:
            self._drawn = now
            self._live.refresh()

    def interrupted(self) -> None:
        self.announce("Stopping after this batch; --resume goes on.")

    def stopping(self) -> None:
        """Say that the command ends: inside a signal's handler."""
        begun = self._now.unit == "images" and self._now.done > 0
        self.announce("Stopping; --resume goes on." if self._resumes and begun else "Stopping.")

    def announce(self, text: str) -> None:
        """Print a line in place of the bar, once; not through rich, which may be in the midst of printing."""
        if not self._announced:
            self._announced = True
            with contextlib.suppress(OSError):
                os.write(2, f"\r\x1b[2K{text}\n".encode())

    def __enter__(self) -> ProgressBarLine:
        self._live.start(refresh=True)
        if isinstance(sys.stderr, FileProxy):
            sys.stderr = _Stderr(self.console, sys.stderr.rich_proxied_file)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def rate(self) -> float | None:
        """What is done in a second, if that is known yet."""
        if len(self._seen) < 2:
            return None
        (since, before), (until, done) = self._seen[0], self._seen[-1]
        return (done - before) / (until - since) if until - since > 0.5 and done > before else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - 1  # a full line would wrap on some terminals
        phase, parts, bar = Text(self._now.phase), self._parts(), None
        while parts and phase.cell_len + sum(2 + part.cell_len for part in parts) > room:
            parts.pop()
        phase.truncate(max(1, room), overflow="ellipsis")
        if room >= _BESIDE + _NARROWEST:
            phase.pad_right(_PHASE - phase.cell_len)
        left = room - phase.cell_len - sum(2 + part.cell_len for part in parts) - 2
        if self._now.total and left >= _NARROWEST:
            width = min(left, max(_NARROWEST, room - _BESIDE), _WIDEST)
            bar = ProgressBar(self._now.total, min(self._now.done, self._now.total), width=width)
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(phase, *([bar] if bar else []), *parts)
        yield line

    def _parts(self) -> list[Text]:
        """What stands after the bar, what matters most first."""
        now, rate, parts = self._now, self.rate, []
        if now.total:
            parts.append(Text(f"{100 * now.done // now.total:3d} %", style="progress.percentage"))
            if rate and now.done < now.total:
                left = _clock((now.total - now.done) / rate)
                parts.append(Text(f"{left} left", style="progress.remaining"))
        elif now.done and now.unit:
            parts.append(Text(f"{now.done} {now.unit}"))
        if rate and now.unit and now.done != now.total:
            parts.append(Text(f"{rate:.0f} {now.unit.split()[0]}/s", style="progress.data.speed"))
        return parts


class _Stderr(FileProxy):
    """What is printed goes above the bar; a bar of another library's takes its place, as of one that downloads."""

    _other = False

    def write(self, text: str) -> int:
        self._other = "\r" in text or (self._other and not text.strip("\n\x1b[A"))
        if not self._other:
            return super().write(text)
        self.rich_proxied_file.write(text)
        self.rich_proxied_file.flush()
        return len(text)


@contextmanager
def progress_bar(console: Console, phase: str, *, resumes: bool = False) -> Iterator[ProgressBarLine]:
    """A line on the screen for the time of a block, beginning with a phase."""
    with ProgressBarLine(console, resumes) as bar:
        _on_screen.append(bar)
        try:
            bar.show(Progress(phase))
            yield bar
        finally:
            _on_screen.remove(bar)


def console_on_screen() -> Console | None:
    """What other lines have to be printed through while a bar is shown."""
    return _on_screen[-1].console if _on_screen else None


def say_stopping() -> None:
    """Say that a signal was heard, where a bar is shown: inside the signal's handler."""
    for bar in _on_screen[-1:]:
        bar.stopping()


def clear_screen() -> None:
    """Take the bar away, and give the cursor back: the process is about to end without further ado."""
    if _on_screen:
        with contextlib.suppress(OSError):
            os.write(2, b"\r\x1b[2K\x1b[?25h")


def _clock(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
