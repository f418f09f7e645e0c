"""Times of a model on one machine."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from alphatune.results.alpha import ModelAlpha
from alphatune.results.document import Part, VersionedDocument
from alphatune.results.environment import BenchEnvironment
from alphatune.results.model import Source
from alphatune.results.values import (
    Count,
    Kernel,
    Names,
    NonNegative,
    Number,
    Positive,
    Runtime,
    Size,
    Warnings,
)


class Deployment(Part, frozen=True, kw_only=True):
    """Times of a forward pass, relative to others; ratio_to_folded is null where nothing could be folded."""

    batch_size: Size
    alpha: ModelAlpha
    kernel: Kernel | None
    ratio_to_plain: Positive
    ratio_to_folded: Positive | None
    ratio_compiled: Positive | None = None
    runtime: Runtime = "torch"


class VariantTiming(Part, frozen=True, kw_only=True):
    """One variant of the model: seconds are of a batch, the quartiles with the median."""

    batch_size: Size
    variant: Literal["plain", "folded", "example-weighted"]
    kernel: Kernel | None
    torch_compile: bool
    median_s: Positive
    low_s: Positive
    high_s: Positive
    rounds: Size
    images_per_s: Positive
    ratio_to_plain: Positive
    peak_bytes: Count | None
    first_use_s: NonNegative


class UnfoldedLayer(Part, frozen=True, kw_only=True):
    """A norm layer that does not go into a convolution."""

    name: str
    reason: str


class Folding(Part, frozen=True, kw_only=True):
    """How many norm layers went into convolutions, and how far the outputs moved."""

    norms: Count
    folded: Count
    largest_difference: NonNegative | None
    kept: tuple[UnfoldedLayer, ...]


class LayerKindCost(Part, frozen=True, kw_only=True):
    """Layers of one shape in the same place of a block; share is what each adds, in multiples of the folded time."""

    layers: Annotated[Names, Meta(min_length=1)]
    shape: tuple[Size, ...]
    share: Number


class LayerSetCost(Part, frozen=True, kw_only=True):
    """A random set of layers: its time in multiples of the folded network's, added up and measured."""

    layers: Names
    predicted: Number
    measured: Positive


class LayerCosts(Part, frozen=True, kw_only=True):
    """What α costs layer by layer for batches of one size; everywhere: α in all layers."""

    batch_size: Size
    folded_s: Positive
    kinds: Annotated[tuple[LayerKindCost, ...], Meta(min_length=1)]
    everywhere: Positive
    sets: tuple[LayerSetCost, ...]


class BenchDocument(VersionedDocument, frozen=True, kw_only=True):
    """Times of a model on one machine; "_s" are seconds per batch, low and high the quartiles."""

    command: Literal["bench"] = "bench"
    model: Source
    env: BenchEnvironment
    results: Annotated[tuple[VariantTiming, ...], Meta(min_length=1)]
    folded: Folding
    cost: Annotated[tuple[Deployment, ...], Meta(min_length=1)]
    layers: tuple[LayerCosts, ...] = ()
    warnings: Warnings
