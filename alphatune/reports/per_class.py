"""What became of each class: which gained, which lost, and how sure one can be.

Changes are paired: the same examples before and after. An interval for each of
many classes is that many chances to be wrong, so each class has two: one that
holds for the class alone, and a wider one that holds for all of them at once
(Bonferroni). ``beyond_luck`` goes by the wider one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from alphatune.statistics.gain import CONFIDENCE
from alphatune.statistics.scores import Scores

Interval = tuple[float, float]
FloatArray = NDArray[np.float64]

#: with fewer examples a t-test's interval is as wide as anything
FEWEST = 10
#: classes that a figure shows of each end, and how many it shows where that is all
ENDS, ALL = 15, 30


@dataclass(frozen=True)
class ClassChange:
    """The change of one class's top-1 or loss; ``gain`` is the change with the sign that makes better positive."""

    label: int
    name: str
    n: int
    before: float
    after: float
    gain: float
    alone: Interval | None  # of the change; None where there are too few examples
    together: Interval | None

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def beyond_luck(self) -> bool:
        return self.together is not None and (self.together[0] > 0 or self.together[1] < 0)


@dataclass(frozen=True)
class Selection:
    """The classes that a figure shows, those that lost most first, and how many of each kind it does not."""

    lost: tuple[ClassChange, ...]
    gained: tuple[ClassChange, ...]
    hidden_worse: int
    hidden_better: int
    hidden_same: int

    @property
    def hidden(self) -> int:
        return self.hidden_worse + self.hidden_better + self.hidden_same


def top1_changes(before: Scores, after: Scores, names: Sequence[str]) -> tuple[ClassChange, ...]:
    """Of each class that has examples, by label."""
    labels, index, n = _classes(before)
    lost, won, right = (
        np.bincount(index, some, len(labels)).astype(np.float64)
        for some in (before.top1 & ~after.top1, ~before.top1 & after.top1, before.top1)
    )
    was = right / n
    alone, together = (bonett_price(won, lost, n, confidence) for confidence in _confidences(len(labels)))
    gain = (won - lost) / n
    return tuple(
        ClassChange(
            int(label), names[i], int(n[i]), float(was[i]), float(was[i] + gain[i]), float(gain[i]),
            alone[i], together[i],
        )
        for i, label in enumerate(labels)
    )  # fmt: skip


def loss_changes(before: Scores, after: Scores, names: Sequence[str]) -> tuple[ClassChange, ...]:
    """Of each class that has examples, by label; intervals are those of a paired t-test, from ``FEWEST`` examples on."""
    labels, index, n = _classes(before)
    change = after.loss.astype(np.float64) - before.loss
    was = np.bincount(index, before.loss.astype(np.float64), len(labels)) / n
    mean = np.bincount(index, change, len(labels)) / n
    spread = np.sqrt(np.bincount(index, (change - mean[index]) ** 2, len(labels)) / np.maximum(n - 1, 1))
    alone, together = (
        stdtrit(np.maximum(n - 1, 1), 0.5 + confidence / 2) * spread / np.sqrt(n)
        for confidence in _confidences(len(labels))
    )

    def interval(i: int, half: FloatArray) -> Interval | None:
        return (float(mean[i] - half[i]), float(mean[i] + half[i])) if n[i] >= FEWEST else None

    return tuple(
        ClassChange(
            int(label), names[i], int(n[i]), float(was[i]), float(was[i] + mean[i]), float(-mean[i]),
            interval(i, alone), interval(i, together),
        )
        for i, label in enumerate(labels)
    )  # fmt: skip


def class_names(scores: Scores, names: Sequence[str]) -> list[str]:
    """The names of the classes that have examples, by label; "class 7" where the data know none."""
    return [
        names[label] if 0 <= label < len(names) else f"class {label}"
        for label in np.unique(scores.targets).tolist()
    ]


def most_changed(changes: Sequence[ClassChange]) -> Selection:
    """All, if they are few; else those that lost and gained most."""
    # A change of many examples says more than the same change of few.
    ordered = sorted(changes, key=lambda c: (c.gain, np.sign(c.gain) * c.n, c.label))
    worse, same, better = ([c for c in ordered if np.sign(c.gain) == sign] for sign in (-1, 0, 1))
    if len(ordered) <= ALL:
        return Selection(tuple(worse), tuple(same + better), 0, 0, 0)
    lost, gained = worse[:ENDS], better[-ENDS:]
    return Selection(tuple(lost), tuple(gained), len(worse) - len(lost), len(better) - len(gained), len(same))


def bonett_price(
    won: FloatArray, lost: FloatArray, n: NDArray[np.int64], confidence: float
) -> list[Interval]:
    """Interval of the difference of paired proportions, good for small counts too.

    Source: Bonett and Price 2012: Wald's interval after half an example was added to each cell.
    """
    p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = ndtri(0.5 + confidence / 2) * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    low, high = np.maximum(p - q - half, -1), np.minimum(p - q + half, 1)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _classes(scores: Scores) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Labels that occur, the place of each example's among them, and how many examples each has."""
    labels, index, n = np.unique(scores.targets, return_inverse=True, return_counts=True)
    return labels, index.reshape(-1), n


def _confidences(classes: int) -> tuple[float, float]:
    return CONFIDENCE, 1 - (1 - CONFIDENCE) / classes
