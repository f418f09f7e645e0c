"""A result in a file of its own, where no folder goes with it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from alphatune.errors import ConfigurationError, ResourceError
from alphatune.reports.result import to_json


def check_file(path: Path, command: str, *, overwrite: bool) -> None:
    """Refuse a file that exists, unless it is an older result of the same command and may be replaced."""
    parent = Path(os.path.abspath(path)).parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigurationError(f"cannot write to {parent}, where the output {path} would be")
    if path.is_symlink():
        raise ConfigurationError(f"the output {path} is a symbolic link", "name the file itself")
    if not path.exists():
        return
    if path.is_dir():
        raise ConfigurationError(f"--output names a file, got the folder {path}")
    if not overwrite:
        raise ConfigurationError(f"the output {path} exists", "--overwrite replaces it")
    found: Any = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not (isinstance(found, dict) and found.get("command") == command):
        raise ConfigurationError(f"{path} was not written by alphatune {command}, so it is not overwritten")


def write_file(path: Path, document: dict[str, Any]) -> None:
    """Write a result so that the file appears whole, or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(to_json(document) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error}", "is the disk full or read-only?") from None
    finally:
        partial.unlink(missing_ok=True)
