"""Which examples, and how they were prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from alphatune.results.document import Part
from alphatune.results.values import Count, Number, Positive, Size


class Preprocessing(Part, frozen=True, kw_only=True):
    """How an image becomes the model's input."""

    input_size: tuple[Size, Size, Size]
    mean: Annotated[tuple[Number, ...], Meta(min_length=1, max_length=3)]
    std: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=3)]
    interpolation: str
    crop_pct: Positive
    crop_mode: Literal["center", "squash", "border"]


class SkippedImage(Part, frozen=True, kw_only=True):
    """An image that cannot be read."""

    name: str
    reason: str


class Data(Part, frozen=True, kw_only=True):
    """Which examples, and how they were prepared."""

    source: str
    root: str
    split: str
    n: Size
    classes: Count
    class_map: str = ""
    labels: Annotated[str, Meta(description="The file that the labels were read from.")] = ""
    classes_only_present: Annotated[
        bool,
        Meta(
            description="Whether only the outputs of the classes in the data are scored; classes counts those."
        ),
    ] = False
    preprocessing: Preprocessing
    decoder: str = ""
    skipped: Annotated[
        tuple[SkippedImage, ...], Meta(description="Images that cannot be read, left out of all passes.")
    ] = ()


class ScoredData(Part, frozen=True, kw_only=True):
    """Examples of a loader of the user's own."""

    source: str
    n: Size


class MeasuredData(Part, frozen=True, kw_only=True):
    """Images that moving averages are measured on."""

    source: str
    root: str
    split: str
    n: Size
    batch_size: Size
    decoder: str
