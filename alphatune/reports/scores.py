"""Scores of every example before and after, as a file: what a report is drawn from, again at any time.

    scores.npz     ids, targets (n,); classes: names by index, where the data know them;
                   NAME_predicted, NAME_loss, NAME_top1, NAME_top5, NAME_confidence and, of two
                   classes, NAME_margin (n,) for each NAME of ``runs``, and of ``original`` where
                   there is one; thumbnail_rows (k,),
                   thumbnail_names (k,), thumbnails (k, H, W, 3); where shifts were tuned on
                   example_conditions (j,), example_severities (j,), 0 for none, examples (j, H, W, 3)

NumPy reads it, nothing in it is pickled, and the same scores give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import InputError, one_line
from alphatune.core.hashing import sha256
from alphatune.results.stored import RESULT
from alphatune.results.tune import Tuned
from alphatune.statistics.scores import Scores

FILE = "scores.npz"
#: the unpatched model, what is deployed, and, where it is neither, the best single α that was measured
RUNS = ("baseline", "chosen", "best")
#: the model that was given, where its moving averages were measured anew before tuning
ORIGINAL = "original"
#: what all runs have in common, and what differs
_SHARED = ("ids", "targets")
_OWN = tuple(each.name for each in fields(Scores) if each.name not in _SHARED)


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of the example in row ``row`` of the scores."""

    row: int
    name: str
    pixels: NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class ShiftExample:
    """A small picture of an image under a condition; ``severity`` is 0 where the condition has none."""

    condition: str
    severity: int
    pixels: NDArray[np.uint8]  # (H, W, 3), the same for all


@dataclass(frozen=True)
class StoredScores:
    """Scores of the same n examples by each run."""

    runs: dict[str, Scores]
    classes: tuple[str, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = field(default=())
    examples: tuple[ShiftExample, ...] = ()  # of each condition the same images, in the same order

    @property
    def baseline(self) -> Scores:
        return self.runs["baseline"]

    @property
    def chosen(self) -> Scores:
        return self.runs["chosen"]

    @property
    def original(self) -> Scores:
        """By the model that was given."""
        return self.runs.get(ORIGINAL, self.baseline)

    def class_name(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else f"class {index}"


def flipped_rows(before: Scores, after: Scores, most: int) -> NDArray[np.int64]:
    """Rows whose prediction became right, then those that became wrong: at most so many each way.

    The ones whose loss changed most come first.
    """
    change = np.abs(after.loss.astype(np.float64) - before.loss)
    parts = []
    for flipped in (~before.top1 & after.top1, before.top1 & ~after.top1):
        rows = np.flatnonzero(flipped)
        parts.append(rows[np.argsort(-change[rows], kind="stable")][:most])
    return np.concatenate(parts)


def write_scores(stored: StoredScores, folder: Path) -> None:
    """Write scores.npz into a folder."""
    np.savez_compressed(folder / FILE, **to_arrays(stored))


def to_arrays(stored: StoredScores) -> dict[str, Any]:
    """The arrays of the file, by name."""
    first = next(iter(stored.runs.values()))
    arrays: dict[str, Any] = {
        "ids": first.ids,
        "targets": first.targets,
        "classes": np.array(stored.classes, dtype=np.str_),
    }
    for name, scores in stored.runs.items():
        arrays |= {f"{name}_{key}": values for key, values in scores.columns.items() if key not in _SHARED}
    if stored.thumbnails:
        arrays["thumbnail_rows"] = np.array([t.row for t in stored.thumbnails], dtype=np.int64)
        arrays["thumbnail_names"] = np.array([t.name for t in stored.thumbnails], dtype=np.str_)
        arrays["thumbnails"] = np.stack([t.pixels for t in stored.thumbnails])
    if stored.examples:
        arrays["example_conditions"] = np.array([e.condition for e in stored.examples], dtype=np.str_)
        arrays["example_severities"] = np.array([e.severity for e in stored.examples], dtype=np.int64)
        arrays["examples"] = np.stack([e.pixels for e in stored.examples])
    return arrays


def read_scores(folder: Path) -> StoredScores | None:
    """The scores in a folder; None where it has none.

    Raises:
        InputError: a file that ``write_scores`` did not write.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = from_arrays(arrays, (*RUNS, ORIGINAL))
    except Exception as error:  # whatever zipfile, zlib and NumPy have to say about a damaged file
        raise InputError(f"damaged {path}: {type(error).__name__}: {one_line(error)}") from None
    if not {"baseline", "chosen"} <= stored.runs.keys() or not is_even(stored):
        raise InputError(f"damaged {path}: it does not hold the scores of a tune")
    return stored


def read_own_scores(folder: Path, document: Tuned) -> StoredScores | None:
    """The scores beside a result; None where there are none.

    Raises:
        InputError: damaged, or of another run.
    """
    stored = read_scores(folder)
    if stored is None:
        return None
    listed = {artifact.path: artifact.sha256 for artifact in document.artifacts}
    if listed.get(FILE) != sha256(folder / FILE):
        raise InputError(f"{folder / FILE} is not the one that {RESULT} speaks of")
    return stored


def from_arrays(arrays: Mapping[str, Any], names: Sequence[str]) -> StoredScores:
    """What ``to_arrays`` made, with those of the named runs that are there."""
    shared = {key: arrays[key] for key in _SHARED}
    runs = {
        name: Scores(**shared, **{key: arrays[key_] for key in _OWN if (key_ := f"{name}_{key}") in arrays})
        for name in names
        if f"{name}_loss" in arrays
    }
    thumbnails: tuple[Thumbnail, ...] = ()
    if "thumbnails" in arrays:
        rows, labels = arrays["thumbnail_rows"].tolist(), arrays["thumbnail_names"].tolist()
        thumbnails = tuple(map(Thumbnail, rows, labels, arrays["thumbnails"]))
    examples: tuple[ShiftExample, ...] = ()
    if "examples" in arrays:
        names, severities = arrays["example_conditions"].tolist(), arrays["example_severities"].tolist()
        examples = tuple(map(ShiftExample, names, severities, arrays["examples"]))
    return StoredScores(runs, tuple(arrays["classes"].tolist()), thumbnails, examples)


def is_even(stored: StoredScores) -> bool:
    """Whether there is a score of every kind for every example."""
    return len({len(values) for scores in stored.runs.values() for values in scores.columns.values()}) == 1
