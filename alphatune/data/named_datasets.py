"""The datasets of the paper by name, with its splits (section 4.1)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets as torchvision_datasets

from alphatune.data.examples import ArrayLoad, Examples, FileLoad, Load
from alphatune.data.folders import holds_folders, open_folder, synonyms
from alphatune.data.stratification import hold_out, partition
from alphatune.errors import ConfigurationError, DataError, one_line

Parts = tuple[Examples, Examples, Examples | None]


def is_named(data: str) -> bool:
    """Whether DATA is the name of a dataset, in whatever case."""
    return data.lower() in _OPENERS


def open_named(data: str, data_root: str | None, *, seed: int = 0, download: bool = False) -> Parts:
    """Training, validation and test examples of a dataset by name; ImageNet has no test labels.

    CIFAR: 40 000 / 10 000 of the 50 000 training images. SVHN: 80 % / 20 % of
    train and extra together. Caltech-256: 40 / 10 / 30 images of each of the 256
    categories, without clutter. CUB-2011: 75 % / 25 % of train. The draw is
    stratified by class (the paper's is plainly random) and depends on nothing
    but the seed. Flowers-102 and ImageNet have a validation split of their own.

    Raises:
        ConfigurationError: an unknown name, or no ``data_root``.
        DataError: the data are not there or not whole; they cannot be downloaded.
    """
    name = data.lower()
    if name not in _OPENERS:
        raise ConfigurationError(f"unknown dataset {data!r}", f"one of: {', '.join(_OPENERS)}")
    if data_root is None:
        raise ConfigurationError(f"{name} needs to know where the data lie", "add --data-root FOLDER")
    opener, location, downloadable = _OPENERS[name]
    root = Path(data_root).expanduser()
    if download and not downloadable:
        raise ConfigurationError(
            f"{name} cannot be downloaded by a program: its owners ask you to sign for it or fetch it by hand",
            f"leave out --download, and put {location} into {data_root}",
        )
    if not download and not _present(root, location):
        fetch = "--download fetches it; " if downloadable else ""
        raise DataError(f"{name} is not in {data_root}: no {location}", f"{fetch}--data-root is its parent")
    try:
        # A download reports on stdout, which carries results only.
        with contextlib.redirect_stdout(sys.stderr):
            train, validation, test = opener(name, root, seed, download)
    except (ConfigurationError, DataError, MemoryError):
        raise
    except Exception as error:  # torchvision, scipy and the network have errors of their own
        hint = "--download fetches it anew" if downloadable and not download else ""
        raise DataError(f"cannot read {name} in {data_root}: {_ours(error)}", hint) from None
    return train, validation, test


def named_split(parts: Parts, split: str) -> Examples:
    """One of the parts by any of the names a split goes by."""
    for part, names in zip(parts, ("train", "validation", "test"), strict=True):
        if part is not None and split in (*synonyms(names), names):
            return part
    has = ", ".join(part.split for part in parts if part is not None)
    raise ConfigurationError(f"no split {split!r}", f"it has: {has}")


def _present(root: Path, location: str) -> bool:
    return (root / location).exists() or (location == _CUB and (root / "images.txt").exists())


def _ours(error: Exception) -> str:
    """torchvision says one sentence for two cases, and names an argument the user does not have."""
    text = one_line(error)
    if "not found or corrupted" in text:
        return "files are missing, or are not the published ones (their checksums differ)"
    return text


def _part(name: str, root: Path, split: str, classes: Any, targets: Any, load: Load) -> Examples:
    labels = np.asarray(targets, dtype=np.int64)
    if len(labels) == 0:
        raise DataError(f"{name} in {root} holds no {split} examples")
    return Examples(
        source=name,
        root=str(root),
        split=split,
        classes=tuple(str(c) for c in classes),
        targets=labels,
        indices=np.arange(len(labels)),
        load=load,
    )


def _divide(
    whole: Examples, sizes: Callable[[int], tuple[int, ...]], seed: int, *splits: str
) -> list[Examples]:
    parts = partition(whole.targets, sizes, seed)
    return [
        replace(whole.take(positions), split=split) for positions, split in zip(parts, splits, strict=True)
    ]


def _cifar(name: str, root: Path, seed: int, download: bool) -> Parts:
    make = torchvision_datasets.CIFAR10 if name == "cifar10" else torchvision_datasets.CIFAR100
    both = [make(str(root), train=train, download=download) for train in (True, False)]
    whole, test = (
        _part(name, root, split, data.classes, data.targets, ArrayLoad(data.data))
        for data, split in zip(both, ("train", "test"), strict=True)
    )
    train, validation = _divide(whole, hold_out(0.2), seed, "train", "validation")
    return train, validation, test


def _svhn(name: str, root: Path, seed: int, download: bool) -> Parts:
    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        data = torchvision_datasets.SVHN(str(root), split=split, download=download)
        return data.data.transpose(0, 2, 3, 1), data.labels

    train, extra, test = (read(split) for split in ("train", "extra", "test"))
    labels = np.concatenate([train[1], extra[1]])
    whole = _part(name, root, "train", range(10), labels, ArrayLoad(train[0], extra[0]))
    kept, validation = _divide(whole, hold_out(0.2), seed, "train", "validation")
    return kept, validation, _part(name, root, "test", range(10), test[1], ArrayLoad(test[0]))


def _caltech256(name: str, root: Path, seed: int, download: bool) -> Parts:
    if download:
        torchvision_datasets.Caltech256(str(root), download=True)
    folders = sorted(p for p in (root / _CALTECH).iterdir() if p.is_dir() and not p.name.endswith("clutter"))
    sizes = (40, 10, 30)
    files, targets = [], []
    for label, folder in enumerate(folders):
        images = sorted(str(p) for p in folder.iterdir() if p.suffix == ".jpg")
        if len(images) < sum(sizes):
            raise DataError(f"expected at least {sum(sizes)} images in {folder}, got {len(images)}")
        files += images
        targets += [label] * len(images)
    whole = _part(name, root, "all", [f.name for f in folders], targets, FileLoad(files))
    train, validation, test = _divide(whole, lambda n: sizes, seed, "train", "validation", "test")
    return train, validation, test


def _flowers102(name: str, root: Path, seed: int, download: bool) -> Parts:
    def read(split: str, ours: str) -> Examples:
        data = torchvision_datasets.Flowers102(str(root), split=split, download=download)
        files = [str(f) for f in data._image_files]
        return _part(name, root, ours, data.classes, data._labels, FileLoad(files))

    return read("train", "train"), read("val", "validation"), read("test", "test")


def _cub2011(name: str, root: Path, seed: int, download: bool) -> Parts:
    base = root / _CUB if (root / _CUB).is_dir() else root

    def column(file: str) -> dict[str, str]:
        lines = (base / file).read_text(encoding="utf-8").split("\n")
        return dict((line.strip().split(" ", 1)) for line in lines if line.strip())

    classes, paths = column("classes.txt"), column("images.txt")
    labels, in_train = column("image_class_labels.txt"), column("train_test_split.txt")
    if not paths.keys() == labels.keys() == in_train.keys():
        raise DataError(f"images.txt, image_class_labels.txt and train_test_split.txt in {base} differ")
    order = sorted(classes, key=int)
    number = {label: position for position, label in enumerate(order)}

    def read(flag: str, split: str) -> Examples:
        ids = sorted((i for i in paths if in_train[i] == flag), key=int)
        files = [str(base / "images" / paths[i]) for i in ids]
        targets = [number[labels[i]] for i in ids]
        return _part(name, root, split, [classes[c] for c in order], targets, FileLoad(files))

    train, validation = _divide(read("1", "train"), hold_out(0.25), seed, "train", "validation")
    return train, validation, read("0", "test")


def _imagenet(name: str, root: Path, seed: int, download: bool) -> Parts:
    for split in ("train", "val"):
        if not holds_folders(root / split):
            raise DataError(
                f"expected train/ and val/ of WordNet class folders in {root}, found no such {split}/",
                "torchvision.datasets.ImageNet(ROOT, SPLIT) makes them from the published archives",
            )
    train, validation = (open_folder(str(root / split), None) for split in ("train", "val"))
    return (
        replace(train, source=name, root=str(root), split="train"),
        replace(validation, source=name, root=str(root), split="validation"),
        None,
    )


_CALTECH = "caltech256/256_ObjectCategories"
_CUB = "CUB_200_2011"

#: name -> how to open it, what must lie in the data root, whether it can be downloaded
_OPENERS: dict[str, tuple[Callable[[str, Path, int, bool], Parts], str, bool]] = {
    "cifar10": (_cifar, "cifar-10-batches-py", True),
    "cifar100": (_cifar, "cifar-100-python", True),
    "svhn": (_svhn, "train_32x32.mat", True),
    "caltech256": (_caltech256, _CALTECH, True),
    "flowers102": (_flowers102, "flowers-102", True),
    "cub2011": (_cub2011, _CUB, False),
    "imagenet": (_imagenet, "train", False),
}
