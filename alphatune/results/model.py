"""Where a model comes from, and what became of each of its norm layers."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from alphatune.results.alpha import ModelAlpha
from alphatune.results.document import Part
from alphatune.results.values import Count, LayerStatus, ModelKind, Names, Open, Positive


class Output(Part, frozen=True, kw_only=True):
    """Which of a model's outputs holds the logits, and whether they are probabilities; single: one number an example,
    for the second of two classes."""

    path: tuple[str | int, ...]
    probabilities: bool
    single: bool = False


class Source(Part, frozen=True, kw_only=True):
    """Where architecture and weights came from."""

    source: str
    kind: ModelKind
    model_kwargs: Open
    checkpoint: str
    checkpoint_sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
    weights_key: str = ""
    unsafe_pickle: bool = False
    output: Annotated[Output | None, Meta(description="null: not examined.")] = None


class SkippedLayer(Part, frozen=True, kw_only=True):
    """A norm layer that was left alone."""

    name: str
    kind: str
    reason: str
    status: LayerStatus | UnsetType = UNSET


class LayerRemark(Part, frozen=True, kw_only=True):
    """Something unusual about a patched layer."""

    name: str
    remark: str


class Model(Source, frozen=True, kw_only=True):
    """The source, and what became of each norm layer."""

    norm_layers: Count
    patched: Names
    skipped: tuple[SkippedLayer, ...]
    remarks: tuple[LayerRemark, ...] = ()


class EvaluatedModel(Model, frozen=True, kw_only=True):
    """A model as it was evaluated."""

    alpha: ModelAlpha
    temperature: Positive = 1.0


class PlannedModel(Source, frozen=True, kw_only=True):
    """A model before anything is run."""

    norm_layers: Count
    patched: Names
