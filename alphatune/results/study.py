"""The result of repeating a figure or table of the paper."""

from __future__ import annotations

from typing import Literal

from alphatune.results.document import Artifact, Part, VersionedDocument
from alphatune.results.gain import Gain
from alphatune.results.values import Count, Fraction, Interval, Names, NonNegative, Number, Open, Size, Text

Verdict = Literal["holds", "does not", "cannot be told"]


class AlphaCurve(Part, frozen=True, kw_only=True):
    """Accuracy and loss (nats) on some images at each α of a run."""

    images: Size
    top1: tuple[Fraction, ...]
    loss: tuple[Number, ...]


class StudyRun(Part, frozen=True, kw_only=True):
    """One trained network, a line of runs.jsonl.

    Where training diverged the curves are those of guessing.
    """

    scale: Text
    experiment: Open
    seed: Count
    alphas: tuple[Fraction, ...]
    choosing: AlphaCurve
    reporting: AlphaCurve
    seconds: NonNegative
    machine: Text
    diverged: bool = False


class Estimate(Part, frozen=True, kw_only=True):
    """A mean over seeds, and its 95 % interval by Student's t; None with one seed."""

    mean: Number
    interval: Interval | None


class Variant(Part, frozen=True, kw_only=True):
    """An experiment over its seeds, in fractions of top-1.

    plain is inference as trained, weighted that with the α chosen on other
    images; difference is plain less the first variant's, paired by seed.
    """

    name: Text
    seeds: tuple[Count, ...]
    plain: Estimate
    weighted: Estimate
    gain: Estimate
    difference: Estimate | None
    alphas: tuple[Fraction, ...]
    curve: tuple[Number, ...]
    diverged: Count = 0  # runs whose training diverged; they count as guessing


class TestedClaim(Part, frozen=True, kw_only=True):
    """A sentence of the paper, and whether it holds here: the difference (fractions of top-1) by seed."""

    text: Text
    better: Text
    than: Text
    difference: Estimate
    verdict: Verdict


class NetworkCurve(Part, frozen=True, kw_only=True):
    """A checkpoint over α: means, their changes against the unpatched model with pointwise 95 % intervals, and what
    choosing α is worth."""

    name: Text
    images: Size
    alphas: tuple[Fraction, ...]
    top1: tuple[Fraction, ...]
    loss: tuple[Number, ...]
    top1_change: tuple[Interval, ...]
    loss_change: tuple[Interval, ...]
    best: dict[str, Fraction]
    gains: tuple[Gain, ...]
    seconds: NonNegative


class NetworkRun(Part, frozen=True, kw_only=True):
    """One measured checkpoint, a line of networks.jsonl."""

    settings: Open
    curve: NetworkCurve


class OutputRange(Part, frozen=True, kw_only=True):
    """Normalised values (without γ and β) of batches of so many values a channel, against ±√(B − 1)."""

    values: Size
    bound: NonNegative
    lowest: dict[str, Number]
    inference: dict[str, Number]


class StudyDocument(VersionedDocument, frozen=True, kw_only=True):
    """A figure or table of the paper, repeated."""

    command: Literal["study"] = "study"
    name: Text
    scale: Literal["smoke", "cpu", "paper"]
    shows: Text
    question: Text
    unlike_paper: str
    setting: Text
    alphas: tuple[Fraction, ...]
    variants: tuple[Variant, ...] = ()
    claims: tuple[TestedClaim, ...] = ()
    networks: tuple[NetworkCurve, ...] = ()
    ranges: tuple[OutputRange, ...] = ()
    runs: Count = 0
    seconds: NonNegative = 0.0
    machines: Names = ()
    artifacts: tuple[Artifact, ...] = ()
