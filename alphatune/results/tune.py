"""The result of a tune, by a metric or by a score of the user's own."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, field

from alphatune.core.metrics import Metric
from alphatune.results.alpha import ModelAlpha
from alphatune.results.averages import Calibration, Recalibration
from alphatune.results.bench import Deployment
from alphatune.results.data import Data, ScoredData
from alphatune.results.document import Artifact, Part, VersionedDocument
from alphatune.results.environment import ScoreEnvironment, TuneEnvironment
from alphatune.results.front import Front, LayerSet
from alphatune.results.gain import Decision, Gain
from alphatune.results.intervals import Intervals
from alphatune.results.metrics import Best, BestScore, Metrics, ScoreMetrics, Sometimes
from alphatune.results.model import Model
from alphatune.results.power import Power
from alphatune.results.repairs import Repairs
from alphatune.results.shift import LabelCurve, Shift
from alphatune.results.values import (
    Count,
    Fraction,
    Interval,
    NonNegative,
    Number,
    Positive,
    Size,
    Text,
    Warnings,
)

LevelName = Literal["plain", "global", "stage", "layer", "channel"]
Accept = Literal["significant", "best"]
CommandLine = Annotated[str, Meta(pattern="^alphatune tune ")]


class Point(Part, frozen=True, kw_only=True):
    """One α of the curve; where it is not measured, the metrics are estimates: baseline plus paired difference."""

    alpha: Fraction
    measured: bool
    n: Size = 0  # not known of the earliest results
    top1: Fraction
    top5: Fraction
    loss: NonNegative
    ece: Number
    macro_recall: Sometimes = UNSET
    macro_f1: Sometimes = UNSET
    auroc: Sometimes = UNSET
    average_precision: Sometimes = UNSET
    ci: Intervals


class ScorePoint(Part, frozen=True, kw_only=True):
    """One α of the curve of a score of the user's own."""

    alpha: Fraction
    measured: Annotated[bool, Meta(extra_json_schema={"const": True})] = True
    n: Size
    score: Number
    ci: Intervals


class Chosen(Part, frozen=True, kw_only=True):
    """The α and temperature of the tuned model, and its metrics on all examples."""

    alpha: ModelAlpha
    temperature: Positive = 1.0
    metrics: Metrics
    ci: Intervals = field(default_factory=dict)

    @property
    def on_curve(self) -> bool:
        """Whether it is a point of the curve: one α for all layers, and no temperature."""
        return not isinstance(self.alpha, dict) and self.temperature == 1


class ScoreChosen(Part, frozen=True, kw_only=True):
    """The α of the tuned model, and its score on all examples."""

    alpha: Fraction
    temperature: Annotated[float, Meta(ge=1, le=1)] = 1.0
    metrics: ScoreMetrics

    @property
    def on_curve(self) -> bool:
        """Always: it is one α for all layers."""
        return True


class Score(Part, frozen=True, kw_only=True):
    """A score of the user's own: where the function comes from, and its name."""

    source: str
    name: str


class Search(Part, frozen=True, kw_only=True):
    """How α was searched for: interpolation nodes, and how many examples chose and confirmed."""

    nodes: Annotated[tuple[Fraction, ...], Meta(min_length=1)]
    range: Interval
    choosing: Count
    confirming: Count
    estimated_error: NonNegative


class Level(Part, frozen=True, kw_only=True):
    """A granularity of α, fitted on one half of the examples and scored on the other, in turn."""

    name: LevelName = field(name="level")
    units: Count  # numbers that were fitted
    metrics: Metrics
    calibrated: Metrics  # with the temperature of the other half
    temperatures: tuple[Positive, ...]  # of each half
    over_coarser: Gain | None  # null for what nothing is coarser than
    over_plain: Gain | None
    accepted: bool
    steps: tuple[Count, ...]  # of each half's descent; 0: nothing beat the start
    seconds: NonNegative
    passes: NonNegative  # forward passes, as multiples of the examples

    @property
    def mean_temperature(self) -> float:
        """Over the halves."""
        return sum(self.temperatures) / len(self.temperatures)


