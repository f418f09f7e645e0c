"""A folder held by one process at a time; the system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alphatune.errors import ConfigurationError


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
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _try_lock(descriptor):
            raise ConfigurationError(f"another process is {doing}", hint)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True
