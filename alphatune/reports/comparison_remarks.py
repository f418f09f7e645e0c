"""What differs between two results beside their figures, and whether they are about the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alphatune.reports.compared import Compared
from alphatune.results.data import ScoredData
from alphatune.results.evaluation import EvaluateDocument
from alphatune.statistics.gain import FEWEST_EXAMPLES
from alphatune.statistics.scores import Scores


def why_other_data(first: Compared, other: Compared) -> str:
    """Why figures cannot be held against each other; "" where nothing speaks against it."""
    names = [c.score_name for c in (first, other)]
    if (names[0] is None) != (names[1] is None):
        return "one was tuned by a score of its own, which the other does not have"
    if names[0] != names[1]:
        return f"the scores are others: {names[0]} and {names[1]}"
    if first.scores is not None and other.scores is not None:
        return _other_examples(first.scores, other.scores) or _other_classes(first, other)
    counts = [int(c.metrics.n) for c in (first, other)]
    if counts[0] != counts[1]:
        return f"different data: {counts[0]} vs {counts[1]} examples"
    if _place(first) != _place(other):
        return "different data: {} vs {}".format(*(_place_text(c) for c in (first, other)))
    return ""


def why_unpaired(first: Compared, other: Compared) -> str:
    """Why the same data cannot be compared example by example; "" if they can."""
    for one in (first, other):
        if one.scores is None:
            return one.missing
    if first.metrics.n < FEWEST_EXAMPLES:
        return f"only {first.metrics.n} examples: too few to tell a difference from luck"
    return ""


def remarks(first: Compared, other: Compared) -> list[str]:
    """Each thing that a difference may come from, or that makes it mean something else."""
    notes = []
    if other.scores is None or first.scores is None:
        notes.append("the data are called the same; whether the examples are is not known")
    elif _place(first) != _place(other):
        notes.append(
            "ids and labels are the same, but the data lie in {} and {}: the pairs are right only if both hold "
            "the same images in the same order".format(*(_place_text(c) for c in (first, other)))
        )
    if first.document.model.source != other.document.model.source:
        notes.append(_differs("architecture", *(c.document.model.source for c in (first, other))))
    elif _weights(first) != _weights(other):
        notes.append("other weights: {} and {}".format(*(_weights(c) or "unknown" for c in (first, other))))
    averages = [_averages(c) for c in (first, other)]
    if averages[0] != averages[1]:
        notes.append(_differs("moving averages", *averages))
    before, after = map(_preprocessing, (first, other))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            notes.append(f"preprocessing differs: {key} {_text(before.get(key))} and {_text(after.get(key))}")
    for name, used in (
        ("decoder", [_decoder(c) for c in (first, other)]),
        ("dtype", [c.document.env.dtype for c in (first, other)]),
        ("device", [c.document.env.device for c in (first, other)]),
    ):
        if used[0] != used[1]:
            notes.append(_differs(name, *used))
    return notes


def _preprocessing(one: Compared) -> dict[str, object]:
    data = one.document.data
    return {} if isinstance(data, ScoredData) else dict(data.preprocessing.items())


def _decoder(one: Compared) -> str | None:
    data = one.document.data
    return None if isinstance(data, ScoredData) else data.decoder


def _other_examples(first: Scores, other: Scores) -> str:
    if not np.array_equal(first.ids, other.ids):
        shared = len(np.intersect1d(first.ids, other.ids))
        counts = f"{len(first)} and {len(other)}"
        return f"the examples differ: {counts}, of which {shared} have the same position in their data"
    if different := int((first.targets != other.targets).sum()):
        return f"the labels of {different} of {len(first)} examples differ: other data, or another class map"
    return ""


def _other_classes(first: Compared, other: Compared) -> str:
    for index, (a, b) in enumerate(zip(first.classes, other.classes, strict=False)):
        if a != b:
            return f"the classes are others: number {index} is {a!r} and {b!r}"
    return ""


def _place(one: Compared) -> tuple[str, str]:
    data = one.document.data
    return (data.source, "") if isinstance(data, ScoredData) else (data.root or data.source, data.split)


def _place_text(one: Compared) -> str:
    place, split = _place(one)
    return f"{place} ({split})" if split else place


def _weights(one: Compared) -> str:
    model = one.document.model
    if digest := model.checkpoint_sha256:
        return f"{Path(model.checkpoint).name} (sha256 {digest[:12]})"
    return model.checkpoint


def _averages(one: Compared) -> str:
    """Where the moving averages of a result's run come from, of the plain model's run, too."""
    document = one.document
    if isinstance(document, EvaluateDocument):
        return "those of the weights"
    parts = [
        f"{measured} on {found.data.n} examples of {found.data.source}"
        for found, measured in ((document.calibration, "measured"), (document.recalibration, "measured anew"))
        if found
    ]
    return " and ".join(parts) or "those of the weights"


def _differs(name: str, first: Any, other: Any) -> str:
    return f"other {name}: {_text(first)} and {_text(other)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(v) for v in value)
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