class Refinement(Part, frozen=True, kw_only=True):
    """What finer α and a temperature are worth."""

    granularity: LevelName
    chosen: LevelName
    with_temperature: bool
    temperature_gain: Gain | None
    levels: Annotated[tuple[Level, ...], Meta(min_length=1)]
    front: Front | None = None  # where layers were chosen

    @property
    def deployed(self) -> Level | LayerSet:
        """What was chosen, by its scores out of fold."""
        if self.front is not None and self.front.chosen:
            return self.front.sets[self.front.chosen]
        return next(level for level in self.levels if level.name == self.chosen)


class BatchStatistics(Part, frozen=True, kw_only=True):
    """Inference by the test batch's statistics: shown for comparison, never chosen."""

    pseudo_count: NonNegative
    batch_size: Size
    n: Size
    top1: Fraction
    top5: Fraction
    loss: NonNegative
    ece: Fraction
    macro_recall: Sometimes = UNSET
    macro_f1: Sometimes = UNSET
    auroc: Sometimes = UNSET
    average_precision: Sometimes = UNSET
    ci: Intervals
    changed: Fraction


class Gate(Part, frozen=True, kw_only=True):
    """A requirement on the result; value is null where it is not known."""

    name: Text
    limit: Number
    value: Number | None
    interval: Interval | None = None  # of the value, where that was judged (`gate_on=interval`) and is known
    passed: bool
    undecided: bool = False  # failed for want of images: with more of them it may pass
    reason: str


class Cached(Part, frozen=True, kw_only=True):
    """The earlier run that a result was taken from."""

    key: Annotated[str, Meta(pattern="^[0-9a-f]+$")]
    measured: Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class TuneDocument(VersionedDocument, frozen=True, kw_only=True):
    """result.json of a tune, and what tune prints as JSON."""

    command: Literal["tune"] = "tune"
    command_line: CommandLine = ""
    model: Model
    data: Data
    env: TuneEnvironment
    metric: Metric
    baseline_alpha: Fraction = 0.0
    accept: Accept = "significant"
    curve: Annotated[tuple[Point, ...], Meta(min_length=1)]
    baseline: Metrics
    best: Best
    chosen: Chosen
    refinement: Refinement | None = None
    search: Search | None = None
    passes: NonNegative = 0.0
    seconds: NonNegative = 0.0
    gain: Gain | None
    power: Power | None = None
    batch_statistics: BatchStatistics | None = None
    shift: Shift | None = None
    repairs: Repairs | None = None
    label_curve: LabelCurve | None = None
    decision: Decision
    calibration: Calibration | None = None
    recalibration: Recalibration | None = None
    gates: tuple[Gate, ...] = ()
    cache: Cached | None = None
    artifacts: tuple[Artifact, ...]
    warnings: Warnings = ()
    deployment: Deployment | None = None

    @property
    def score_name(self) -> str:
        """None was used."""
        return ""


class ScoreTuneDocument(VersionedDocument, frozen=True, kw_only=True):
    """result.json of a tune by a score of the user's own."""

    command: Literal["tune"] = "tune"
    command_line: CommandLine
    model: Model
    data: ScoredData
    env: ScoreEnvironment
    metric: Literal["score"] = "score"
    score: Score
    baseline_alpha: Fraction
    accept: Accept
    curve: Annotated[tuple[ScorePoint, ...], Meta(min_length=1)]
    baseline: ScoreMetrics
    best: BestScore
    chosen: ScoreChosen
    refinement: None = None
    search: None = None
    passes: NonNegative
    seconds: NonNegative
    gain: Gain | None
    power: Power | None = None
    deployment: None = None
    batch_statistics: None = None
    decision: Decision
    gates: tuple[Gate, ...] = ()
    cache: Cached | None = None
    artifacts: tuple[Artifact, ...]
    warnings: Warnings = ()

    @property
    def score_name(self) -> str:
        """What the score is called."""
        return self.score.name

    @property
    def calibration(self) -> None:
        """Nothing is measured for a score of the user's own."""

    @property
    def recalibration(self) -> None:
        """Nothing is measured for a score of the user's own."""

    @property
    def shift(self) -> None:
        """Nothing is compared with a score of the user's own."""

    @property
    def repairs(self) -> None:
        """Nothing is compared with a score of the user's own."""

    @property
    def label_curve(self) -> None:
        """Nothing is compared with a score of the user's own."""


Tuned = TuneDocument | ScoreTuneDocument
