"""Results side by side."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from alphatune.core.metrics import Measure
from alphatune.results.alpha import ModelAlpha
from alphatune.results.bench import Deployment
from alphatune.results.data import Preprocessing
from alphatune.results.document import Part, VersionedDocument
from alphatune.results.gain import Decision, Gain
from alphatune.results.metrics import AnyMetrics
from alphatune.results.values import Count, Fraction, Interval, Names, Number, Positive, Size, Warnings

Run = Literal["baseline", "chosen", "best", "evaluated"]
Label = Annotated[str, Meta(pattern="^[A-Z]$")]


class ComparedModel(Part, frozen=True, kw_only=True):
    """Where a model came from, in short; patched is the number of layers."""

    source: str
    checkpoint: str
    checkpoint_sha256: str
    norm_layers: Count | None
    patched: Count


class ComparedData(Part, frozen=True, kw_only=True):
    """The examples, in short."""

    source: str
    split: str
    n: Size
    preprocessing: Preprocessing | None
    decoder: str


class Entry(Part, frozen=True, kw_only=True):
    """One result. Decision, gain and deployment are those of the result, which an older version may have written."""

    label: Label
    name: str
    command: Literal["tune", "evaluate"]
    run: Run
    alphatune: str
    model: ComparedModel
    data: ComparedData
    tuned_for: Measure | None
    score: str | None
    alpha: ModelAlpha
    temperature: Positive
    decision: Decision | None
    gain: Gain | None
    baseline: AnyMetrics | None
    metrics: AnyMetrics
    deployment: Deployment | None
    scores: bool
    rank: Annotated[Size | None, Meta(description="Among those of the same data.")]


class Difference(Part, frozen=True, kw_only=True):
    """The other result minus the first, in the metric's unit; null where nothing was tested."""

    metric: Measure
    difference: Number
    ci: Interval | None
    p: Fraction | None
    p_adjusted: Fraction | None
    method: str
    verdict: Literal["better", "worse", "undecided"] | None


class Predictions(Part, frozen=True, kw_only=True):
    """How many examples are classified differently, and by which of the two rightly."""

    examples: Count
    differ: Count
    both_right: Count
    first_only: Count
    other_only: Count
    both_wrong: Count


class Comparison(Part, frozen=True, kw_only=True):
    """A result against the first one."""

    first: Literal["A"] = "A"
    other: Label
    same_data: bool
    paired: bool
    reason: str
    differences: tuple[Difference, ...]
    predictions: Predictions | None
    remarks: Names


class CompareDocument(VersionedDocument, frozen=True, kw_only=True):
    """Results side by side, each with its differences to the first."""

    command: Literal["compare"] = "compare"
    metric: Measure
    seed: Count
    confidence: Fraction
    correction: Literal["none", "holm"]
    entries: Annotated[tuple[Entry, ...], Meta(min_length=2, max_length=26)]
    comparisons: Annotated[tuple[Comparison, ...], Meta(min_length=1, max_length=25)]
    ranking: Annotated[tuple[Label, ...], Meta(min_length=1, extra_json_schema={"uniqueItems": True})]
    warnings: Warnings
