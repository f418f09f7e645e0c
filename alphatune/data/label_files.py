"""Images whose labels are in a file: beside a folder or an archive of them, or naming the images itself."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.data.array_labels import are_numbers
from alphatune.data.devkit import devkit_synsets
from alphatune.data.examples import Examples, FileLoad
from alphatune.data.folders import list_images
from alphatune.data.image_formats import ending_of
from alphatune.data.inventory import natural_key
from alphatune.data.label_columns import Columns, choose_columns, first_of_boxes
from alphatune.data.split_names import ALL_SPLITS, synonyms
from alphatune.data.tables import nfc, read_tables

#: endings of files that name images themselves
_MANIFESTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".pq", ".txt", ".lst")


def is_manifest(data: str) -> bool:
    """Whether DATA is a file that names images."""
    return Path(data).suffix.lower() in _MANIFESTS and Path(data).is_file()


def open_labelled(
    data: str,
    labels: str,
    split: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    *,
    mapped: bool = False,
) -> Examples:
    """Open a folder or an archive of images with their labels from a file; every image is named there once.

    Args:
        split: subfolder of the data; the labels may be those of others, too.
        mapped: whether a class map will say which output each label is.

    Raises:
        DataError: an image without a label or with two, a label without an image, or one that may be of several.
        ConfigurationError: columns or a split that are not there, or that cannot be guessed.
    """
    inventory, load, warnings = list_images(data)
    if Path(labels).resolve().is_relative_to(Path(data).resolve()):  # it is read, if not as an image
        inventory.unread -= Counter([ending_of(Path(labels).name)])
    paths = inventory.images
    images = _Images(paths)
    name = f"the labels {labels}"
    columns = choose_columns(read_tables(labels), images.find, name, path_column, label_column)
    keep, chosen = _of_split(paths, data, split)
    if columns.labels is None:
        raise ConfigurationError(f"{name} name images and nothing else", "every image needs a label")
    given = (
        _in_order(columns, keep, paths, labels)
        if columns.images is None
        else _matched(columns, images, labels)
    )
    if bare := [paths[i] for i in keep if i not in given]:
        raise DataError(
            f"{len(bare)} of {len(keep)} images of {data} have no label in {labels}, e.g. {', '.join(bare[:3])}",
            "every image needs one",
        )
    rows = [given[i] for i in keep]
    encoded = _encode([columns.labels[r] for r in rows], [columns.where[r] for r in rows], labels, mapped)
    return Examples(
        source=data,
        root=str(Path(data) / chosen) if Path(data).is_dir() else data,
        split=chosen,
        classes=encoded.classes,
        targets=encoded.targets,
        indices=np.asarray(keep),
        load=load,
        labels=labels,
        numbered_by_name=bool(encoded.classes),
        warnings=(*warnings, *inventory.notes(), f"{labels}: {columns.remark}; {encoded.remark}"),
    )


def open_manifest(
    data: str,
    data_root: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    *,
    labelled: bool = True,
    mapped: bool = False,
) -> Examples:
    """Open the images that a file names, with their labels.

    Args:
        data_root: where relative paths begin; by default the folder of the file.
        labelled: whether labels are asked for; without them every target is 0.
        mapped: whether a class map will say which output each label is.

    Raises:
        DataError: a path that is no file, or comes twice.
        ConfigurationError: columns that are not there, or that cannot be guessed.
    """
    base, name = Path(data_root) if data_root else Path(data).parent, f"the list {data}"

    def existing(cell: str) -> list[str]:
        return [str(base / cell)] if cell and (base / cell).is_file() else []

    columns = choose_columns(
        read_tables(data), existing, name, path_column, label_column, labelled=labelled, begin=f"in {base}"
    )
    if columns.images is None:
        raise DataError(f"{name} names no image that is there", f"relative paths begin at {base}")
    files = [existing(cell) for cell in columns.images]
    _refuse_missing(
        [
            (place, cell)
            for place, cell, found in zip(columns.where, columns.images, files, strict=True)
            if not found
        ],
        f"of {len(files)} images of {data}",
        f"relative paths begin at {base}",
    )
    _refuse_twice([os.path.realpath(file) for (file,) in files], columns.where, data)
    encoded = _Encoded(np.zeros(len(files), dtype=np.int64), (), "labels are not asked for")
    if labelled:
        if columns.labels is None:
            raise ConfigurationError(f"{name} names images and nothing else", "every image needs a label")
        encoded = _encode(columns.labels, columns.where, data, mapped)
    return Examples(
        source=data,
        root=data,
        split="",
        classes=encoded.classes,
        targets=encoded.targets,
        indices=np.arange(len(files)),
        load=FileLoad([file for (file,) in files]),
        labels=data,
        numbered_by_name=bool(encoded.classes),
        warnings=(f"{data}: {columns.remark}; {encoded.remark}",),
    )


# --- from rows to images ---------------------------------------------------------------------


class _Images:
    """The images of a folder by what a file may call them: path, part of a path, or either without its ending."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self._folders = [nfc(p).split("/")[:-1] for p in paths]
        self._names: dict[str, list[int]] = defaultdict(list)
        self._stems: dict[str, list[int]] = defaultdict(list)
        for number, path in enumerate(paths):
            name = nfc(path).split("/")[-1]
            self._names[name].append(number)
            self._stems[name.rpartition(".")[0]].append(number)

    def find(self, cell: str) -> list[int]:
        """The images that a cell may mean. Folders are compared from the inside out, as far as both have some."""
        for text in (cell, cell.replace("\\", "/")):
            *folders, name = [part for part in nfc(text).split("/") if part not in ("", ".", "..")] or [""]
            near = self._names.get(name) or self._stems.get(name) or []
            found = [i for i in near if _agree(folders, self._folders[i])]
            if len(found) > 1:  # a path that is one image's to the letter is no other's
                found = [i for i in found if folders == self._folders[i]] or found
            if found:
                return found
        return []


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    common = min(len(one), len(other))
    return common == 0 or list(one[-common:]) == list(other[-common:])


