"""A metric before and after, and what a change is worth, in the words that every report uses."""

from __future__ import annotations

from dataclasses import dataclass

from alphatune.core.metrics import INFO, SCORE, Measure
from alphatune.results.gain import Gain

HERE, NEW = "on these images", "expected on new images"


@dataclass(frozen=True)
class Figure:
    """A metric before and after; ``after`` is None where there is nothing to compare with."""

    metric: Measure
    label: str
    before: float
    after: float | None
    best_alpha: float | None = None  # None where it is not known
    best: float | None = None  # the value there
    best_is_estimate: bool = False
    interval: tuple[float, float] | None = None  # of the change, where it is known

    @property
    def change(self) -> float:
        """In the metric's own direction."""
        return 0.0 if self.after is None else self.after - self.before

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``undecided`` where the interval holds 0, ``untested`` without one; "" of no change."""
        if self.change != 0 and self.interval is None:
            return "untested"
        return verdict_of(self.metric, self.change, self.interval)

    @property
    def change_text(self) -> str:
        """``+0.35 points``, ``-19.5 %`` or ``+0.012``; "" where there is nothing to compare with."""
        if self.after is None:
            return ""
        if self.metric == "loss" and self.before > 0:
            return f"{100 * self.change / self.before:+.1f} %"
        return change_text(self.metric, self.change)


@dataclass(frozen=True)
class Worth:
    """A change in a metric, in its own direction, with an interval where one is known."""

    label: str  # which images it is of
    of: str  # what makes the change
    metric: Measure
    name: str  # of the metric
    change: float
    interval: tuple[float, float] | None
    confidence: float = 0.95

    @property
    def text(self) -> str:
        """``top-1 +0.35 points (95 % interval +0.10 to +0.60)``."""
        change = f"{self.name} {change_text(self.metric, self.change)}"
        return change if self.interval is None else f"{change} ({self.level} interval {self.interval_text})"

    @property
    def interval_text(self) -> str:
        """``+0.10 to +0.60``; "" where none is known."""
        return span_text(self.metric, self.interval)

    @property
    def level(self) -> str:
        """Of the interval: ``95 %``."""
        return f"{100 * self.confidence:.3g} %"


def value_text(metric: Measure, value: float) -> str:
    return f"{value:.6g}" if metric == SCORE else f"{value:.4f}"


def change_text(metric: Measure, change: float, *, unit: bool = True) -> str:
    """A change with its sign: ``+0.35 points`` of an accuracy, ``-0.1717`` of a loss."""
    if INFO[metric].is_share:
        return f"{100 * change:+.2f}{' points' if unit else ''}"
    return f"{change:+.4g}" if metric == SCORE else f"{change:+.4f}"


def worth_of(of: str, name: str, gain: Gain) -> Worth:
    """A gain, which is positive where it is for the better, in the metric's own direction."""
    sign = INFO[gain.metric].sign
    low, high = sorted(sign * end for end in gain.ci)
    return Worth(NEW, of, gain.metric, name, sign * gain.delta, (low, high), gain.confidence)


def verdict_of(metric: Measure, change: float, interval: tuple[float, float] | None) -> str:
    """``better``, ``worse``, or ``undecided`` where the interval of the change holds 0; "" where none is known."""
    if change == 0 or interval is None:
        return ""
    if interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "better" if change * INFO[metric].sign > 0 else "worse"


def span_text(metric: Measure, interval: tuple[float, float] | None) -> str:
    """``+0.10 to +0.60``; "" where there is none."""
    if interval is None:
        return ""
    low, high = (change_text(metric, end, unit=False) for end in interval)
    return f"{low} to {high}"


def amount_text(metric: Measure, amount: float) -> str:
    """An amount without a sign, unless it is below 0: ``0.35`` points of an accuracy, ``0.1717`` of a loss."""
    return change_text(metric, amount, unit=False).removeprefix("+")
