"""Moving averages that were measured before the sweep."""

from __future__ import annotations

from typing import Literal

from alphatune.results.data import MeasuredData
from alphatune.results.document import Part
from alphatune.results.gain import PairedGain
from alphatune.results.metrics import Metrics
from alphatune.results.values import Count, Names, Size, Text


class Calibration(Part, frozen=True, kw_only=True):
    """Layers that kept no moving averages and now have some."""

    data: MeasuredData
    layers: Count
    kinds: dict[str, Size]
    unreached: Names


class Recalibration(Part, frozen=True, kw_only=True):
    """Moving averages that were replaced, and what that is worth at α = 0, before any example weighting."""

    data: MeasuredData
    order: Literal["one-pass", "layer-by-layer"]
    augmentation: Text
    layers: Count
    unreached: Names
    before: Metrics | None
    after: Metrics
    gain: PairedGain | None
