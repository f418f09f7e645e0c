"""Metrics that are no means over examples: ECE, macro recall and F1, AUROC, average precision.

Each has a value S, and a share of it for every example:

    share_i = S + IF_i,    Σ_i IF_i = 0

so that the shares have the mean S. IF is the influence function: the derivative
of S by the weight of example i, times n. What is so linearised has the standard
error of S, as n grows, and paired differences of shares that of a difference
(of AUROC this is the method of DeLong, DeLong & Clarke-Pearson 1988).
If none of a small class's examples changes, the spread says nothing about that
class. Tests therefore add two pseudo-examples per class, one that gets better and
one that gets worse (as Bonett & Price 2012 do for paired proportions).
The ECE has a kink where a bin's gap is 0, so a bootstrap takes the place of that
(gain.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import ConfigurationError
from alphatune.core.metrics import MEANS, Metric
from alphatune.statistics.calibration_error import calibration_shares, expected_calibration_error

if TYPE_CHECKING:  # which imports this
    from alphatune.statistics.scores import Scores

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SetStatistic:
    """A metric of a whole set of examples.

    Args:
        shares: of each example (n,); their mean is the metric.
        faster: the metric, where there is a faster way than the mean of its shares.
        changes: by how much a share changes where an example of a class turns right or wrong (classes,).
        linearised: whether the spread of the shares tells that of the metric.
        two_classes: whether it means something for two classes only, both of which there are.
    """

    shares: Callable[[Scores], FloatArray]
    faster: Callable[[Scores], float] | None = None
    changes: Callable[[Scores], FloatArray] | None = None
    linearised: bool = True
    two_classes: bool = False

    def value(self, scores: Scores) -> float:
        """The metric."""
        return float(self.shares(scores).mean()) if self.faster is None else self.faster(scores)


def macro_recall_shares(scores: Scores) -> FloatArray:
    """Shares of the mean recall of the classes that there are (balanced accuracy).

    S = Σ_c R_c / C,  R_c = right_c / n_c;    IF_i = n (right_i − R_c) / (C n_c),  c = target_i
    """
    _, own, size = np.unique(scores.targets, return_inverse=True, return_counts=True)
    right = scores.top1.astype(np.float64)
    recall = np.bincount(own, weights=right) / size
    influence = len(own) * (right - recall[own]) / (len(size) * size[own])
    shares: FloatArray = recall.mean() + influence
    return shares


def macro_recall_changes(scores: Scores) -> FloatArray:
    """n / (C n_c) of each class."""
    size = np.unique(scores.targets, return_counts=True)[1]
    return len(scores.targets) / (len(size) * size.astype(np.float64))


def macro_f1_changes(scores: Scores) -> FloatArray:
    """2 n / (C (n_c + m_c)) of each class."""
    both = np.unique(np.concatenate([scores.targets, scores.predicted]), return_counts=True)[1]
    return 2 * len(scores.targets) / (len(both) * both.astype(np.float64))


def macro_f1_shares(scores: Scores) -> FloatArray:
    """Shares of the mean F1 of the classes that are targets or predictions.

        S = Σ_c F_c / C,  F_c = 2 right_c / (n_c + m_c)
        IF_i = n/C Σ_c (2 [target_i = predicted_i = c] − F_c ([target_i = c] + [predicted_i = c])) / (n_c + m_c)

    with n_c targets and m_c predictions of class c.
    """
    n = len(scores.targets)
    classes, found = np.unique(np.concatenate([scores.targets, scores.predicted]), return_inverse=True)
    target, predicted = found[:n], found[n:]
    right = target == predicted
    both = np.bincount(found)
    f1 = 2 * np.bincount(target[right], minlength=len(classes)) / both
    lost = f1 / both
    influence = n / len(classes) * (2 * right / both[target] - lost[target] - lost[predicted])
    shares: FloatArray = f1.mean() + influence
    return shares


def auroc_shares(scores: Scores) -> FloatArray:
    """Shares of the area under the ROC curve of class 1 against class 0, ties counted half.

        S = mean of V_i over class 1,  V_i = share of class 0 below i;  of class 0 V_i = share of class 1 above i
        IF_i = n (V_i − S) / n_c,  c = target_i

    Source: DeLong, DeLong & Clarke-Pearson 1988.
    """
    margin, positive = _margins(scores)
    high, low = np.sort(margin[positive]), np.sort(margin[~positive])
    placed = np.empty(len(margin))
    placed[positive] = _share_below(low, margin[positive])
    placed[~positive] = 1 - _share_below(high, margin[~positive])
    area = placed[positive].mean()
    size = np.where(positive, len(high), len(low))
    shares: FloatArray = area + len(margin) * (placed - area) / size
    return shares


def average_precision_shares(scores: Scores) -> FloatArray:
    """Shares of the average precision of class 1, examples of equal score taken together.

        S = Σ_{i of class 1} P_i / p,  P_i = T_i / N_i
        IF_j = n/p ([j of class 1] (P_j − S) + Σ_{i of class 1, at or below j} ([j of class 1] − P_i) / N_i)

    with p examples of class 1, N_i examples at or above i, and T_i of class 1 among them.
    """
    return _precision_shares(*_margins(scores))


def average_precision(score: FloatArray, positive: NDArray[np.bool_]) -> float:
    """Average precision of the examples that are positive, by their scores (n,); equal ones are taken together."""
    return float(_precision_shares(score, positive).mean())


def _precision_shares(margin: FloatArray, positive: NDArray[np.bool_]) -> FloatArray:
    levels, place = np.unique(margin, return_inverse=True)
    ones = np.bincount(place, weights=positive, minlength=len(levels))
    every = np.bincount(place, minlength=len(levels))
    at_or_above = np.cumsum(every[::-1])[::-1]
    precision = np.cumsum(ones[::-1])[::-1] / at_or_above
    n, p = len(margin), positive.sum()
    value = (ones * precision).sum() / p
    counts, precisions = np.cumsum(ones / at_or_above), np.cumsum(ones * precision / at_or_above)
    own = positive * (precision[place] - value + counts[place])
    shares: FloatArray = value + n / p * (own - precisions[place])
    return shares


def _margins(scores: Scores) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The logit of class 1 less that of class 0, and whether class 1 is the target."""
    if scores.margin is None:
        raise ConfigurationError(
            "AUROC and average precision take a model of two classes, and this one has more outputs",
            "`metric=macro_f1`, for example, takes any number of classes",
        )
    return scores.margin.astype(np.float64), scores.targets == 1


