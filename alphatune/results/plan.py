"""What ``plan`` prints: what would be run, and on what."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from alphatune.results.data import Data, MeasuredData
from alphatune.results.document import SCHEMA, Document, Part
from alphatune.results.environment import RunEnvironment, SeededEnvironment, TrainEnvironment
from alphatune.results.model import PlannedModel
from alphatune.results.power import Power
from alphatune.results.training import TrainData, TrainedModel
from alphatune.results.values import Fraction, NonNegative, Open, Positive, Text, Warnings


class PlannedAverages(Part, frozen=True, kw_only=True):
    """Images that moving averages would be measured on."""

    data: MeasuredData


class Phase(Part, frozen=True, kw_only=True):
    """Part of a tune, and the least and the most it is expected to cost, in plain evaluations of all images."""

    name: Text
    evaluations: tuple[NonNegative, NonNegative]


class PlannedWork(Part, frozen=True, kw_only=True):
    """What a tune would do, and the time to expect on this machine."""

    phases: Annotated[tuple[Phase, ...], Meta(min_length=1)]
    evaluations: tuple[NonNegative, NonNegative]
    seconds_per_image: (
        Positive | None
    )  # of a forward pass, timed on a few images; null where they would not run
    seconds: tuple[NonNegative, NonNegative] | None


class ImagesPlan(Document, frozen=True, kw_only=True):
    """The plan of tune and evaluate; all from `work` on is of tune. Two `power`: the least and the most that is usual."""

    command: Literal["dry-run"] = "dry-run"
    model: PlannedModel
    data: Data
    env: RunEnvironment
    alphas: tuple[Fraction, ...]
    settings: Open
    warnings: Warnings
    work: PlannedWork | None = None
    power: tuple[Power, ...] = ()
    calibration: PlannedAverages | UnsetType | None = UNSET
    recalibration: PlannedAverages | UnsetType | None = UNSET


class PlannedData(Part, frozen=True, kw_only=True):
    """A loader of the user's own."""

    source: str


class PlannedScore(Part, frozen=True, kw_only=True):
    """A score of the user's own."""

    source: str


class ScorePlan(Document, frozen=True, kw_only=True):
    """The plan of tune with `score`."""

    command: Literal["dry-run"] = "dry-run"
    model: PlannedModel
    data: PlannedData
    env: SeededEnvironment
    metric: Literal["score"] = "score"
    score: PlannedScore
    alphas: Annotated[tuple[Fraction, ...], Meta(min_length=1)]
    settings: Open
    warnings: Warnings
    power: tuple[Power, ...] = ()


class TrainPlan(Part, frozen=True, kw_only=True):
    """The plan of train."""

    model: TrainedModel
    data: TrainData
    env: TrainEnvironment
    warnings: Warnings
    schema: Literal[1] = SCHEMA
    command: Literal["dry-run"] = "dry-run"
    settings: Open
