"""An output folder that appears whole, under its name, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from alphatune.core.errors import ConfigurationError, ResourceError
from alphatune.core.folder_lock import locked
from alphatune.core.system import is_ours, sync

#: the file that marks a folder as written by alphatune
MANIFEST = "alphatune.json"
#: bytes of a name at most, so that the hidden names made of it (``beside``) have no more than file systems take
LONGEST_NAME = 255 - len("..alphatune-partial")


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that alphatune wrote."""
    return (Path(path) / MANIFEST).is_file()


@contextmanager
def staged(
    output: str | os.PathLike[str], *, overwrite: bool = False, keep: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its name when all went well.

    ``keep`` are inputs, which must not lie inside ``output``.

    Raises:
        ConfigurationError: the output may not be replaced, or another process is writing it.
        ResourceError: the disk refused.
    """
    check_output(Path(output), overwrite=overwrite, keep=keep)
    with claimed(output) as stage, filling(stage, output, overwrite=overwrite, keep=keep):
        yield stage


@contextmanager
def claimed(output: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty hidden folder beside an output, whose name says to other processes that this one is at work.

    It is gone in the end, unless ``filling`` gave it the name of the output.
    What a process left that was killed is cleared away.

    Raises:
        ConfigurationError: another process is at work on the same output.
        ResourceError: the disk refused.
    """
    output = Path(os.path.abspath(output))  # not resolve(): a link is to be refused, not followed
    stage = beside(output, "partial")
    with ExitStack() as held:
        with disk_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            while not (made := _make_and_lock(stage, output, held)):
                held.pop_all().close()
            _restore(output)
            for left in stage.iterdir():  # by a process that was killed
                remove(left)
        try:
            yield stage
        finally:
            # After publishing the name is free, and the next process may have taken it.
            if _is_same(stage, made):
                shutil.rmtree(stage, ignore_errors=True)


def _make_and_lock(stage: Path, output: Path, held: ExitStack) -> os.stat_result | None:
    """Hold the folder, made if need be; None if it went while it was being locked."""
    made = True
    try:
        stage.mkdir()
    except FileExistsError:
        made = False
    try:
        status = stage.lstat()
        # A link, or a folder of somebody else's in a place that all can write to, would have us delete or publish
        # what is not ours. (Some file systems give what we make to somebody else.)
        if not stat.S_ISDIR(status.st_mode) or not (made or is_ours(status)):
            raise ConfigurationError(f"expected {stage} to be a folder of ours, or not to exist", "remove it")
        held.enter_context(locked(stage, f"writing {output}", "wait for it, or give another `output`"))
    except FileNotFoundError:
        return None
    return status if _is_same(stage, status) else None


def _is_same(path: Path, before: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(before, path.lstat())
    return False


@contextmanager
def filling(
    stage: Path,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    keep: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[None]:
    """Write into a claimed folder, which takes the name of the output when all went well.

    Raises:
        ConfigurationError: the output may not be replaced.
        ResourceError: the disk refused.
    """
    output = Path(os.path.abspath(output))
    with disk_errors(output):
        stage.mkdir(parents=True, exist_ok=True)  # should somebody have tidied up since it was claimed
        yield
        for file in stage.rglob("*"):
            sync(file)
        sync(stage)
        check_output(output, overwrite=overwrite, keep=keep)
        if output.exists():
            _replace(output, stage)
        else:
            stage.rename(output)
        sync(output.parent)


def _replace(output: Path, stage: Path) -> None:
    """Let a folder take a name from another, which is removed; where the system can, in one step."""
    with locked(output, f"writing {output}"):  # so that nobody claims it under the name that it gets
        if not _swap(stage, output):
            old = beside(output, "old")
            output.rename(old)
            try:
                stage.rename(output)
            finally:
                _restore(output)
        sync(output.parent)
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def disk_errors(output: str | os.PathLike[str]) -> Iterator[None]:
    """What the system says of a disk is an error of ours."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot write {output}: {error}", "is the disk full or read-only?") from None


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A temporary folder inside ``folder`` whose files move up when all went well, the manifest last.

    For a folder that grew while a job ran: it counts as written by alphatune
    (``is_bundle``) only when everything else is in its place.
    """
    stage = folder / f".{secrets.token_hex(4)}.partial"
    try:
        with disk_errors(folder):
            stage.mkdir()
            yield stage
            files = sorted(stage.iterdir(), key=lambda file: file.name == MANIFEST)
            for file in files:
                sync(file)
            for file in files:
                file.replace(folder / file.name)
            sync(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_output(output: Path, *, overwrite: bool, keep: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse an output that exists, is no folder of ours, or holds an input."""
    if output.suffix in (".json", ".safetensors", ".pt", ".pth", ".onnx", ".csv", ".md"):
        raise ConfigurationError(
            f"`output` names a folder, got {output}", "for the result alone: `format=json` > FILE"
        )
    check_name(output)
    output = Path(os.path.abspath(output))
    parent = next((p for p in output.parents if p.exists()), output)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigurationError(f"cannot write to {parent}, where the output {output} would be")
    if output.is_symlink():
        raise ConfigurationError(f"the output {output} is a symbolic link", "name the folder itself")
    if not output.exists():
        return
    if os.path.ismount(output) or Path.cwd().is_relative_to(output.resolve()):
        raise ConfigurationError(
            f"the output {output} cannot be replaced: a file system is mounted there, or it is the folder we are in",
            "name a folder inside it",
        )
    if not overwrite:
        raise ConfigurationError(f"the output {output} exists", "`overwrite` replaces it")
    if not output.is_dir() or (any(output.iterdir()) and not is_bundle(output)):
        raise ConfigurationError(f"{output} was not written by alphatune, so it is not overwritten")
    for path in keep:
        if Path(path).exists() and Path(path).resolve().is_relative_to(output.resolve()):
            raise ConfigurationError(f"the output {output} holds the input {path}", "write somewhere else")


def check_name(output: Path) -> None:
    """Refuse a name that the file system has no room for.

    Raises:
        ConfigurationError: says how long it may be.
    """
    if len(os.fsencode(output.name)) > LONGEST_NAME:
        raise ConfigurationError(
            f"the name of the output {output} is too long", f"it may have at most {LONGEST_NAME} bytes"
        )


def beside(output: Path, kind: str) -> Path:
    """A hidden path next to the output, so that renaming is atomic; anything already there is deleted."""
    return output.with_name(f".{output.name}.alphatune-{kind}")


def remove(path: Path) -> None:
    """Delete a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _restore(output: Path) -> None:
    """Undo the first half of a replacement in two steps, or finish its second."""
    old = beside(output, "old")
    if old.is_dir() and not output.exists():
        old.rename(output)
    elif old.is_dir():
        shutil.rmtree(old)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names in one step (renameat2, which Python has no name for); False where that cannot be done."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux, or an old C library
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
