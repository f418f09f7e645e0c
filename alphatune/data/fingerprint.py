"""What a set of labelled images is, by content: the same bytes and labels give the same fingerprint.

Files that have not changed since they were last read (size and time of change,
as git's index judges it) are not read again: what was found is noted in
``notes``, a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alphatune.data.examples import ArrayLoad, Examples, FileLoad, ReaderLoad

#: a file changed more recently than this may change again without its time telling, in nanoseconds
_UNSETTLED = 2 * 10**9


def fingerprint(examples: Examples, notes: Path | None = None) -> str | None:
    """SHA-256 over images, labels, order and class names; None where that would mean to decode every image.

    Raises:
        OSError: a file that cannot be read.
    """
    content = hashlib.sha256()
    if (files := _files(examples)) is not None:
        content.update(files_sha256(files, notes).encode())
    elif isinstance(examples.load, ArrayLoad):
        for index in examples.indices:
            content.update(examples.load.pixels(int(index)).tobytes())
    else:
        return None
    for numbers in (examples.indices, examples.targets):
        content.update(np.ascontiguousarray(numbers, dtype=np.int64).tobytes())
    content.update(repr((examples.classes, examples.decoder)).encode())
    return content.hexdigest()


def _files(examples: Examples) -> list[str] | None:
    """The files that hold the examples: one each, or an archive or table of them all."""
    load = examples.load
    if isinstance(load, FileLoad):
        return [load(int(index))[0] for index in examples.indices]
    if not isinstance(load, ReaderLoad):
        return None
    root, reader = Path(examples.root), load.reader
    if hasattr(reader, "dataset"):  # a Hugging Face one keeps tables
        return [str(file["filename"]) for file in getattr(reader.dataset, "cache_files", [])] or None
    if root.is_file():
        return [str(root)]
    if hasattr(reader, "tar_state"):  # a folder of archives
        return sorted(str(path) for path in root.glob("*.tar"))
    return [str(reader.samples[int(index)][0]) for index in examples.indices]


def files_sha256(paths: Iterable[str], notes: Path | None = None) -> str:
    """SHA-256 over the names and contents of files, in their order."""
    paths, seen, newest = list(paths), hashlib.sha256(), 0
    for path in paths:
        status = Path(path).stat()
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        line = (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        seen.update(repr(line).encode())
    note = notes / seen.hexdigest() if notes else None
    if note and note.is_file():
        with contextlib.suppress(OSError, ValueError):
            noted = note.read_text(encoding="ascii")
            if len(noted) == 64:
                return noted
    content = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        content.update(repr((path, digest)).encode())
    if note and time.time_ns() - newest > _UNSETTLED:
        with contextlib.suppress(OSError):  # a note that cannot be made costs time, nothing else
            note.parent.mkdir(parents=True, exist_ok=True)
            partial = note.with_name(f".{note.name}.{os.getpid()}")
            partial.write_text(content.hexdigest(), encoding="ascii")
            partial.replace(note)
    return content.hexdigest()


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over named tensors: name, dtype, shape and bytes."""
    content = hashlib.sha256()
    for name, tensor in tensors:
        content.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
