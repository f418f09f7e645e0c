"""What α is worth in smaller and smaller sets of layers, and what it costs there."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from alphatune.results.document import Part
from alphatune.results.gain import Gain
from alphatune.results.metrics import Metrics
from alphatune.results.values import Count, Names, Number, Positive, Size

#: how costs were found; counted: from multiply-adds and bytes moved
PricedBy = Literal["torch", "onnxruntime", "counted"]


class LayerSet(Part, frozen=True, kw_only=True):
    """α in so many layers, fitted on one half of the examples and scored on the other, in turn.

    Each half chooses layers of its own; ``ratio`` is the mean of both.
    """

    layers: tuple[Count, Count]  # of each half
    ratio: Number  # times the folded network's time, by adding up what the layers cost
    metrics: Metrics
    calibrated: Metrics  # with the temperature of the other half
    gain: Gain  # over the plain network
    within_budget: bool
    keeps_guards: bool


class Front(Part, frozen=True, kw_only=True):
    """Gain and cost of each set of layers that was tried, from all layers down, and which one is deployed."""

    granularity: Literal["global", "stage", "layer", "channel"]
    with_temperature: bool  # whether gains are those over the plain network with a temperature
    runtime: PricedBy
    batch_size: Size
    threads: Count  # 0 where nothing was timed
    budget: Positive | None  # times the folded network's time that inference may take
    sets: Annotated[tuple[LayerSet, ...], Meta(min_length=1)]
    chosen: Count | None  # place among the sets; null: none has a significant gain within the budget
    layers: Names = ()  # that take an α in the end
    predicted: Number = 1.0  # times the folded network's time with these, by adding up
    measured: Positive | None = None  # the same, timed
