"""Scores of examples, one number each, and their averages."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import DataError
from alphatune.results.metrics import Metrics
from alphatune.statistics.conditions import conditions_of, has_conditions, images_of
from alphatune.statistics.set_statistics import STATISTICS, statistics_of


@dataclass(frozen=True)
class Scores:
    """Scores of n examples, in the order of their ids."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int32]
    predicted: NDArray[np.int32]  # class with the largest logit
    loss: NDArray[np.float32]  # cross-entropy, nats
    top1: NDArray[np.bool_]
    top5: NDArray[np.bool_]
    confidence: NDArray[np.float32]  # softmax probability of the predicted class
    margin: NDArray[np.float32] | None = None  # of two classes: the logit of class 1 less that of class 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What there is of each example, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Scores:
        """The scores of some of the examples."""
        return Scores(**{name: values[rows] for name, values in self.columns.items()})


def summarise(scores: Scores) -> Metrics:
    """Average the scores, each condition of equal weight; statistics of the set as in set_statistics.py."""
    if has_conditions(scores.ids):
        number = conditions_of(scores.ids)
        each = [summarise(plain_scores(scores.take(number == k))).items() for k in np.unique(number)]
        shared = set.intersection(*({name for name, _ in one} for one in each)) - {"n"}
        means = {name: float(np.mean([dict(one)[name] for one in each])) for name in shared}
        return Metrics(n=len(scores), **means)
    return Metrics(
        n=len(scores),
        top1=float(scores.top1.mean(dtype=np.float64)),
        top5=float(scores.top5.mean(dtype=np.float64)),
        loss=float(scores.loss.mean(dtype=np.float64)),
        **{name: STATISTICS[name].value(scores) for name in statistics_of(scores)},
    )


def plain_scores(scores: Scores) -> Scores:
    """The scores of one condition, as those of plain examples."""
    return replace(scores, ids=images_of(scores.ids))


def concatenate(parts: list[Scores]) -> Scores:
    """Join the scores of batches and order them by id.

    Raises:
        DataError: no example at all, or one that came twice.
    """
    if not parts:
        raise DataError("the data holds no example")
    joined = {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns}
    order = np.argsort(joined["ids"], kind="stable")
    if len(np.unique(joined["ids"])) != len(order):
        raise DataError("an example came twice: every id must be scored once")
    return Scores(**{name: values[order] for name, values in joined.items()})
