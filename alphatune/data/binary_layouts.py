"""Data sets as their authors publish them in binary files: CIFAR's python batches, MNIST's idx files."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import DataError
from alphatune.data.plain_pickles import read_pickle

_IDX = re.compile(r"(.*?)(train|t10k|test)-(images|labels)[-.]idx[0-9]-ubyte(\.gz)?")
_CIFAR10 = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_CIFAR100 = {"train": ("train",), "test": ("test",)}


@dataclass(frozen=True)
class Part:
    """The images and labels of one split, read when they are asked for."""

    read: Callable[[], tuple[Any, Any]]
    files: tuple[str, ...]
    names: tuple[str, ...] = ()  # of classes


#: by split; "" where there are none
Parts = dict[str, Part]
#: opens a file by its name
Opener = Callable[[str], BinaryIO]


def cifar_batches(names: Iterable[str], opener: Opener, folder: str) -> Parts:
    """The splits of CIFAR-10 or CIFAR-100, if that is what files of these names are."""
    there = set(names)
    for layout, meta, key in (
        (_CIFAR10, "batches.meta", "label_names"),
        (_CIFAR100, "meta", "fine_label_names"),
    ):
        if meta in there and (found := {split: f for split, f in layout.items() if there.issuperset(f)}):
            classes = tuple(map(_text, _batch(opener, meta, folder).get(key, ())))
            return {
                split: Part(
                    partial(_batches, opener, files, folder), tuple(f"{folder}/{f}" for f in files), classes
                )
                for split, files in found.items()
            }
    return {}


def _batches(opener: Opener, files: Iterable[str], folder: str) -> tuple[NDArray[Any], list[int]]:
    images: list[NDArray[Any]] = []
    labels: list[int] = []
    for name in files:
        batch = _batch(opener, name, folder)
        pixels = batch.get("data")
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
            raise DataError(f"expected rows of 3 × 32 × 32 pixels in {folder}/{name}")
        images.append(pixels)
        labels += list(batch.get("labels", batch.get("fine_labels", ())))
    return np.concatenate(images).reshape(-1, 3, 32, 32), labels


def _batch(opener: Opener, name: str, folder: str) -> dict[str, Any]:
    shown = f"{folder}/{name}"
    with opener(name) as file:
        content = read_pickle(file, shown)
    if not isinstance(content, dict):
        raise DataError(f"expected a dictionary in {shown}, got {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def idx_files(folder: Path, names: Iterable[str]) -> Parts:
    """The splits of MNIST and its like, of files such as ``t10k-images-idx3-ubyte.gz``.

    Raises:
        DataError: several data sets in one folder.
    """
    found = {match.groups()[:3]: name for name in sorted(names) if (match := _IDX.fullmatch(name))}
    if len({prefix for prefix, _, _ in found}) > 1:
        raise DataError(f"{folder} holds several sets of idx files", "put each into a folder of its own")
    parts: Parts = {}
    for (prefix, split, kind), images in found.items():
        labels = found.get((prefix, split, "labels"))
        if kind == "images" and labels:
            files = (str(folder / images), str(folder / labels))
            parts["test" if split == "t10k" else split] = Part(partial(_idx_pair, *files), files)
    return parts


def _idx_pair(images: str, labels: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return _idx(images), _idx(labels)


def _idx(path: str) -> NDArray[np.uint8]:
    try:
        with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    axes = content[3] if len(content) > 3 else 0
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * axes], ">u4").tolist())
    begin = 4 + 4 * axes
    if content[:3] != b"\0\0\x08" or len(shape) != axes or len(content) - begin != math.prod(shape):
        raise DataError(f"{path} is no idx file of bytes, or is cut short")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