def _share_below(others: FloatArray, values: FloatArray) -> FloatArray:
    """The share of sorted values that is below each of some values, ties counted half."""
    below, up_to = np.searchsorted(others, values, "left"), np.searchsorted(others, values, "right")
    shares: FloatArray = (below + up_to) / (2 * len(others))
    return shares


#: examples of each class that a statistic of two classes takes at least, so that every fold has both
FEWEST_OF_A_CLASS = 20

STATISTICS: dict[Metric, SetStatistic] = {
    "ece": SetStatistic(
        shares=lambda scores: calibration_shares(scores.confidence, scores.top1),
        faster=lambda scores: expected_calibration_error(scores.confidence, scores.top1),
        linearised=False,
    ),
    "macro_recall": SetStatistic(shares=macro_recall_shares, changes=macro_recall_changes),
    "macro_f1": SetStatistic(shares=macro_f1_shares, changes=macro_f1_changes),
    "auroc": SetStatistic(shares=auroc_shares, two_classes=True),
    "average_precision": SetStatistic(shares=average_precision_shares, two_classes=True),
}


def metrics_of(scores: Scores) -> tuple[Metric, ...]:
    """All metrics that mean something for these examples."""
    return (*MEANS, *statistics_of(scores))


def statistics_of(scores: Scores) -> tuple[Metric, ...]:
    """The statistics that mean something for these examples."""
    both = scores.margin is not None and len(np.unique(scores.targets)) == 2
    return tuple(name for name, each in STATISTICS.items() if both or not each.two_classes)
