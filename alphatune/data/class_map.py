"""A class map: which output of the model each class name is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from alphatune.data.examples import Examples
from alphatune.data.folders import ORDER_WARNING
from alphatune.errors import ConfigurationError, DataError, one_line


def apply_class_map(examples: Examples, path: str) -> Examples:
    """Relabel by name. A class the map does not know is an error: timm would drop its images."""
    class_to_idx = read_class_map(path)
    if not examples.classes:
        raise ConfigurationError(f"{examples.source} has no class names that a class map could map")
    unknown = [name for name in examples.classes if name not in class_to_idx]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(examples.classes)} class folders are not in {path}, e.g. {unknown[0]!r}"
        )
    table = np.asarray([class_to_idx[name] for name in examples.classes], dtype=np.int64)
    names = [""] * (max(class_to_idx.values()) + 1)
    for name, index in class_to_idx.items():
        names[index] = str(name)
    notes = tuple(note for note in examples.warnings if note != ORDER_WARNING)
    targets = table[examples.targets]
    return replace(examples, classes=tuple(names), targets=targets, class_map=path, warnings=notes)


def read_class_map(path: str) -> dict[str, int]:
    """One class name a line; the number of the line, from 0, is the label."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the class map {path}: {one_line(error)}") from None
    class_to_idx: dict[str, int] = {}
    for index, name in enumerate(line.strip() for line in lines):
        if not name:
            raise DataError(f"line {index + 1} of the class map {path} is empty: every line is a class")
        if name in class_to_idx:
            raise DataError(f"line {index + 1} of the class map {path} repeats {name!r}: which output is it?")
        class_to_idx[name] = index
    if not class_to_idx:
        raise DataError(f"the class map {path} is empty")
    return class_to_idx
