"""A class map: which output of the model each class name is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.core.suggestions import did_you_mean
from alphatune.data.class_map_file import Names, read_class_map
from alphatune.data.examples import Examples
from alphatune.data.tables import nfc


def apply_class_map(examples: Examples, path: str) -> Examples:
    """Relabel by name, or where the data have none by number.

    Raises:
        DataError: a class that the map does not know (timm would drop its images), or two that it takes for one.
    """
    outputs = read_class_map(path)
    classes = tuple(names[0] for names in outputs)
    named = examples.classes or tuple(map(str, np.unique(examples.targets)))
    found, notes = _find(named, outputs, path, examples)
    if examples.classes:
        targets = found[examples.targets]
    elif (found >= 0).all():  # labels that the map lists as names: ids, or numbers from 1
        targets = found[np.searchsorted(np.unique(examples.targets), examples.targets)]
    else:
        targets = _as_numbers(examples, len(outputs), path)
    return replace(
        examples,
        classes=classes,
        targets=targets,
        class_map=path,
        numbered_by_name=False,
        warnings=(*examples.warnings, *notes),
    )


def _find(
    classes: Sequence[str], outputs: Sequence[Names], path: str, examples: Examples
) -> tuple[np.ndarray, list[str]]:
    """The output of each class, -1 where classes are numbers that the map does not list; what is to be said."""
    first = {names[0]: index for index, names in enumerate(outputs)}
    others: dict[str, set[int]] = defaultdict(set)
    folded: dict[str, set[int]] = defaultdict(set)
    for index, names in enumerate(outputs):
        for name in names:
            others[name].add(index)
            folded[name.casefold()].add(index)
    found, unknown, otherwise = np.full(len(classes), -1), [], []
    for position, given in enumerate(classes):
        name = nfc(given)
        hits = {first[name]} if name in first else others.get(name) or folded.get(name.casefold(), set())
        if len(hits) > 1:
            which = " and ".join(repr(outputs[i][0]) for i in sorted(hits)[:2])
            raise DataError(f"class {given!r} may be {which} of the class map {path}", "use those names")
        if not hits:
            unknown.append(given)
            continue
        (found[position],) = hits
        if name not in others:
            otherwise.append(f"class {given!r} taken for {outputs[found[position]][0]!r} of the class map")
    if unknown and examples.classes:
        raise DataError(
            f"{len(unknown)} of {len(classes)} classes are not in {path}, e.g. {unknown[0]!r}",
            did_you_mean(unknown[0], [name for names in outputs for name in names]),
        )
    taken, counts = np.unique(found[found >= 0], return_counts=True)
    if (counts > 1).any():
        index = int(taken[counts > 1][0])
        both = [name for name, output in zip(classes, found, strict=True) if output == index][:2]
        raise DataError(f"classes {both[0]!r} and {both[1]!r} are both output {index} by {path}")
    more = f" (and {len(otherwise) - 1} more that differ in case)" if len(otherwise) > 1 else ""
    return found, [otherwise[0] + more] if otherwise else []


def _as_numbers(examples: Examples, outputs: int, path: str) -> np.ndarray:
    """Labels that are numbers of outputs already."""
    lowest, highest = int(examples.targets.min()), int(examples.targets.max())
    if lowest < 0 or highest >= outputs:
        raise DataError(
            f"the labels of {examples.source} run from {lowest} to {highest}, the {outputs} lines of {path} from 0 to "
            f"{outputs - 1}",
            "list the labels themselves in the class map, in the order of the outputs",
        )
    return examples.targets


def only_present(examples: Examples) -> Examples:
    """The same examples with the classes numbered anew that are present; ``outputs`` says which those were.

    Raises:
        ConfigurationError: the data do not name their classes, or there is one.
    """
    if not examples.classes:
        raise ConfigurationError(
            f"{examples.source} does not say which of the outputs its labels are", "give a class map"
        )
    present = np.unique(examples.targets)
    if len(present) < 2:
        raise ConfigurationError(f"{examples.source} holds {len(present)} class: there is nothing to choose")
    notes = (f"{len(present)} of {len(examples.classes)} outputs are scored: those of the classes present",)
    return replace(
        examples,
        classes=tuple(examples.classes[i] for i in present),
        targets=np.searchsorted(present, examples.targets).astype(np.int64),
        outputs=tuple(map(int, present)),
        warnings=(*examples.warnings, *notes),
    )
