"""Where alphatune keeps what it need not make again: compiled kernels, results of earlier runs."""

from __future__ import annotations

import os
from pathlib import Path

from alphatune.core.system import is_private


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
    return folder if is_private(status) and os.access(folder, os.W_OK) else None
