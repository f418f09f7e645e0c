"""What a long job has done so far, on disk, so that it can go on after an interruption.

One file an entry. It is replaced as a whole, so that whatever ends the process
leaves the last state that was complete.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alphatune.errors import InputError, ResourceError

_KEY = "job.json"


@dataclass(frozen=True)
class Entry:
    """One state that is written again and again."""

    path: Path

    def read(self) -> dict[str, Any] | None:
        """The state that was written last, or None.

        Raises:
            InputError: a damaged file.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
        except Exception as error:  # torch.load has no class of its own for a damaged file
            raise InputError(
                f"damaged {self.path}: {type(error).__name__}", "delete its folder and start anew"
            ) from None
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace the state, whole or not at all."""
        temporary = self.path.with_suffix(".tmp")
        try:
            torch.save(state, temporary)
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's own writer on a full disk
            raise ResourceError(f"cannot write {self.path}: {error}") from None


@dataclass(frozen=True)
class Journal:
    """A folder of entries that belong to one job."""

    folder: Path

    def entry(self, name: str) -> Entry:
        return Entry(self.folder / f"{name}.pt")

    def close(self) -> None:
        """The job is done: nothing to go on from."""
        shutil.rmtree(self.folder, ignore_errors=True)


def open_journal(folder: Path, job: dict[str, Any], *, resume: bool) -> Journal:
    """The journal of a job; with ``resume`` what it says is kept, if it is of the same job.

    Args:
        job: whatever decides what the job computes, as plain values.

    Raises:
        InputError: the folder belongs to another job.
        ResourceError: it cannot be written.
    """
    text = json.dumps(job, sort_keys=True, indent=2)
    key = folder / _KEY
    try:
        if resume and key.exists():
            if key.read_text(encoding="utf-8") != text:
                raise InputError(
                    f"{folder} was left by a job with other settings, model or data",
                    "repeat the command that was interrupted, or leave out --resume to start anew",
                )
            return Journal(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        key.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {folder}: {error}") from None
    return Journal(folder)
