"""Metrics of a model over n examples."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from alphatune.results.document import Part
from alphatune.results.values import Fraction, NonNegative, Number, Size

#: of a metric that earlier versions did not have, or that means something for two classes only
Sometimes = Fraction | UnsetType


class Metrics(Part, frozen=True, kw_only=True):
    """Metrics of n examples: all fractions, but for the loss in nats; the last two of two classes only."""

    n: Size
    top1: Fraction
    top5: Fraction
    loss: NonNegative
    ece: Fraction
    macro_recall: Sometimes = UNSET
    macro_f1: Sometimes = UNSET
    auroc: Sometimes = UNSET
    average_precision: Sometimes = UNSET


class ScoreMetrics(Part, frozen=True, kw_only=True):
    """The mean of a score of the user's own; larger is better."""

    n: Size
    score: Number


class AnyMetrics(Part, frozen=True, kw_only=True):
    """Metrics of a classifier, or a score of the user's own."""

    n: Size
    top1: Sometimes = UNSET
    top5: Sometimes = UNSET
    loss: NonNegative | UnsetType = UNSET
    ece: Sometimes = UNSET
    macro_recall: Sometimes = UNSET
    macro_f1: Sometimes = UNSET
    auroc: Sometimes = UNSET
    average_precision: Sometimes = UNSET
    score: Number | UnsetType = UNSET


class Validation(Part, frozen=True, kw_only=True):
    """Metrics of the validation examples after the last epoch."""

    top1: Fraction
    top5: Fraction
    loss: NonNegative
    ece: Fraction


class Best(Part, frozen=True, kw_only=True):
    """The optimal α of each metric; null where it is not known, as a search follows one metric only."""

    top1: Fraction | None = None
    top5: Fraction | None = None
    loss: Fraction | None = None
    ece: Fraction | None = None
    macro_recall: Sometimes = UNSET
    macro_f1: Sometimes = UNSET
    auroc: Sometimes = UNSET
    average_precision: Sometimes = UNSET


class BestScore(Part, frozen=True, kw_only=True):
    """The optimal α of a score of the user's own."""

    score: Fraction
