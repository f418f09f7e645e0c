"""The result of an evaluation."""

from __future__ import annotations

from typing import Literal

from alphatune.results.data import Data
from alphatune.results.document import Artifact, VersionedDocument
from alphatune.results.environment import RunEnvironment
from alphatune.results.metrics import Metrics
from alphatune.results.model import EvaluatedModel
from alphatune.results.values import Warnings


class EvaluateDocument(VersionedDocument, frozen=True, kw_only=True):
    """The metrics of a model on some data."""

    command: Literal["evaluate"] = "evaluate"
    model: EvaluatedModel
    data: Data
    env: RunEnvironment
    metrics: Metrics
    scores: Artifact | None = None  # where those of every example are kept, if they are
    warnings: Warnings = ()
