"""What Windows does in another way: owners, modes and the syncing of files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

WINDOWS = os.name == "nt"


def is_ours(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user. Windows has no user numbers to tell by."""
    return WINDOWS or status.st_uid == os.geteuid()


def is_private(status: os.stat_result) -> bool:
    """Whether this user, and nobody else, can write to it. On Windows modes do not tell; a home folder is private."""
    return WINDOWS or (is_ours(status) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def sync(path: Path) -> None:
    """Have a file or folder on the disk itself. Windows syncs no folders, and only files opened for writing."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
