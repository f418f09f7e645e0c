"""The results of the demo's steps."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from alphatune.results.document import Part, VersionedDocument
from alphatune.results.metrics import Metrics
from alphatune.results.training import TrainDocument
from alphatune.results.tune import TuneDocument
from alphatune.results.values import Count, Fraction, NonNegative, Number, Size


class DemoImages(Part, frozen=True, kw_only=True):
    """Numbers of images."""

    train: Size
    validation: Size


class Shift(Part, frozen=True, kw_only=True):
    """The simulated scanner."""

    contrast: Number
    background: Fraction
    blur: NonNegative
    noise: NonNegative


class BeforeAfter(Part, frozen=True, kw_only=True):
    """Metrics of the unpatched and of the tuned model."""

    baseline: Metrics
    chosen: Metrics


class DemoDocument(VersionedDocument, frozen=True, kw_only=True):
    """demo.json: the results of the demo's steps."""

    command: Literal["demo"] = "demo"
    seed: Count
    images: DemoImages
    shift: Shift
    unshifted: BeforeAfter
    shifted: BeforeAfter
    train: TrainDocument
    tune: TuneDocument
    next: tuple[Annotated[str, Meta(pattern="^alphatune ")], ...]
