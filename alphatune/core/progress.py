"""How far a job is: its phase, what is done, and how much there is to do.

Work is counted in examples: one pass of one example at one α is one. The total is
an estimate wherever the job decides on the way what to do next, and is corrected
as it learns.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: what is counted: examples that pass through the model, images that are only read, or something without a name
Unit = Literal["images", "images read", "networks", ""]


@dataclass(frozen=True)
class Progress:
    """What a job is doing, and how far it is."""

    phase: str = ""  # "pilot", "search", "confirming"
    done: int = 0
    total: int | None = None  # what is expected to be done in the end; None: not known
    resumed: int = 0  # how much of ``done`` an earlier run did
    unit: Unit = "images"


class Display:
    """Shows progress; a subclass of yours can be passed as ``progress``."""

    def show(self, progress: Progress) -> None:
        """Called after every batch and at every change of phase."""

    def interrupted(self) -> None:
        """Called from a signal handler: the job stops after the batch at hand, and can be resumed."""

    def close(self) -> None:
        """The job has ended."""


class Meter:
    """What a job tells its progress to, and the functions that it calls as well."""

    def __init__(self, display: Display | None = None) -> None:
        self.display = display or Display()
        self.progress = Progress()
        self.later = 0  # expected work after what runs now, which ``expect`` adds

    @property
    def done(self) -> int:
        return self.progress.done

    def phase(self, name: str) -> None:
        """Something else begins."""
        if name != self.progress.phase:
            self._change(phase=name)

    def begin(self, phase: str, total: int | None = None, unit: Unit = "images") -> None:
        """Count from 0 again, something of another kind."""
        self._change(phase=phase, done=0, total=total, resumed=0, unit=unit)

    def expect(self, remaining: int | None) -> None:
        """So much is still to be done before ``later``; None: nobody knows."""
        self._change(total=None if remaining is None else self.done + remaining + self.later)

    def add(self, done: int, *, resumed: bool = False) -> None:
        """So much more is done; ``resumed``: by an earlier run."""
        now = self.progress
        total = None if now.total is None else max(now.total, now.done + done)
        self._change(done=now.done + done, total=total, resumed=now.resumed + done * resumed)

    def _change(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self.display.show(self.progress)


#: what the functions of the library take as ``progress``: True for a tqdm bar; a function that is called after every
#: batch with (examples done, examples to do or None); or a Display. None shows a bar in a notebook, and nothing elsewhere.
ShowProgress = bool | Callable[[int, int | None], None] | Display | Meter | None


def as_meter(progress: ShowProgress) -> Meter:
    """The meter of whatever was passed as ``progress``; None is silent."""
    if isinstance(progress, Meter):
        return progress
    if isinstance(progress, Display):
        return Meter(progress)
    if callable(progress):
        return Meter(_Called(progress))
    return Meter(_TqdmBar() if progress else None)


def shows_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function's ``progress`` shown, by the first of several processes, and closed when it ends."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = kwargs.get("progress")
        if isinstance(given, Meter):  # whoever made it closes it
            return function(*args, **kwargs)
        world: Any = kwargs.get("world")
        if world is not None and not world.first:
            given = False
        meter = as_meter(_in_notebook() if given is None else given)
        try:
            return function(*args, **{**kwargs, "progress": meter})  # type: ignore[arg-type]
        finally:
            meter.display.close()

    return call


class _Called(Display):
    """Calls a function with (examples done, examples to do or None)."""

    def __init__(self, function: Callable[[int, int | None], None]) -> None:
        self._function, self._last = function, 0

    def show(self, progress: Progress) -> None:
        if progress.unit == "images" and progress.done not in (0, self._last):
            self._last = progress.done
            self._function(progress.done, progress.total)


class _TqdmBar(Display):
    """A bar of tqdm's: a widget in a notebook, a line on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, progress: Progress) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=progress.phase)
        bar, restarts = self._bar, progress.done < self._bar.n
        bar.unit = f" {progress.unit}"
        if progress.total != bar.total or restarts:
            done, since = bar.n, bar.start_t
            bar.reset(progress.total)  # which a widget needs, and which forgets how far it was
            bar.total = progress.total
            if not restarts:
                bar.n, bar.start_t = done, since
        bar.initial = progress.resumed  # not counted into the rate
        if progress.phase != bar.desc:
            bar.set_description_str(progress.phase)
        bar.update(progress.done - bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()


def _in_notebook() -> bool:
    """Whether this is a kernel of Jupyter's."""
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python else None
    return "IPKernelApp" in getattr(shell, "config", {})
