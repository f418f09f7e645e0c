"""Images and labels in arrays: .npz, .npy and .pt files, CIFAR's batches, MNIST's idx files."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alphatune.core.errors import AlphatuneError, DataError, UntrustedError, one_line
from alphatune.data.array_labels import to_targets
from alphatune.data.array_pixels import ArrayFileLoad
from alphatune.data.binary_layouts import Part, Parts, cifar_batches, idx_files
from alphatune.data.examples import Examples
from alphatune.data.plain_pickles import read_torch
from alphatune.data.split_names import ALL_SPLITS, choose_split

ARRAY_FILES = (".npz", ".npy", ".pt", ".pth")
_IMAGES = ("images", "image", "imgs", "img", "x", "data", "inputs", "arr_0")
_LABELS = ("labels", "label", "targets", "target", "y", "fine_labels", "arr_1")
_NAMES = ("classes", "class_names", "label_names")
_EXPECTED = "images and labels, train_images and train_labels, x_test and y_test, or data and targets"


def find_arrays(path: Path, input_key: str | None = None, target_key: str | None = None) -> Parts:
    """The splits of the arrays in a file or folder; none if it holds something else.

    Args:
        path: a file with one of the endings in ``ARRAY_FILES``, or a folder.
        input_key, target_key: names of the arrays, where they cannot be guessed.

    Raises:
        DataError: unreadable, or without images and labels by any name that is known.
    """
    with _reading(path):
        if path.is_dir():
            names = {entry.name for entry in path.iterdir() if entry.is_file()}
            parts = cifar_batches(names, lambda name: (path / name).open("rb"), str(path))
            parts = parts or idx_files(path, names)
            arrays = [name for name in names if name.endswith(".npy")]
            if parts or not arrays or any(entry.is_dir() for entry in path.iterdir()):
                return parts
            return _pairs(path, _npy_files(path), input_key, target_key)
        if path.suffix.lower() == ".npz":
            return _pairs(path, _npz_arrays(path), input_key, target_key)
        if path.suffix.lower() == ".npy":
            (part,) = _pairs(path, _npy_files(path.parent), path.stem, target_key).values()
            return {"": part}
        if path.suffix.lower() in ARRAY_FILES:
            return _pairs(path, _torch_arrays(path), input_key, target_key)
    return {}


def find_batches(archive: Path, shown: str) -> Parts:
    """The splits of CIFAR's python batches in a tar; none if there are none."""
    with tarfile.open(archive, "r:") as tar:
        files = {Path(name).name: name for name in tar.getnames()}

    def opener(name: str) -> Any:
        with tarfile.open(archive, "r:") as tar:
            file = tar.extractfile(files[name])
            return io.BytesIO(file.read() if file else b"")

    parts = cifar_batches(files, opener, shown)
    return {split: Part(part.read, (shown,), part.names) for split, part in parts.items()}


def open_arrays(parts: Parts, text: str, split: str | None, *, mapped: bool = False) -> Examples:
    """The examples of one of these splits.

    Args:
        mapped: whether a class map will say which output each label is.

    Raises:
        DataError: images or labels of another kind, or not as many of one as of the other.
        ConfigurationError: no such split.
    """
    name = choose_split(text, parts.keys() - {""}, split)
    part = parts[name]
    with _reading(Path(part.files[0])):
        found = part.read()
        images, labels = (np.asanyarray(values) for values in found)
    targets, classes, notes = to_targets(labels, text, part.names, mapped=mapped)
    if len(images) != len(targets):
        raise DataError(f"{text} has {len(images)} images and {len(targets)} labels")
    load = ArrayFileLoad(images, part.files, name)
    return Examples(
        source=text,
        root=text,
        split=name,
        classes=classes,
        targets=targets,
        indices=np.arange(len(targets)),
        load=load,
        numbered_by_name=bool(classes),
        warnings=(*notes, *([f"{load.note} (in {text})"] if load.note else [])),
    )


@dataclass(frozen=True)
class _Array:
    """An array under its name; ``file`` is where it is read from."""

    read: Callable[[], Any]
    file: Path


def _pairs(path: Path, arrays: dict[str, _Array], input_key: str | None, target_key: str | None) -> Parts:
    """Images and labels that belong together, by what their names have in common."""
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    names: tuple[str, ...] = ()
    for key, array in arrays.items():
        split, name = _split_and_name(key)
        for found, wanted, known in ((images, input_key, _IMAGES), (labels, target_key, _LABELS)):
            if key == wanted or (wanted is None and name in known):
                if split in found:
                    raise DataError(
                        f"{path} holds {found[split]} and {key}: which are meant?",
                        "`input_key`, `target_key`",
                    )
                found[split] = key
        if name in _NAMES:
            names = tuple(str(text) for text in np.asarray(array.read()).ravel())
    both = images.keys() & labels.keys()
    if not both:
        raise DataError(
            f"no images and labels in {path}: it holds {', '.join(arrays) or 'nothing'}",
            f"expected {_EXPECTED}; `input_key` and `target_key` name others",
        )
    return {split: _part(arrays[images[split]], arrays[labels[split]], names) for split in sorted(both)}


def _part(images: _Array, labels: _Array, names: tuple[str, ...]) -> Part:
    files = tuple(dict.fromkeys((str(images.file), str(labels.file))))
    return Part(lambda: (images.read(), labels.read()), files, names)


def _split_and_name(key: str) -> tuple[str, str]:
    """``("train", "images")`` of ``train_images``, ``("test", "x")`` of ``X_test``."""
    words = [word for word in re.split(r"[\W_]+", key.lower()) if word]
    splits = [word for word in words if word in ALL_SPLITS]
    split = splits[0] if len(splits) == 1 and len(words) > 1 else ""
    return split, "_".join(word for word in words if not split or word != split)


def _npz_arrays(path: Path) -> dict[str, _Array]:
    def read(key: str) -> Any:
        with np.load(path, allow_pickle=False) as file:
            return file[key]

    with np.load(path, allow_pickle=False) as file:
        return {key: _Array(partial(read, key), path) for key in file}


def _npy_files(folder: Path) -> dict[str, _Array]:
    return {
        file.stem: _Array(partial(np.load, file, mmap_mode="r", allow_pickle=False), file)
        for file in sorted(folder.glob("*.npy"))
    }


def _torch_arrays(path: Path) -> dict[str, _Array]:
    content = read_torch(path)
    if isinstance(content, (list, tuple)) and len(content) == 2:
        content = dict(zip(("images", "labels"), content, strict=True))
    if not isinstance(content, dict):
        raise DataError(f"expected (images, labels) or a dictionary in {path}, got {type(content).__name__}")
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, (list, tuple)) and len(value) == 2 and str(key).lower() in ALL_SPLITS:
            value = dict(zip(("images", "labels"), value, strict=True))
        if isinstance(value, dict):
            flat |= {f"{key}_{name}": inner for name, inner in value.items()}
        else:
            flat[str(key)] = value
    return {key: _Array(partial(_same, value), path) for key, value in flat.items()}


def _same(value: Any) -> Any:
    return value


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What numpy and its kin say of a file, as an error of ours."""
    try:
        yield
    except (AlphatuneError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # of a damaged file zipfile, zlib and Python's own parser have errors of their own
        text = one_line(error)
        if re.search("allow_pickle|Python objects", text):
            raise UntrustedError(
                f"reading {path} would run code: it holds Python objects", "save arrays of numbers or texts"
            ) from None
        raise DataError(f"cannot read {path}: {text}") from None
