"""What a set of labelled images is, by content: the same bytes and labels give the same fingerprint.

Files that have not changed since they were last read are not read again: what
was found is noted in ``notes``, a folder (hashing.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alphatune.core.hashing import files_sha256
from alphatune.data.examples import ArrayLoad, Examples


def fingerprint(examples: Examples, notes: Path | None = None) -> str | None:
    """SHA-256 over images, labels, order and class names; None where that would mean to decode every image.

    Raises:
        OSError: a file that cannot be read.
    """
    content = hashlib.sha256()
    if (files := files_of(examples)) is not None:
        content.update(files_sha256(files, notes).encode())
    elif isinstance(examples.load, ArrayLoad):
        for index in examples.indices:
            content.update(examples.load.pixels(int(index)).tobytes())
    else:
        return None
    for numbers in (examples.indices, examples.targets):
        content.update(np.ascontiguousarray(numbers, dtype=np.int64).tobytes())
    content.update(repr((examples.classes, examples.outputs, examples.decoder)).encode())
    content.update(getattr(examples.load, "part", "").encode())  # which arrays of a file
    return content.hexdigest()


def files_of(examples: Examples) -> list[str] | None:
    """The files that hold the examples: one each, or an archive or table of them all."""
    files = getattr(examples.load, "files", None)
    return files(examples.indices) if files else None


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over named tensors: name, dtype, shape and bytes."""
    content = hashlib.sha256()
    for name, tensor in tensors:
        content.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
