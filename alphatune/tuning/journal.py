"""What a long job has done so far, on disk, so that it can go on after an interruption.

One file an entry. It is replaced as a whole, so that whatever ends the process
leaves the last state that was complete. A job that is shorter than the interval
of saving writes nothing.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alphatune.core.errors import CheckpointError, InputError, ResourceError, one_line
from alphatune.core.saved_progress import note_saved
from alphatune.core.system import is_ours
from alphatune.models.checkpoint_content import read_content
from alphatune.pickles.torch_file import write_saved

_KEY = "job.json"
#: what else decides a job, in words
_NO_SETTING = {
    "alphatune": "the version of alphatune",
    "checkpoint_sha256": "the checkpoint",
    "examples": "the number of examples",
    "state": "the weights, images or code",
}
#: plain values and tensors by name
State = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One state that is written again and again."""

    journal: Journal
    path: Path

    def read(self) -> State | None:
        """The state that was written last, or None.

        Raises:
            InputError: a damaged file.
        """
        if not self.path.exists():
            return None
        try:
            state: State = read_content(self.path).value
        except CheckpointError as error:
            raise InputError(f"damaged: {error.message}", "delete its folder and start anew") from None
        return state

    def write(self, state: State) -> None:
        """Replace the state, whole or not at all; a disk that refuses costs the journal, not the job."""
        if self.journal.given_up:
            return
        # Several processes that fit the same may write it at once.
        temporary = self.path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        try:
            self.journal.begin()
            write_saved(state, temporary)
            temporary.replace(self.path)
            note_saved(self.path)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's own writer on a full disk
            self.journal.give_up(error)

    def write_when_due(self, state: Callable[[], State]) -> None:
        """Replace the state if it is time to save, and write what has waited."""
        if self.journal.due:
            self.journal.write_later(self, state())
            self.journal.write_due()


@dataclass
class Journal:
    """A folder of entries that belong to one job."""

    folder: Path
    job: str  # the job as text
    seconds: float = 60.0  # checkpoint interval
    given_up: str = ""  # why nothing more is written
    _since: float = field(default_factory=lambda: time.monotonic())
    _later: list[tuple[Entry, State]] = field(default_factory=list)

    def entry(self, name: str) -> Entry:
        return Entry(self, self.folder / f"{name}.pt")

    def begin(self) -> None:
        """Make the folder, if it is not there."""
        key = self.folder / _KEY
        if not key.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            # Several processes may come here at once.
            partial = key.with_suffix(f".{secrets.token_hex(4)}.tmp")
            partial.write_text(self.job, encoding="utf-8")
            partial.replace(key)

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._since >= self.seconds

    def write_later(self, entry: Entry, state: State) -> None:
        """Have a state written with the next ``write_due``, in order."""
        self._later.append((entry, state))

    def write_due(self) -> None:
        """Write what has waited."""
        for entry, state in self._later:
            entry.write(state)
        self._later.clear()
        self._since = time.monotonic()

    @contextmanager
    def kept_when_interrupted(self) -> Iterator[None]:
        """Write what has waited if a signal ends the block, so that the job can go on from there."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            self.write_due()
            raise

    def give_up(self, error: Exception) -> None:
        """Leave the room that there is to the result."""
        self.given_up = f"what `resume` goes on from could not be kept in {self.folder}: {one_line(error)}"
        self.close()

    def close(self) -> None:
        """The job is done: nothing to go on from."""
        shutil.rmtree(self.folder, ignore_errors=True)


def open_journal(folder: Path, job: State, *, resume: bool, minutes: float) -> Journal:
    """The journal of a job; with ``resume`` what it says is kept, if it is of the same job.

    Args:
        job: whatever decides what the job computes, as plain values.
        minutes: the checkpoint interval.

    Raises:
        InputError: the folder belongs to another job, or to somebody else.
        ResourceError: it cannot be written.
    """
    text = json.dumps(job, sort_keys=True, indent=2)
    key = folder / _KEY
    try:
        if folder.is_symlink() or (folder.exists() and not is_ours(folder.stat())):
            raise InputError(f"expected {folder} to be a folder of ours, or not to exist", "remove it")
        if folder.exists() and not (resume and key.exists()):  # without its job nobody knows whose it is
            shutil.rmtree(folder)
        if key.exists() and key.read_text(encoding="utf-8") != text:
            raise InputError(
                f"{folder} was left by a job with other settings, model or data: {_changed(key, job)}",
                "repeat the command that was interrupted, or leave out `resume` to start anew",
            )
    except OSError as error:
        raise ResourceError(f"cannot write {folder}: {error}") from None
    for state in folder.glob("*.pt"):
        note_saved(state)
    return Journal(folder, text, 60 * minutes)


def _changed(key: Path, job: State) -> str:
    """What differs from the job that left a state."""
    try:
        before = dict(json.loads(key.read_text(encoding="utf-8")))
    except (TypeError, ValueError):  # damaged
        return "its job.json cannot be read"
    now = json.loads(json.dumps(job))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    settings = [f"`{name}`" for name in names if name not in _NO_SETTING]
    return ", ".join(settings or [_NO_SETTING[name] for name in names])
