"""Which examples train a model, and which others judge it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.data.class_map import apply_class_map
from alphatune.data.datasets import is_dataset_string, open_data, opens_by_name
from alphatune.data.examples import Examples
from alphatune.data.folders import own_splits
from alphatune.data.named_datasets import open_named
from alphatune.data.shards import is_remote, locate, shard_splits
from alphatune.data.split_names import synonyms
from alphatune.data.stratification import hold_out, partition
from alphatune.data.web_samples import ShardLoad

#: the part of the training examples that is held out where no validation split exists
VAL_FRACTION = 0.1

#: what timm calls the validation split of these is their test set
_TRAIN_AND_TEST_ONLY = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")

#: torchvision's ImageFolder, whose splits are subfolders of the data root
_FOLDERS = ("image_folder", "folder")


@dataclass(frozen=True)
class Splits:
    """Examples to train on, to choose by, and (of a dataset by name) to report on; no example is in two."""

    train: Examples
    validation: Examples
    test: Examples | None = None
    val_fraction: float | None = None  # of each class, where validation was held out of training

    def at_most(self, max_pixels: int) -> Splits:
        """The same examples, with a limit to the pixels of an image."""
        train, validation = (part.at_most(max_pixels) for part in (self.train, self.validation))
        return replace(
            self, train=train, validation=validation, test=self.test and self.test.at_most(max_pixels)
        )


def open_splits(
    data: str,
    *,
    data_root: str | None = None,
    val_fraction: float | None = None,
    val_data: str | None = None,
    split_seed: int = 0,
    download: bool = False,
    class_map: str | None = None,
    labels: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    image_mode: str = "RGB",
    input_key: str | None = None,
    target_key: str | None = None,
    train_split: str | None = None,
    split: str | None = None,
) -> Splits:
    """Open DATA to train on, with a validation set of the same classes and other examples.

    A dataset by name has the splits of the paper (``named_datasets``). Of
    anything else the validation examples are, the first that applies:
    ``val_data``; ``split``; ``val_fraction`` of the training examples, drawn
    stratified by class; the validation split that comes with the data; a
    fraction of 0.1. timm's "validation" of ``torch/cifar10`` and its like is
    their test set, and is taken only when ``split`` asks for it.

    Args:
        data: a dataset name, a folder or archive of class folders, or a timm dataset string.
        data_root: where named, ``torch/``, ``tfds/`` and ``wds/`` data lie.
        val_fraction: share of each class to hold out, in (0, 1).
        val_data: the validation set, if it is another folder, archive or dataset string.
        split_seed: of the draw; it alone decides which examples are held out.
        download: fetch a dataset by name, or a ``torch/`` one, that is not there yet.
        class_map, labels, path_column, label_column, image_mode, input_key, target_key: as in ``open_data``;
            ``labels`` are not those of ``val_data``.
        train_split: name of the training split; by default "train" where there are splits.
        split: name of the validation split.

    Raises:
        ConfigurationError: options that contradict each other; an unknown split.
        DataError: data that are missing or unreadable; other classes in validation
            than in training; an example in both.
    """
    if opens_by_name(data, data_root):
        _refuse_own_splits(data, val_fraction, val_data, train_split, split, labels)
        splits = Splits(*open_named(data, data_root, seed=split_seed, download=download))
        return splits if class_map is None else _relabelled(splits, class_map)
    _check_options(val_fraction, val_data, split)
    how: dict[str, Any] = {
        "data_root": data_root,
        "class_map": class_map,
        "image_mode": image_mode,
        "input_key": input_key,
        "target_key": target_key,
        "download": download,
    }
    filed: dict[str, Any] = {"labels": labels, "path_column": path_column, "label_column": label_column}
    keys = (input_key, target_key)
    train_split = train_split or _own_split(data, data_root, "train", *keys, labels)
    train = open_data(data, split=train_split, **how, **filed)
    if val_data is not None:
        if opens_by_name(val_data, data_root):
            raise ConfigurationError(f"{val_data} has a training split of its own", f"`data={val_data}`")
        validation = open_data(val_data, split=split, **how)
    elif split or (
        val_fraction is None and (split := _own_split(data, data_root, "validation", *keys, labels))
    ):
        validation = open_data(data, split=split, **how, **filed)
    else:
        return _held_out(train, VAL_FRACTION if val_fraction is None else val_fraction, split_seed)
    _check_classes(train, validation)
    _check_disjoint(train, validation)
    return Splits(train, validation)


def _relabelled(splits: Splits, class_map: str) -> Splits:
    return Splits(
        apply_class_map(splits.train, class_map),
        apply_class_map(splits.validation, class_map),
        apply_class_map(splits.test, class_map) if splits.test is not None else None,
    )


def _check_options(val_fraction: float | None, val_data: str | None, split: str | None) -> None:
    if val_fraction is None:
        return
    if not 0 < val_fraction < 1:
        raise ConfigurationError(f"`val_fraction` must lie between 0 and 1, got {val_fraction:g}")
    other = "`val_data`" if val_data is not None else "`split`" if split is not None else ""
    if other:
        raise ConfigurationError(f"`val_fraction` and {other} both say what to validate on", "give one")


def _refuse_own_splits(data: str, *options: object) -> None:
    names = ("`val_fraction`", "`val_data`", "`train_split`", "`split`", "`labels`")
    given = [name for name, option in zip(names, options, strict=True) if option is not None]
    if given:
        raise ConfigurationError(f"{data} has splits of its own", f"leave out {', '.join(given)}")


def _own_split(
    data: str,
    data_root: str | None,
    kind: str,
    input_key: str | None,
    target_key: str | None,
    labels: str | None,
) -> str | None:
    """The split of this kind that comes with the data; of a folder or file without splits, None."""
    root = Path(data)
    if is_dataset_string(data):
        prefix, _, name = data.lower().partition("/")
        if prefix == "wds" and not is_remote(location := locate(data, data_root)):
            names = shard_splits(location)
            return kind if names and (kind == "train" or set(synonyms(kind)) & set(names)) else None
        if prefix != "torch" or name not in (*_TRAIN_AND_TEST_ONLY, *_FOLDERS):
            return kind
        if name in _TRAIN_AND_TEST_ONLY:
            return kind if kind == "train" else None
        root = Path(data_root or "")
    if labels is not None:  # a split is any folder of images
        return next((name for name in (kind, *synonyms(kind)) if (root / name).is_dir()), None)
    names = own_splits(root, input_key, target_key) if root.exists() else []
    return kind if names and (kind == "train" or set(synonyms(kind)) & set(names)) else None


def _held_out(whole: Examples, fraction: float, seed: int) -> Splits:
    kept, held = partition(whole.targets, hold_out(fraction), seed)
    if len(held) == 0:
        raise DataError(
            f"{whole.source} has one example of each class, and nothing to hold out", "give `val_data`"
        )
    labels, counts = np.unique(whole.targets, return_counts=True)
    lone = int((counts == 1).sum())
    notes = (f"{lone} of {len(labels)} classes have one example, which stays in training",) if lone else ()
    of = f" of {whole.split}" if whole.split else ""
    warnings = (*whole.warnings, *notes)
    return Splits(
        replace(whole.take(kept), split=f"{1 - fraction:g}{of}, seed {seed}", warnings=warnings),
        replace(whole.take(held), split=f"{fraction:g}{of}, seed {seed}", warnings=()),
        val_fraction=fraction,
    )


def _check_classes(train: Examples, validation: Examples) -> None:
    if train.classes == validation.classes:
        unseen = np.setdiff1d(validation.targets, train.targets)
        if len(unseen) == 0:
            return
        label = int(unseen[0])
        name = train.classes[label] if label < len(train.classes) else str(label)
        raise DataError(f"the validation examples have class {name!r}, which no training example has")
    lacking = [c for c in train.classes if c not in validation.classes]
    strange = [c for c in validation.classes if c not in train.classes]
    if lacking:
        what = f"{lacking[0]!r} is in training only"
    elif strange:
        what = f"{strange[0]!r} is in validation only"
    else:
        what = "they are in another order"
    raise DataError(
        f"expected the same classes in training ({len(train.classes)}) and validation "
        f"({len(validation.classes)}): {what}",
        "`class_map=FILE` numbers the classes of both alike",
    )


def _check_disjoint(train: Examples, validation: Examples) -> None:
    """The same source and split, or a folder within the other: copies under other names are not found."""
    if isinstance(train.load, ShardLoad) and isinstance(validation.load, ShardLoad):
        same = train.load.shares_shards(validation.load)
    elif Path(train.source).exists() and Path(validation.source).exists():
        one, other = Path(train.root).resolve(), Path(validation.root).resolve()
        same = one.is_relative_to(other) or other.is_relative_to(one)
        if train.root == validation.root and train.split and validation.split:  # parts of one file
            same = _overlap(train.split, validation.split)
    else:
        same = (train.source.lower(), train.root) == (validation.source.lower(), validation.root)
        same = same and _overlap(train.split, validation.split)
    if same:
        raise DataError(
            f"training and validation examples are the same: {train.root or train.source}",
            "`val_fraction` holds out a part of them",
        )


def _overlap(one: str, other: str) -> bool:
    """Splits of one name, unless both are slices (``train[:80%]``, ``train[80%:]``) and different ones; or sums of such."""
    if "all" in (one, other):
        return True
    pairs = [(a.partition("["), b.partition("[")) for a in one.split("+") for b in other.split("+")]
    return any(
        synonyms(a) == synonyms(b) and (not slice_a or not slice_b or slice_a == slice_b)
        for (a, _, slice_a), (b, _, slice_b) in pairs
    )
