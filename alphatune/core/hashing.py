"""Hashes of files, and what tells without reading one that it has not changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

#: a file changed more recently than this may change again without its time telling, in nanoseconds
UNSETTLED = 2 * 10**9

#: path, size, times of change of content and of inode, inode: as git's index judges a file
FileState = tuple[str, int, int, int, int]


def sha256(path: str | Path) -> str:
    """Hash of a file's content."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
        return digest.hexdigest()


def file_state(path: str | Path) -> FileState:
    """What changes when a file, or the list of names in a folder, does; raises OSError if it is gone."""
    status = Path(path).stat()
    return (str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def settled(states: Iterable[FileState], when: int) -> bool:
    """Whether nothing was changed so shortly before a time, in nanoseconds, that a later change may not tell."""
    return all(when - max(changed, moved) > UNSETTLED for _, _, changed, moved, _ in states)


def files_sha256(paths: Iterable[str], notes: Path | None = None) -> str:
    """SHA-256 over the names and contents of files, in their order.

    Args:
        notes: a folder of what was found before, so that files are not read again that have not changed.
    """
    started = time.time_ns()
    states = [file_state(path) for path in paths]
    note = notes / hashlib.sha256(repr(states).encode()).hexdigest() if notes else None
    if note and note.is_file():
        with contextlib.suppress(OSError, ValueError):
            noted = note.read_text(encoding="ascii")
            if len(noted) == 64:
                return noted
    content = hashlib.sha256()
    for path, *_ in states:
        content.update(repr((path, sha256(path))).encode())
    if note and settled(states, started):
        write_note(note, content.hexdigest())
    return content.hexdigest()


def write_note(path: Path, text: str) -> None:
    """Write a small file that appears whole; one that cannot be written costs time later, nothing else."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
