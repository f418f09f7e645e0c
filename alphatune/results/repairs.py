"""α beside what is free: temperature, running statistics, γ and β, tuned on the same images in the same way."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from alphatune.results.document import Part
from alphatune.results.gain import Gain
from alphatune.results.metrics import Metrics
from alphatune.results.values import Count, NonNegative, Number, Text

#: from free to costly at inference, and then by how many numbers are tuned
RepairName = Literal["plain", "temperature", "averages", "affine", "global", "stage", "layer", "channel"]
Choose = Literal["alpha", "cheapest"]
Rivals = Literal["none", "free"]


class Repair(Part, frozen=True, kw_only=True):
    """One way to repair the network, scored on images that took no part in tuning it."""

    name: RepairName
    numbers: Count  # that were tuned by labels
    free: bool  # whether it costs nothing at inference
    with_temperature: bool
    metrics: Metrics  # out of fold; means over the conditions
    objective: Number  # what repairs are compared by, larger is better
    by_condition: dict[str, Metrics] = field(default_factory=dict)
    over_plain: Gain | None  # null for plain itself
    behind_best: Gain | None  # the best one's gain over it; null for the best itself
    guarded: bool = False  # whether a guard rules it out
    seconds: NonNegative = 0.0


class Repairs(Part, frozen=True, kw_only=True):
    """All repairs that were tried, and which is deployed."""

    choose: Choose
    chosen: RepairName
    best: RepairName
    reason: Text
    tried: tuple[Repair, ...]


#: in a sentence
NAMES: dict[str, str] = {
    "plain": "the plain network",
    "temperature": "a temperature",
    "averages": "running statistics measured anew",
    "affine": "tuned γ and β",
    "global": "one α for all layers",
    "stage": "one α a stage",
    "layer": "one α a layer",
    "channel": "one α a channel",
    "global and affine": "one α with γ and β",
}
