"""The result of an evaluation."""

from __future__ import annotations

from typing import Literal

from alphatune.results.data import Data
from alphatune.results.document import Artifact, Part, VersionedDocument
from alphatune.results.environment import RunEnvironment
from alphatune.results.metrics import Metrics
from alphatune.results.model import EvaluatedModel
from alphatune.results.values import Fraction, Number, Size, Text, Warnings


class EvaluatedCondition(Part, frozen=True, kw_only=True):
    """The metrics on images under one condition."""

    name: Text
    made: bool  # a shift of the clean images; else images as they are
    severities: tuple[Size, ...] = ()  # in equal parts
    source: Text  # of its images
    metrics: Metrics


class CorruptionError(Part, frozen=True, kw_only=True):
    """Error (1 − top-1) over the shifts, each of equal weight; not in units of AlexNet's, as ImageNet-C's mCE is.

    mean = mean_k (1 − top1_k),    relative = mean_k (top1_clean − top1_k)
    """

    mean: Fraction
    relative: Number
    shifts: Size


class EvaluateDocument(VersionedDocument, frozen=True, kw_only=True):
    """The metrics of a model on some data."""

    command: Literal["evaluate"] = "evaluate"
    model: EvaluatedModel
    data: Data
    env: RunEnvironment
    metrics: Metrics  # of the clean images, where there are conditions
    conditions: tuple[
        EvaluatedCondition, ...
    ] = ()  # the clean images first; none without shifts or further data
    mean_corruption_error: CorruptionError | None = None
    scores: Artifact | None = None  # where those of every example are kept, if they are
    warnings: Warnings = ()
