"""A result in a file of its own, where no folder goes with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from alphatune.core.errors import ConfigurationError
from alphatune.core.system import sync
from alphatune.models.output import check_name, claimed, disk_errors
from alphatune.results.document import Part
from alphatune.results.serialisation import to_json
from alphatune.results.stored import command_of


def check_file(
    path: Path,
    command: str,
    *,
    overwrite: bool,
    option: str = "`output`",
    ours: Callable[[Path], bool] | None = None,
) -> None:
    """Refuse a file that exists, unless it is an older result of the same command and may be replaced.

    Args:
        option: what names the file.
        ours: whether a file is such a result, where results are not JSON.
    """
    check_name(path)
    parent = Path(os.path.abspath(path)).parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigurationError(f"cannot write to {parent}, where the output {path} would be")
    if path.is_symlink():
        raise ConfigurationError(f"the output {path} is a symbolic link", "name the file itself")
    if not path.exists():
        return
    if path.is_dir():
        raise ConfigurationError(f"{option} names a file, got the folder {path}")
    if not overwrite:
        raise ConfigurationError(f"the output {path} exists", "`overwrite` replaces it")
    if not (ours(path) if ours else command_of(path) == command):
        raise ConfigurationError(f"{path} was not written by alphatune {command}, so it is not overwritten")


def write_file(path: Path, document: Part) -> None:
    """Write a result so that the file appears whole, or not at all."""
    write_whole(path, (to_json(document) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole, or not at all.

    Raises:
        ConfigurationError: another process is writing it.
        ResourceError: the disk refused.
    """
    path = Path(os.path.abspath(path))
    with claimed(path) as stage, disk_errors(path):
        partial = stage / path.name
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
