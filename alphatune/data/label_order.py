"""Whether labels are numbered as the model's outputs are, by what it predicts.

Readers of class folders order their names in several ways, and files of labels
count from 0 or from 1. The order that a model was trained with is the one that its predictions
agree with: they are compared under each, image by image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from alphatune.core.errors import ConfigurationError
from alphatune.data.examples import Examples
from alphatune.data.inventory import natural_key

#: another order fits better from this difference on, on the images that it labels otherwise, and this probability
LEAST_DIFFERENCE, LEAST_PROBABILITY = 0.1, 1e-3
#: images that are enough to see it before more is measured
ENOUGH = 1000


#: how names are put in order, and who does it
_ORDERS: dict[str, Callable[[str], Any]] = {
    "natural order (2 before 10, case ignored: timm)": natural_key,
    "plain order (10 before 2, capitals first: torchvision's ImageFolder)": lambda name: name,
    "alphabetic order (10 before 2, case ignored)": lambda name: (name.casefold(), name),
}


@dataclass(frozen=True)
class _Other:
    """Another order: what it is called, the label it gives each image, and where it first differs."""

    name: str
    targets: NDArray[np.int64]
    differs: str
    likely: bool = True  # enough to be spoken of where the images do not decide


def is_ambiguous(examples: Examples) -> bool:
    """Whether the labels could be numbered otherwise."""
    return bool(_others(examples, examples.targets, None))


def check_label_order(examples: Examples, targets: NDArray[Any], predicted: NDArray[Any]) -> list[str]:
    """What remains open about the order of labels, by the predictions (n,) for some of the examples.

    Args:
        targets: their labels (n,).

    Raises:
        ConfigurationError: another order of the labels fits the model clearly better.
    """
    labels, notes = targets.astype(np.int64), []
    for other in _others(examples, labels, predicted):
        changed = other.targets != labels
        now, then = predicted[changed] == labels[changed], predicted[changed] == other.targets[changed]
        lost, won, of = int((now & ~then).sum()), int((then & ~now).sum()), int(changed.sum())
        large = abs(won - lost) >= LEAST_DIFFERENCE * of
        clear = large and binom.sf(max(won, lost) - 1, won + lost, 0.5) < LEAST_PROBABILITY
        if clear and lost > won:
            continue  # the order is the model's
        here, there = np.mean(predicted == labels), np.mean(predicted == other.targets)
        figures = f"top-1 is {there:.4f} with the labels in {other.name}, and {here:.4f} as they are"
        if clear:
            raise ConfigurationError(
                f"the labels are not in the model's order: {figures}; first {other.differs}",
                "`class_map=FILE` says which output each class is: one class name a line, in the model's order",
            )
        if of and other.likely:
            notes.append(
                f"{figures} ({_present(examples)}): {len(labels)} images do not tell which the model was "
                f"trained with; first {other.differs}; a class map settles it"
            )
    return notes


def near_chance(targets: NDArray[Any], top1: float, at: str = "") -> list[str]:
    """A remark on an accuracy that guessing would have, too, or of two classes that may be the other way round.

    Args:
        at: what else is to be said of the model, e.g. "at alpha = 0".
    """
    chance = 1 / max(2, len(np.unique(targets)))
    if top1 >= chance + 0.1 * (1 - chance):
        return []
    if chance == 0.5 and top1 < 0.4 and int(targets.max()) <= 1:
        return [
            f"top-1{at and ' ' + at} is {top1:.4f}, below chance: the two classes may be the other way round; "
            "`class_map` puts them in the model's order"
        ]
    return [
        f"top-1{at and ' ' + at} is {top1:.4f}, close to chance ({chance:.4f}): check the order of the labels "
        "(`class_map`) and the preprocessing (`mean`, `std`, `input_size`) before trusting any figure"
    ]


def _present(examples: Examples) -> str:
    if not examples.classes:
        return "numbers of outputs from 0"
    return next((name for name, key in _ORDERS.items() if _sorted(examples, key)), "in an order of their own")


def _sorted(examples: Examples, key: Callable[[str], Any]) -> bool:
    return list(examples.classes) == sorted(examples.classes, key=key)


def _others(examples: Examples, targets: NDArray[Any], predicted: NDArray[Any] | None) -> list[_Other]:
    """The other ways in which the labels may be numbered; each once."""
    if examples.outputs not in (None, tuple(range(len(examples.classes)))):
        return []
    if not examples.classes:
        return _shifted(targets, predicted)
    if not examples.numbered_by_name:
        return []
    found: dict[tuple[str, ...], _Other] = {}
    by_name = any(_sorted(examples, key) for key in _ORDERS.values())  # or somebody put them in an order
    for name, key in _ORDERS.items():
        order = tuple(sorted(examples.classes, key=key))
        if order == examples.classes or order in found:
            continue
        places = {c: i for i, c in enumerate(order)}
        table = np.asarray([places[c] for c in examples.classes])
        first = next(i for i, (a, b) in enumerate(zip(examples.classes, order, strict=True)) if a != b)
        differs = f"output {first} would be {order[first]!r} and not {examples.classes[first]!r}"
        found[order] = _Other(name, table[targets], differs, likely=by_name)
    return list(found.values())


def _shifted(targets: NDArray[Any], predicted: NDArray[Any] | None) -> list[_Other]:
    """Labels without names, counted from 1; or from 0 where output 0 is another class, of background say."""
    found, lowest = [], int(targets.min())
    if lowest >= 1:
        differs = f"label {lowest} would be output {lowest - 1} and not {lowest}"
        found.append(_Other("order counted from 1", targets - 1, differs, likely=lowest == 1))
    if predicted is not None and predicted.max() > targets.max():
        differs = f"label {lowest} would be output {lowest + 1} and not {lowest}"
        found.append(_Other("order counted from output 1", targets + 1, differs, likely=False))
    return found
