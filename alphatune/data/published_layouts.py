"""Read the datasets of the paper as their owners publish them; torchvision where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets as torchvision_datasets

from alphatune.core.errors import DataError
from alphatune.data.examples import ArrayLoad, Examples, FileLoad, Load
from alphatune.data.folders import holds_folders, open_folder

#: split -> its examples
Layout = dict[str, Examples]

CALTECH256 = "caltech256/256_ObjectCategories"
CUB2011 = "CUB_200_2011"


def read_cifar10(root: Path, download: bool = False) -> Layout:
    return _cifar(torchvision_datasets.CIFAR10, root, download)


def read_cifar100(root: Path, download: bool = False) -> Layout:
    return _cifar(torchvision_datasets.CIFAR100, root, download)


def read_svhn(root: Path, download: bool = False) -> Layout:
    """Train and extra together, in this order, and test."""

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        data = torchvision_datasets.SVHN(str(root), split=split, download=download)
        return data.data.transpose(0, 2, 3, 1), data.labels

    train, extra, test = (read(split) for split in ("train", "extra", "test"))
    both = np.concatenate([train[1], extra[1]])
    digits = [str(digit) for digit in range(10)]
    return {
        "train": _examples(root, digits, both, ArrayLoad(train[0], extra[0])),
        "test": _examples(root, digits, test[1], ArrayLoad(test[0])),
    }


def read_caltech256(root: Path, download: bool = False) -> Layout:
    """All images of the 256 categories; the 257th folder, clutter, is none."""
    if download:
        torchvision_datasets.Caltech256(str(root), download=True)
    folders = sorted(
        folder
        for folder in (root / CALTECH256).iterdir()
        if folder.is_dir() and not folder.name.endswith(".clutter")
    )
    files: list[str] = []
    targets: list[int] = []
    for label, folder in enumerate(folders):
        images = sorted(str(file) for file in folder.iterdir() if file.suffix == ".jpg")
        files += images
        targets += [label] * len(images)
    return {"all": _examples(root, [folder.name for folder in folders], targets, FileLoad(files))}


def read_flowers102(root: Path, download: bool = False) -> Layout:
    def read(split: str) -> Examples:
        data = torchvision_datasets.Flowers102(str(root), split=split, download=download)
        files = [str(file) for file in data._image_files]
        # An older torchvision knows the numbers alone.
        classes = getattr(data, "classes", None) or list(map(str, range(102)))
        return _examples(root, classes, data._labels, FileLoad(files))

    return {"train": read("train"), "validation": read("val"), "test": read("test")}


def read_cub2011(root: Path) -> Layout:
    """CUB_200_2011's five text files, in the folder of that name or in the root itself."""
    base = root / CUB2011 if (root / CUB2011).is_dir() else root
    classes = _column(base / "classes.txt")
    paths = _column(base / "images.txt")
    labels = _column(base / "image_class_labels.txt")
    in_train = _column(base / "train_test_split.txt")
    if not paths.keys() == labels.keys() == in_train.keys():
        raise DataError(f"images.txt, image_class_labels.txt and train_test_split.txt in {base} differ")
    names = [classes[number] for number in sorted(classes)]
    label_of = {number: label for label, number in enumerate(sorted(classes))}

    def read(flag: str) -> Examples:
        images = [image for image in sorted(paths) if in_train[image] == flag]
        files = [str(base / "images" / paths[image]) for image in images]
        return _examples(root, names, [label_of[int(labels[image])] for image in images], FileLoad(files))

    return {"train": read("1"), "test": read("0")}


def read_imagenet(root: Path) -> Layout:
    for split in ("train", "val"):
        if not holds_folders(root / split):
            raise DataError(
                f"expected train/ and val/ of WordNet class folders in {root}, found none in {split}/",
                "torchvision.datasets.ImageNet(ROOT, SPLIT) makes them from the published archives",
            )
    return {
        "train": open_folder(str(root / "train"), None),
        "validation": open_folder(str(root / "val"), None),
    }


def _cifar(dataset: Any, root: Path, download: bool) -> Layout:
    def read(train: bool) -> Examples:
        data = dataset(str(root), train=train, download=download)
        return _examples(root, data.classes, data.targets, ArrayLoad(data.data))

    return {"train": read(True), "test": read(False)}


def _column(file: Path) -> dict[int, str]:
    """Lines of a number and a text, by number."""
    rows = (line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines())
    return {int(row[0]): row[1].strip() for row in rows if row}


def _examples(root: Path, classes: Sequence[str], targets: Any, load: Load) -> Examples:
    labels = np.asarray(targets, dtype=np.int64)
    return Examples("", str(root), "", tuple(classes), labels, np.arange(len(labels)), load)
