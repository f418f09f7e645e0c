"""What gains so many examples can tell from luck."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from alphatune.core.metrics import Measure
from alphatune.results.document import Part
from alphatune.results.values import Fraction, NonNegative, Positive, Size

#: "part": a search, where some of the examples choose; "progressive": the search of earlier versions
Choice = Literal["cross-fitted", "part", "progressive", "halves"]
#: more examples than this are not counted out
MOST_EXAMPLES = 10**9
Known = Literal["measured", "earlier result", "assumed"]


class Needed(Part, frozen=True, kw_only=True):
    """How many examples a gain needs, in the metric's unit."""

    gain: Positive
    examples: Size


class Power(Part, frozen=True, kw_only=True):
    """The smallest gain that these examples can tell from luck, and how many examples other gains need.

    "Can tell": of runs on new examples the share ``power`` finds the gain significant.
    """

    metric: Measure
    examples: Size
    choice: Annotated[Choice, Meta(description="How α is chosen and its gain measured.")]
    known: Annotated[Known, Meta(description="Where deviation and discordant come from.")]
    alpha: Fraction | None = None  # at which they were measured; null for finer α, and where they are assumed
    deviation: NonNegative  # of the paired difference from example to example
    discordant: Fraction | None = None  # share of the examples that turn from right to wrong or back
    confidence: Fraction = 0.95
    power: Fraction = 0.8
    smallest_gain: NonNegative
    needed: tuple[Needed, ...] = ()
