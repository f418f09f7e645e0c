"""Every norm layer of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType, field

from alphatune.results.data import Data, Preprocessing
from alphatune.results.document import Document, Part
from alphatune.results.model import Source
from alphatune.results.values import Count, LayerStatus, Names, NonNegative, Number, Positive, Size, Warnings


class InspectedModel(Source, frozen=True, kw_only=True):
    """The source, and the logits per example."""

    num_classes: Annotated[
        Count | None, Meta(description="Logits per example; null where the model is no classifier.")
    ]


class InspectedLayer(Part, frozen=True, kw_only=True):
    """A norm layer: what it is, what it sees, whether it can be patched, its health."""

    name: str
    kind: str
    status: LayerStatus
    reason: str
    num_features: Size | None
    eps: NonNegative | None
    momentum: Number | None
    affine: bool
    aliases: Names
    spatial: tuple[Size, ...] | None
    positions: Count | None
    remark: str
    health: str
    healthy: bool
    distance: NonNegative | None
    stale: bool | None
    free_path: bool | UnsetType | None = UNSET


class InspectedData(Data, frozen=True, kw_only=True):
    """The examples that the stored averages were compared with."""

    threshold: Positive


class Paths(Part, frozen=True, kw_only=True):
    """How many norm layers have a norm-free path to the output."""

    found: Count = field(name="with")
    of: Count
    unknown: Count


class InspectDocument(Document, frozen=True, kw_only=True):
    """Every norm layer of a model.

    "free_path" and "paths" come with `paths`; "distance" and "stale" are null without `data`.
    """

    command: Literal["inspect"] = "inspect"
    model: InspectedModel
    preprocessing: Preprocessing
    layers: tuple[InspectedLayer, ...]
    summary: Annotated[dict[LayerStatus, Size], Meta(description="Layers by status.")]
    warnings: Warnings
    data: InspectedData | None
    paths: Paths | UnsetType = UNSET
