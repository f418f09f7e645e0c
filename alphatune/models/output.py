"""An output folder that appears whole, under its name, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alphatune.errors import ConfigurationError, ResourceError

#: the file that marks a folder as written by alphatune
MANIFEST = "alphatune.json"


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that alphatune wrote."""
    return (Path(path) / MANIFEST).is_file()


@contextmanager
def staged(
    output: str | os.PathLike[str], *, overwrite: bool = False, keep: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its name when all went well.

    Files are synced before the rename, so that the name never stands for half
    a folder. ``keep`` are inputs, which must not lie inside ``output``.
    """
    output = Path(os.path.abspath(output))  # not resolve(): a link is to be refused, not followed
    check_output(output, overwrite=overwrite, keep=keep)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        stage = _beside(output, "partial")
        stage.mkdir()
    except OSError as error:
        raise ResourceError(f"cannot write beside {output}: {error}") from None
    try:
        yield stage
        for file in stage.rglob("*"):
            sync(file)
        sync(stage)
        if output.exists():
            check_output(output, overwrite=overwrite, keep=keep)
            old = _beside(output, "old")
            output.rename(old)
            try:
                stage.rename(output)
            except OSError:
                old.rename(output)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            stage.rename(output)
        sync(output.parent)
    except OSError as error:
        raise ResourceError(f"cannot write {output}: {error}", "is the disk full or read-only?") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A temporary folder inside ``folder`` whose files move up when all went well, the manifest last.

    For a folder that grew while a job ran: it counts as written by alphatune
    (``is_bundle``) only when everything else is in its place.
    """
    stage = folder / f".{secrets.token_hex(4)}.partial"
    try:
        stage.mkdir()
        yield stage
        files = sorted(stage.iterdir(), key=lambda file: file.name == MANIFEST)
        for file in files:
            sync(file)
        for file in files:
            file.replace(folder / file.name)
        sync(folder)
    except OSError as error:
        raise ResourceError(f"cannot write {folder}: {error}", "is the disk full or read-only?") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_output(output: Path, *, overwrite: bool, keep: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse an output that exists, is no folder of ours, or holds an input."""
    if output.suffix in (".json", ".safetensors", ".pt", ".pth", ".onnx", ".csv", ".md"):
        raise ConfigurationError(
            f"--output names a folder, got {output}", "for the result alone: --format json > FILE"
        )
    output = Path(os.path.abspath(output))
    parent = next(p for p in output.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigurationError(f"cannot write to {parent}, where the output {output} would be")
    if output.is_symlink():
        raise ConfigurationError(f"the output {output} is a symbolic link", "name the folder itself")
    if not output.exists():
        return
    if not overwrite:
        raise ConfigurationError(f"the output {output} exists", "--overwrite replaces it")
    if not output.is_dir() or (any(output.iterdir()) and not is_bundle(output)):
        raise ConfigurationError(f"{output} was not written by alphatune, so it is not overwritten")
    for path in keep:
        if Path(path).exists() and Path(path).resolve().is_relative_to(output.resolve()):
            raise ConfigurationError(f"the output {output} holds the input {path}", "write somewhere else")


def _beside(output: Path, kind: str) -> Path:
    """A hidden name on the same file system, so that renaming is atomic."""
    return output.with_name(f".{output.name}.{secrets.token_hex(4)}.{kind}")


def sync(path: Path) -> None:
    """Have a file or folder on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
