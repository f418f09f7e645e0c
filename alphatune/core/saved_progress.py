"""What this process saved of an unfinished job, for the last line of a command that is interrupted."""

from __future__ import annotations

from pathlib import Path

_SAVED: set[Path] = set()


def note_saved(path: Path) -> None:
    """Something to go on from was written to this path, or was found there."""
    _SAVED.add(path)


def is_something_saved() -> bool:
    """Whether any of it is still there."""
    return any(path.exists() for path in _SAVED)
