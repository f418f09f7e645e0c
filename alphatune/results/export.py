"""What an export wrote, and how near it comes to the tuned model."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from alphatune.results.alpha import ModelAlpha
from alphatune.results.data import Preprocessing
from alphatune.results.document import Part, VersionedDocument
from alphatune.results.environment import SeededEnvironment
from alphatune.results.model import Source
from alphatune.results.values import Count, NonNegative, Positive, Runtime, Sha256, Size, Text, Warnings

Axis = Literal["batch", "height", "width"] | Size


class ExportedModel(Source, frozen=True, kw_only=True):
    """The tuned model."""

    alpha: ModelAlpha
    temperature: Positive
    temperature_in: Annotated[
        str | None, Meta(description='A layer, "graph", or null where it is not part of the export.')
    ]
    num_classes: Count


class ExportedFile(Part, frozen=True, kw_only=True):
    """A file that was written."""

    path: Text
    bytes: Count
    sha256: Sha256


class Export(Part, frozen=True, kw_only=True, tag_field="format"):
    """What was written."""

    path: Text
    files: Annotated[tuple[ExportedFile, ...], Meta(min_length=1)]
    preprocessing: Preprocessing


class ProgramExport(Export, frozen=True, kw_only=True, tag="pt2"):
    """torch's exported program; a name in the place of a size is a dimension that is left open."""

    input: Annotated[tuple[Axis, ...], Meta(min_length=4, max_length=4)]


class OnnxExport(ProgramExport, frozen=True, kw_only=True, tag="onnx"):
    """An ONNX file."""

    opset: Size
    input_name: str
    output_name: str


class WeightsExport(Export, frozen=True, kw_only=True, tag="safetensors"):
    """The weights alone."""


class HubExport(Export, frozen=True, kw_only=True, tag="hf"):
    """A folder for the Hugging Face hub."""


class CheckImages(Part, frozen=True, kw_only=True):
    """The images that the export was checked on."""

    source: str
    n: Count


class Agreement(Part, frozen=True, kw_only=True):
    """How near the logits come, by one reader at one batch size."""

    read_by: str
    batch_size: Size
    size: tuple[Size, ...]
    images: Count
    largest_difference: NonNegative
    allowed: NonNegative
    largest_logit: NonNegative
    predictions: Count
    different: Count


class Check(Part, frozen=True, kw_only=True):
    """What was written, compared with the tuned model."""

    images: CheckImages | None
    tolerance: NonNegative
    largest_difference: NonNegative
    results: Annotated[tuple[Agreement, ...], Meta(min_length=1)]


class GraphTiming(Part, frozen=True, kw_only=True):
    """Seconds a batch of the graph, and of that of the folded network, in one runtime on a CPU: medians."""

    runtime: Runtime
    threads: Size
    batch_size: Size
    median_s: Positive
    folded_s: Positive
    ratio_to_folded: Positive


class ExportDocument(VersionedDocument, frozen=True, kw_only=True):
    """What was written, and how near it comes to the tuned model; "check" is null where nothing had to be run."""

    command: Literal["export"] = "export"
    model: ExportedModel
    export: ProgramExport | OnnxExport | WeightsExport | HubExport
    check: Check | None
    timing: tuple[GraphTiming, ...] = ()
    env: SeededEnvironment
    warnings: Warnings
