"""Where alphatune keeps what it need not make again: compiled kernels, results of earlier runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def cache_folder() -> Path | None:
    """The user's cache folder of alphatune, as ``private_folder`` gives it."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return private_folder(base / "alphatune")


def private_folder(folder: Path) -> Path | None:
    """The folder, made if it is not there; None unless this user, and nobody else, can write to it.

    What lies in it is believed, or even run as code.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    others = stat.S_IWGRP | stat.S_IWOTH
    private = status.st_uid == os.getuid() and not status.st_mode & others
    return folder if private and os.access(folder, os.W_OK) else None
