"""Intervals by metric."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from alphatune.core.metrics import Measure
from alphatune.results.values import Interval

Intervals = Annotated[
    dict[Measure, Interval], Meta(description="95 % intervals of the change against the baseline.")
]