def _matched(columns: Columns, images: _Images, labels: str) -> dict[int, int]:
    """The row of each image that is named."""
    found: list[int] = []
    missing = []
    for place, cell in zip(columns.where, columns.images or [], strict=True):
        named = images.find(cell)
        if len(named) > 1:
            raise DataError(
                f"{place} of {labels} names {cell!r}, which may be {len(named)} images: "
                f"{', '.join(images.paths[i] for i in named[:3])}"
            )
        found += named
        missing += [] if named else [(place, cell)]
    _refuse_missing(missing, f"of {len(columns.where)} labels of {labels}", _hint(missing, columns))
    _refuse_twice([images.paths[i] for i in found], columns.where, labels)
    return {image: row for row, image in enumerate(found)}


def _hint(missing: Sequence[tuple[str, str]], columns: Columns) -> str:
    if len(missing) == 1 and missing[0][0] == columns.where[0]:
        return f"if that line is a heading: `path_column={missing[0][1]}`"
    return "leave out the rows of other images"


def _in_order(columns: Columns, keep: Sequence[int], paths: Sequence[str], labels: str) -> dict[int, int]:
    """The row of each image where the file holds labels alone, in the order of the images' names."""
    if len(columns.where) != len(keep):
        raise DataError(
            f"{labels} holds {len(columns.where)} labels and no paths, for {len(keep)} images",
            "labels alone go with the images in the order of their names, one a line",
        )
    orders = [
        sorted(keep, key=key)
        for key in (paths.__getitem__, lambda i: natural_key(paths[i]), lambda i: paths[i].split("/")[-1])
    ]
    for one, *others in zip(*orders, strict=True):
        if other := next((o for o in others if o != one), None):
            raise DataError(
                f"{labels} holds labels and no paths, and the order of the images is not clear: after text "
                f"{paths[one]} comes where {paths[other]} comes in another order",
                "a file of paths and labels says which is which",
            )
    return {image: row for row, image in enumerate(orders[0])}


def _of_split(paths: Sequence[str], data: str, split: str | None) -> tuple[list[int], str]:
    """The images of a split, by any of its names; of data without splits all."""
    tops = [path.split("/")[0] if "/" in path else "" for path in paths]
    found = sorted(set(tops) & ALL_SPLITS)
    chosen = next(
        (name for name in (split or "validation", *synonyms(split or "validation")) if name in tops), ""
    )
    if not chosen and (split or found):
        raise ConfigurationError(
            f"{data} has no split {split or 'validation'!r}", f"it has: {', '.join(found) or 'none'}"
        )
    return [i for i, top in enumerate(tops) if not chosen or top == chosen], chosen


def _refuse_missing(missing: Sequence[tuple[str, str]], of: str, hint: str) -> None:
    if missing:
        shown = ", ".join(f"{cell!r} ({place})" for place, cell in missing[:3])
        raise DataError(f"{len(missing)} {of} have no file in the data, e.g. {shown}", hint)


def _refuse_twice(files: Sequence[str], where: Sequence[str], name: str) -> None:
    seen: dict[str, str] = {}
    for file, place in zip(files, where, strict=True):
        if file in seen:
            raise DataError(
                f"{name} names {file} twice: {seen[file]} and {place}", "every image must count once"
            )
        seen[file] = place


# --- from labels to numbers ------------------------------------------------------------------


@dataclass(frozen=True)
class _Encoded:
    targets: np.ndarray  # (n,) int64
    classes: tuple[str, ...]
    remark: str


def _encode(values: Sequence[str], where: Sequence[str], labels: str, mapped: bool) -> _Encoded:
    """Numbers stay what they are; names are numbered in their order."""
    texts = [nfc(value) for value in values]
    for place, text in zip(where, texts, strict=True):
        if not text:
            raise DataError(f"{place} of {labels} has no label")
    remark = ""
    if boxes := first_of_boxes(texts, where, f"the labels {labels}"):
        texts, remark = boxes, ", each the class of the boxes"
    if are_numbers(texts, mapped):
        numbers = np.asarray([int(text.partition(".")[0]) for text in texts], dtype=np.int64)
        if numbers.min() < 0:
            first = int(np.argmin(numbers >= 0))
            raise DataError(f"{where[first]} of {labels} has the label {numbers[first]}, which is no output")
        synsets = devkit_synsets(labels, required=not mapped)
        if synsets is None:
            return _Encoded(
                numbers,
                (),
                f"labels are numbers{remark}, "
                + ("of the class map" if mapped else "of the model's outputs from 0"),
            )
        texts = [synsets.get(int(number), str(number)) for number in numbers]
    classes = sorted(set(texts))
    numbered = "" if mapped else f", numbered in the order of their names: {classes[0]!r} is output 0"
    places = {name: index for index, name in enumerate(classes)}
    targets = np.asarray([places[text] for text in texts], dtype=np.int64)
    return _Encoded(targets, tuple(classes), f"{len(classes)} classes{remark}{numbered}")
