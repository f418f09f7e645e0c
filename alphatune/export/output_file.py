"""An exported file that appears whole, under its name, or not at all."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alphatune.core.errors import ConfigurationError
from alphatune.core.system import sync
from alphatune.models.output import check_name, claimed, disk_errors

#: stands in every file that export writes: in ONNX's and safetensors' metadata and in the record of a .pt2
MARK = "alphatune_version"


def check_output_file(
    path: Path, suffix: str, *, overwrite: bool, keep: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse a name that cannot be right, an input, and a file that exists and is no older export.

    Args:
        suffix: what the name must end in.
        keep: inputs, files or folders, which the output must neither be nor lie in.
    """
    check_name(path)
    path = Path(os.path.abspath(path))  # not resolve(): a link is to be refused, not followed
    if path.is_dir():
        raise ConfigurationError(f"`output` names a file, got the folder {path}")
    if path.suffix != suffix:
        raise ConfigurationError(f"`output` names a file ending in {suffix}, got {path.name}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"cannot write to {path.parent}, where the output {path} would be")
    if path.is_symlink():
        raise ConfigurationError(f"the output {path} is a symbolic link", "name the file itself")
    for source in keep:
        if Path(source).exists() and path.resolve().is_relative_to(Path(source).resolve()):
            raise ConfigurationError(f"the output {path} lies in the input {source}", "write somewhere else")
    if not path.exists():
        return
    if not overwrite:
        raise ConfigurationError(f"the output {path} exists", "`overwrite` replaces it")
    if not _is_export(path):
        raise ConfigurationError(f"{path} was not written by alphatune export, so it is not overwritten")


@contextmanager
def staged_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """The same name in a hidden folder beside ``path``, which moves there when all went well.

    A file of the same stage whose name is longer (external data of ONNX) moves
    first; one that an older export left behind goes.

    Raises:
        ResourceError: the disk refused.
        ConfigurationError: such a companion exists, and may not be replaced.
    """
    path = Path(os.path.abspath(path))
    with claimed(path) as stage, disk_errors(path):
        yield stage / path.name
        staged = sorted(stage.iterdir(), key=lambda file: file.name == path.name)
        for file in staged:
            sync(file)
            target = path.with_name(file.name)
            if target.exists() and not overwrite:
                raise ConfigurationError(f"the output {target} exists", "`overwrite` replaces it")
        replaces = path.exists()
        for file in staged:
            file.replace(path.with_name(file.name))
        companion = data_beside(path)
        if replaces and companion.name not in {file.name for file in staged}:
            companion.unlink(missing_ok=True)
        sync(path.parent)


def data_beside(path: Path) -> Path:
    """Where the weights of an ONNX model are that is too large for one file."""
    return path.with_name(path.name + ".data")


def _is_export(path: Path) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(MARK.encode()) >= 0
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False
