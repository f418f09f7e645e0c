"""Scores of the user's own that are no means over examples: mean IoU over all pixels, mean average precision.

A ``SetScore`` makes of each example a row of numbers, and of all rows the score:

    score = statistic(rows),    rows (n, k)

How surely a difference is more than luck is told by the jackknife: the examples
are divided into G groups, and each is left out in turn.

    share_g = S + p_g − mean p,    p_g = G S − (G − 1) S without g

The shares have the mean S and, as n and G grow, their spread tells the standard
error of S (Efron & Stein 1981). So they stand for the examples wherever a mean
is tested (selection.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from alphatune.core.errors import ConfigurationError
from alphatune.evaluation.reading import NAMES, tensors_of
from alphatune.statistics.set_statistics import average_precision

#: groups of examples in each fold, where there are enough
GROUPS = 10


@dataclass(frozen=True)
class SetScore:
    """A score of all examples together; larger is better.

    Args:
        rows: called with the model's outputs and the loader's targets; a tensor or array (N, k), the numbers that the
            statistic needs of each example.
        statistic: called with the rows (n, k) of any number of examples; one number.
        name: in reports; that of ``rows`` if it is left out.
    """

    rows: Callable[[Any, Any], Tensor | NDArray[Any]]
    statistic: Callable[[NDArray[Any]], float]
    name: str = ""

    @property
    def __name__(self) -> str:
        return self.name or str(getattr(self.rows, "__name__", "score"))

    def __call__(self, outputs: Any, targets: Any) -> Tensor | NDArray[Any]:
        return self.rows(outputs, targets)

    def value(self, rows: NDArray[Any]) -> float:
        """The score of some examples.

        Raises:
            ConfigurationError: the statistic gives no finite number.
        """
        try:
            value = float(self.statistic(rows))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"the statistic of {self.__name__} must give one number: {error}"
            ) from None
        if not np.isfinite(value):
            raise ConfigurationError(
                f"{self.__name__} is {value:g} over {len(rows)} of the examples",
                "it is computed over parts of them, too: every part has to have what it needs, such as labelled pixels",
            )
        return value

    def shares(self, rows: NDArray[Any], group: NDArray[np.int64]) -> NDArray[np.float64]:
        """The share of each group (G,) in the score, as this module's text says.

        Args:
            group: of each example (n,), counted from 0.
        """
        count, whole = int(group.max()) + 1, self.value(rows)
        if count == 1:
            return np.array([whole])
        without = np.array([self.value(rows[group != g]) for g in range(count)])
        pseudo = count * whole - (count - 1) * without
        shares: NDArray[np.float64] = whole + pseudo - pseudo.mean()
        return shares


def groups_of(
    fold: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group of each example (n,), at random within the folds, and the fold of each group."""
    group, folds = np.empty_like(fold), list[int]()
    for k in np.unique(fold):
        rows = rng.permutation(np.flatnonzero(fold == k))
        count = min(GROUPS, len(rows))
        group[rows] = len(folds) + np.arange(len(rows)) % count
        folds += [int(k)] * count
    return group, np.array(folds)


def _pixels(outputs: Any, masks: Any) -> Tensor:
    """Pixels (N, 2C) that are both predicted and labelled as each class, and those that are either.

    Args:
        outputs: logits (N, C, H, W), or a container of them; enlarged to the size of the masks. A single channel is
            the logit of class 1 against class 0.
        masks: classes (N, H, W); numbers that are none are not counted, such as 255.
    """
    found = {path: t for path, t in tensors_of(outputs).items() if t.ndim == 4 and t.is_floating_point()}
    named = [t for name in NAMES for path, t in found.items() if path and path[-1] == name]
    logits = next(iter((*named, *found.values())), None)
    if logits is None or not torch.is_tensor(masks) or masks.ndim != 3 or len(masks) != len(logits):
        raise ConfigurationError(
            "mean IoU takes logits (N, C, H, W) and masks (N, H, W) of class indices",
            "for other layouts pass a SetScore of your own",
        )
    if logits.shape[2:] != masks.shape[1:]:
        logits = interpolate(logits.float(), size=masks.shape[1:], mode="bilinear", align_corners=False)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    classes, masks = logits.shape[1], masks.to(logits.device)
    counted = (masks >= 0) & (masks < classes)
    predicted = logits.argmax(1)
    both, either = [], []
    for c in range(classes):
        there, chosen = (masks == c) & counted, (predicted == c) & counted
        both.append((there & chosen).sum((1, 2)))
        either.append((there | chosen).sum((1, 2)))
    return torch.stack([*both, *either], dim=1)  # whole numbers


def _mean_iou(rows: NDArray[Any]) -> float:
    both, either = np.split(rows.sum(axis=0, dtype=np.float64), 2)
    return float((both[either > 0] / either[either > 0]).mean()) if (either > 0).any() else float("nan")


def _scores_and_labels(outputs: Any, labels: Any) -> Tensor:
    """Logits and labels (N, 2C); a label is 1, 0, or negative if it is unknown."""
    found = [t for t in tensors_of(outputs).values() if torch.is_tensor(labels) and t.shape == labels.shape]
    if len(found) != 1 or labels.ndim != 2:
        raise ConfigurationError(
            "mean average precision takes logits (N, C) and labels (N, C) of 0 and 1",
            "for other layouts pass a SetScore of your own",
        )
    return torch.cat([found[0].float().cpu(), labels.float().cpu()], dim=1)


def _mean_average_precision(rows: NDArray[Any]) -> float:
    scores, labels = np.split(rows, 2, axis=1)
    found = []
    for column, label in zip(scores.T, labels.T, strict=True):
        known = label >= 0
        if (label[known] == 1).any():
            found.append(average_precision(column[known].astype(np.float64), label[known] == 1))
    return float(np.mean(found)) if found else float("nan")


#: of segmentation: IoU_c = pixels of class c found / pixels found or labelled, over all images, and its mean over
#: the classes that there are
mean_iou = SetScore(_pixels, _mean_iou, "mean IoU")
#: of multi-label classification: the mean over the classes of average precision
mean_average_precision = SetScore(_scores_and_labels, _mean_average_precision, "mean average precision")
