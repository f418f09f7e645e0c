"""A folder held by one process at a time; the system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alphatune.core.errors import ConfigurationError
from alphatune.core.system import WINDOWS

#: descriptors of what this process holds
_held: set[int] = set()


@contextmanager
def locked(folder: Path, doing: str, hint: str = "") -> Iterator[None]:
    """Hold an existing folder for this process alone.

    Where the system or the file system has no locks, nothing is held.

    Args:
        doing: completes "another process is …".

    Raises:
        ConfigurationError: another process holds it.
        OSError: it is not there.
    """
    if WINDOWS:  # where a folder cannot be opened
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        if not _try_lock(descriptor):
            raise ConfigurationError(f"another process is {doing}", hint)
        yield
    finally:
        if descriptor in _held:  # not in a child
            _held.discard(descriptor)
            os.close(descriptor)


def _let_go_in_a_child() -> None:
    """A lock lasts until every process that has its descriptor closed it, and a child may outlive us."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go_in_a_child)


def _try_lock(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True
