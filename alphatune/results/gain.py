"""What a change is worth over the same examples."""

from __future__ import annotations

from typing import Literal

from alphatune.core.metrics import Measure
from alphatune.results.document import Part
from alphatune.results.values import Count, Fraction, Interval, Number, Size, Text

#: earlier versions searched in lots, each scored at the α that those before it chose: "progressive"
Scheme = Literal["cross-fitted", "progressive"]


class PairedGain(Part, frozen=True, kw_only=True):
    """An improvement over the same examples, in the metric's unit; positive is better."""

    metric: Measure
    examples: Size
    delta: Number
    ci: Interval
    p: Fraction
    method: str
    confidence: Fraction
    significant: bool


class Gain(Part, frozen=True, kw_only=True):
    """What choosing α is worth on unseen examples, in the metric's unit; positive is better."""

    metric: Measure
    delta: Number
    ci: Interval
    p: Fraction
    method: str
    confidence: Fraction
    scheme: Scheme = "cross-fitted"
    examples: Size = 0  # whose scores the gain is the mean of; not known of the earliest results
    folds: Count  # 0 for a progressive gain
    fold_alphas: tuple[Fraction, ...]  # the α that each fold, or lot, was scored at
    significant: bool


class Decision(Part, frozen=True, kw_only=True):
    """Whether the unpatched model is kept, and why."""

    keep_baseline: bool
    significant: bool
    reason: Text
