"""Labels that come as an array: to class indices, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphatune.errors import DataError


def to_targets(
    labels: Any, shown: str, names: Sequence[str] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    """Class indices (n,), class names where they are known, and what was done to the labels.

    Args:
        labels: integers, whole floats or texts (n,) or (n, 1), or one-hot (n, classes).
        shown: what the data are called in messages.
        names: of the classes, by index.

    Raises:
        DataError: several labels for an example, none, negative ones, or more than there are names.
    """
    found, notes = np.asarray(labels), []
    if found.dtype == object and all(isinstance(label, str) for label in found.ravel()):
        found = found.astype(str)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim == 2 and found.dtype.kind in "biuf" and _one_hot(found):
        found = found.argmax(axis=1)
        notes.append(f"labels are one-hot: the place of the 1 is the class (in {shown})")
    if found.ndim != 1 or found.dtype.kind not in "biufSU":
        raise DataError(
            f"expected one label for each image in {shown}, got {found.dtype} of shape {found.shape}",
            "class indices or names, (n,) or (n, 1)",
        )
    if found.dtype.kind in "SU":
        texts, targets = np.unique(found, return_inverse=True)
        classes = tuple(
            text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in texts
        )
        notes.append(f"labels are texts: {len(classes)} classes in the order of text (in {shown})")
        return targets.astype(np.int64), classes, tuple(notes)
    if found.dtype.kind == "f" and not (np.isfinite(found).all() and (found == np.rint(found)).all()):
        raise DataError(f"expected whole numbers for labels in {shown}, got fractions or NaN")
    targets = found.astype(np.int64)
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, -1)
    if low < 0:
        raise DataError(f"label {low} in {shown} is negative", "leave unlabelled images out")
    if names and high >= len(names):
        raise DataError(f"{shown} has label {high} and names for {len(names)} classes")
    if low > 0:
        notes.append(f"labels run from {low} to {high}: none is 0, the first output of a model (in {shown})")
    return targets, tuple(names), tuple(notes)


def _one_hot(labels: NDArray[Any]) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())
