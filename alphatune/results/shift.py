"""What a tune over several conditions found: shifts made from clean images, or data sets of the user's own."""

from __future__ import annotations

from typing import Literal

from alphatune.core.metrics import Metric
from alphatune.results.document import Part
from alphatune.results.gain import Gain
from alphatune.results.intervals import Intervals
from alphatune.results.metrics import Metrics
from alphatune.results.values import Count, Fraction, NonNegative, Number, Size, Text

#: how the metric is put together over the conditions
Over = Literal["mean", "worst"]


class ConditionPoint(Part, frozen=True, kw_only=True):
    """The metric that is tuned by at one α for all layers, in one condition, on all of its images."""

    alpha: Fraction
    value: Number  # in the metric's own direction
    measured: bool  # else interpolated


class Condition(Part, frozen=True, kw_only=True):
    """One condition: the metrics before and after, on all of its images."""

    name: Text
    made: bool  # from the clean images; else data of its own
    severities: tuple[Size, ...] = ()  # in equal parts
    source: str  # of its images
    baseline: Metrics
    chosen: Metrics
    ci: Intervals  # 95 % intervals of the change
    curve: tuple[ConditionPoint, ...] = ()  # over α


class Unseen(Part, frozen=True, kw_only=True):
    """What tuning without one of the shifts is worth on that shift, on images that took no part either."""

    condition: Text
    gain: Gain


class Guard(Part, frozen=True, kw_only=True):
    """A limit to what a condition may lose. Cost and bound are in the metric's unit; positive is worse."""

    condition: Text
    metric: Metric
    margin: NonNegative | None  # null: not significantly worse
    cost: Number
    bound: Number  # end of the one-sided 95 % interval that was held against the margin
    passed: bool
    reason: Text


class Shift(Part, frozen=True, kw_only=True):
    """A tune over several conditions; the document's other metrics are means over them."""

    over: Over
    conditions: tuple[Condition, ...]
    guards: tuple[Guard, ...]
    worst: tuple[Number, Number]  # the metric in the worst condition, before and after
    unseen: tuple[Unseen, ...] = ()
    unseen_mean: Gain | None = None  # over all shifts, each left out in turn


class Row(Part, frozen=True, kw_only=True):
    """A repair's value, averaged over some conditions, with the interval of its change against plain."""

    value: Number
    ci: tuple[Number, Number]


class LabelCount(Part, frozen=True, kw_only=True):
    """What each repair is worth when tuned on so many labelled images, on the rest."""

    images: Size
    repair: Text
    clean: Row
    seen: Row | None  # on shifts it was tuned on
    unseen: Row | None  # on shifts it was not tuned on


class LabelCurve(Part, frozen=True, kw_only=True):
    """What each repair is worth by number of labelled images; the metric is in its own direction."""

    metric: Metric
    tested_on: Count  # images that took no part in any tuning
    rows: tuple[LabelCount, ...]
    crossings: tuple[Text, ...]  # sentences: where one repair overtakes another
