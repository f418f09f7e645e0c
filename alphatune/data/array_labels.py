"""Labels that come as an array or a column: to class indices, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import DataError
from alphatune.data.tables import nfc

#: texts that are numbers of classes, as files of labels write them
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.0+)?")
_UNLABELLED = (
    "the test part of a published data set often has no labels: choose another split, or leave these out"
)


def to_targets(
    labels: Any,
    shown: str,
    names: Sequence[str] = (),
    *,
    mapped: bool = False,
    where: Callable[[int], str] = "example {}".format,
) -> tuple[NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    """Class indices (n,), class names where they are known, and what was done to the labels.

    Args:
        labels: integers, whole floats or texts (n,) or (n, 1), or one-hot (n, classes).
        shown: what the data are called in messages.
        names: of the classes, by index.
        mapped: whether a class map will say which output each label is.
        where: what an example is called, by its position.

    Raises:
        DataError: several labels for an example, none, negative ones, or more than there are names.
    """
    _refuse_lacking(labels, shown, where)
    found, notes = _as_array(labels, shown, where), []
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim == 2 and found.dtype.kind in "biuf" and _one_hot(found):
        found = found.argmax(axis=1)
        notes.append(f"labels are one-hot: the place of the 1 is the class (in {shown})")
    elif (
        found.ndim == 2 and found.dtype.kind in "biuf" and len(found) and ((found == 0) | (found == 1)).all()
    ):
        ones = (found != 0).sum(axis=1)
        first = int(np.argmax(ones != 1))
        raise DataError(
            f"expected one label for each image in {shown}, got rows of 0 and 1 of shape {found.shape}, of which "
            f"{int((ones != 1).sum())} have no 1 or several, first {where(first)} with {int(ones[first])}",
            "a task of several labels an image needs a score of its own",
        )
    if found.ndim != 1 or found.dtype.kind not in "biufSU":
        raise DataError(
            f"expected one label for each image in {shown}, got {found.dtype} of shape {found.shape}",
            "class indices or names, (n,) or (n, 1)",
        )
    if found.dtype.kind in "SU":
        texts = [nfc(_text(label)) for label in found.tolist()]
        if not are_numbers(texts, mapped):
            return _by_name(texts, shown, mapped, where)
        found = np.asarray([int(text.partition(".")[0]) for text in texts], dtype=np.int64)
        if not mapped:
            notes.append(
                f"labels are texts of whole numbers, taken for the model's outputs from 0 (in {shown})"
            )
    if found.dtype.kind == "f":
        broken = ~np.isfinite(found) | (found != np.rint(found))
        if broken.any():
            first = int(np.argmax(broken))
            raise DataError(
                f"expected whole numbers for labels in {shown}, got fractions or NaN in {int(broken.sum())} of "
                f"{len(found)}, first {found[first]:g} ({where(first)})"
            )
    targets = found.astype(np.int64)
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, -1)
    if low < 0:
        raise DataError(
            f"label {low} in {shown} is negative, as for images without a label: so are {int((targets < 0).sum())} "
            f"of {len(targets)}, first {where(int(np.argmax(targets < 0)))}",
            _UNLABELLED,
        )
    if names and high >= len(names):
        raise DataError(f"{shown} has label {high} and names for {len(names)} classes")
    if low > 0 and not mapped and not names:
        notes.append(f"labels run from {low} to {high}: none is 0, the first output of a model (in {shown})")
    return targets, tuple(names), tuple(notes)


def _refuse_lacking(labels: Any, shown: str, where: Callable[[int], str]) -> None:
    """Refuse rows without a label, of a column that is a list."""
    if not isinstance(labels, list):
        return
    lacking = [i for i, label in enumerate(labels) if label is None or label == "" or label == []]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(labels)} examples of {shown} have no label, the first is {where(lacking[0])}",
            _UNLABELLED,
        )


def _as_array(labels: Any, shown: str, where: Callable[[int], str]) -> NDArray[Any]:
    if isinstance(labels, list) and labels:
        texts = [isinstance(label, str) for label in labels]
        if any(texts) and not all(texts):
            odd = next(i for i, text in enumerate(texts) if text != texts[0])
            raise DataError(
                f"labels in {shown} are texts and numbers: {labels[0]!r} ({where(0)}), {labels[odd]!r} ({where(odd)})",
                "one kind for all",
            )
        lengths = [len(label) if isinstance(label, (list, tuple)) else 1 for label in labels]
        if len(set(lengths)) > 1:
            many = int(np.argmax(np.asarray(lengths) != 1))
            raise DataError(
                f"expected one label for each image in {shown}, got {lengths[many]} ({where(many)})",
                "a task of several labels an image needs a score of its own",
            )
    found = np.asarray(labels)
    if found.dtype == object and all(isinstance(label, str) for label in found.ravel()):
        found = found.astype(str)
    return found


def _text(label: str | bytes) -> str:
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else label


def are_numbers(texts: Sequence[str], mapped: bool) -> bool:
    """Whether all are whole numbers; to a class map 007 is a name, as which it may be listed."""
    if mapped and any(text != str(int(text)) for text in texts if re.fullmatch("-?[0-9]{1,9}", text)):
        return False
    return bool(texts) and all(_NUMBER.fullmatch(text) for text in texts)


def _by_name(
    texts: Sequence[str], shown: str, mapped: bool, where: Callable[[int], str]
) -> tuple[NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    """Names, numbered in the order of text unless a class map numbers them."""
    if blank := [i for i, text in enumerate(texts) if not text.strip()]:
        raise DataError(
            f"{len(blank)} of {len(texts)} examples of {shown} have no label, the first is {where(blank[0])}",
            _UNLABELLED,
        )
    classes = tuple(sorted(set(texts)))
    places = {name: index for index, name in enumerate(classes)}
    targets = np.asarray([places[text] for text in texts], dtype=np.int64)
    if mapped:
        return targets, classes, ()
    return (
        targets,
        classes,
        (
            f"labels are texts: {len(classes)} classes in the order of text, {classes[0]!r} is output 0 (in {shown})",
        ),
    )


def _one_hot(labels: NDArray[Any]) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())
