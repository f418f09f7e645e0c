"""The datasets of the paper by name, with its splits (section 4.1)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError, one_line
from alphatune.core.suggestions import did_you_mean
from alphatune.data import published_layouts as layouts
from alphatune.data.examples import Examples
from alphatune.data.split_names import synonyms
from alphatune.data.stratification import hold_out, partition

Parts = tuple[Examples, Examples, Examples | None]


@dataclass(frozen=True)
class _Dataset:
    location: str  # what lies in the data root
    read: Callable[..., layouts.Layout]
    #: how to make the splits that the layout lacks: which part, the sizes by class, their names
    divide: tuple[str, Callable[[int], Sequence[int]], Sequence[str]] | None = None
    downloadable: bool = True


def _from_train(fraction: float) -> tuple[str, Callable[[int], Sequence[int]], Sequence[str]]:
    return "train", hold_out(fraction), ("train", "validation")


def _caltech_sizes(_: int) -> tuple[int, int, int]:
    return 40, 10, 30  # images of each category; the smallest has 80


_DATASETS = {
    "cifar10": _Dataset("cifar-10-batches-py", layouts.read_cifar10, _from_train(0.2)),
    "cifar100": _Dataset("cifar-100-python", layouts.read_cifar100, _from_train(0.2)),
    "svhn": _Dataset("train_32x32.mat", layouts.read_svhn, _from_train(0.2)),
    "caltech256": _Dataset(
        layouts.CALTECH256,
        layouts.read_caltech256,
        ("all", _caltech_sizes, ("train", "validation", "test")),
    ),
    "flowers102": _Dataset("flowers-102", layouts.read_flowers102),
    "cub2011": _Dataset(layouts.CUB2011, layouts.read_cub2011, _from_train(0.25), downloadable=False),
    "imagenet": _Dataset("train", layouts.read_imagenet, downloadable=False),
}
NAMES = tuple(_DATASETS)


def is_named(data: str) -> bool:
    """Whether DATA is the name of a dataset, in whatever case."""
    return data.lower() in _DATASETS


def open_named(data: str, data_root: str | None, *, seed: int = 0, download: bool = False) -> Parts:
    """Training, validation and test examples of a dataset by name; ImageNet's test labels are secret.

    CIFAR: 40 000 / 10 000 of the 50 000 training images. SVHN: 80 % / 20 % of
    train and extra together. Caltech-256: 40 / 10 / 30 images of each of the 256
    categories, without clutter. CUB-2011: 75 % / 25 % of train. The draw is
    stratified by class (the paper's is plainly random) and depends on the seed
    alone. Flowers-102 and ImageNet have a validation split of their own. The
    paper has CIFAR-100 only; CIFAR-10 is split like it.

    Raises:
        ConfigurationError: an unknown name, no ``data_root``, or nothing to download from.
        DataError: the data are not there or not whole.
    """
    name = data.lower()
    if name not in _DATASETS:
        raise ConfigurationError(
            f"unknown dataset {data!r}", did_you_mean(name, NAMES, f"one of: {', '.join(NAMES)}")
        )
    if data_root is None:
        raise ConfigurationError(f"{name} needs to know where the data lie", "add `data_root=FOLDER`")
    parts = _read(name, Path(data_root).expanduser(), download)
    divide = _DATASETS[name].divide
    if divide is not None:
        which, sizes, splits = divide
        whole = parts.pop(which)
        try:
            pieces = partition(whole.targets, sizes, seed)
        except ValueError as error:
            raise DataError(f"{name} in {data_root}: {error}") from None
        parts |= {split: whole.take(piece) for split, piece in zip(splits, pieces, strict=True)}
    named = {split: replace(part, source=name, root=data_root, split=split) for split, part in parts.items()}
    return named["train"], named["validation"], named.get("test")


def named_split(parts: Parts, split: str) -> Examples:
    """One of the parts, by any of the names a split goes by."""
    found = [part for part in parts if part is not None]
    for part in found:
        if split in synonyms(part.split):
            return part
    has = ", ".join(part.split for part in found)
    raise ConfigurationError(f"{found[0].source} has no split {split!r}", f"it has: {has}")


def _read(name: str, root: Path, download: bool) -> layouts.Layout:
    dataset = _DATASETS[name]
    if download and not dataset.downloadable:
        raise ConfigurationError(
            f"{name} has to be downloaded by hand",
            f"leave out `download` and put its {dataset.location} into {root}",
        )
    in_root = name == "cub2011" and (root / "images.txt").exists()
    if not download and not in_root and not (root / dataset.location).exists():
        raise DataError(
            f"{name} is not in {root}: there is no {dataset.location}",
            f"`download` fetches it; or give the folder that holds {dataset.location} as `data_root`"
            if dataset.downloadable
            else f"give the folder that holds {dataset.location} as `data_root`; it has to be downloaded by hand",
        )
    try:
        # stdout carries results only
        with contextlib.redirect_stdout(sys.stderr):
            parts = dataset.read(root, download=True) if download else dataset.read(root)
    except (AlphatuneError, MemoryError):
        raise
    except Exception as error:  # torchvision, scipy, pickle and the network have errors of their own
        reason = one_line(error) or type(error).__name__
        if "not found or corrupted" in reason:
            reason = "files are missing, or are not the published ones (checksums differ)"
        hint = "`download` fetches what is missing" if dataset.downloadable and not download else ""
        raise DataError(f"cannot read {name} in {root}: {reason}", hint) from None
    for split, part in parts.items():
        if len(part) == 0:
            raise DataError(f"{name} in {root} holds no {split} examples")
    return parts
