"""Gates: what a result must keep to for a pipeline to go on.

All output is kept when a gate fails: the folder and the whole result are
written, the reason is said, and the exit code is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from alphatune.core.errors import ConfigurationError
from alphatune.core.metrics import INFO, METRICS, SCORE, Measure
from alphatune.results.document import Part
from alphatune.results.tune import Gate as JudgedGate
from alphatune.results.tune import Tuned
from alphatune.settings import TuneSettings


@dataclass(frozen=True)
class Gate:
    """A limit, and what of a result is held against it."""

    name: str
    limit: float
    #: of a result: the value, None where it is not known, and what it is in words
    look: Callable[[Tuned], tuple[float | None, str]]
    least: bool = True  # whether the limit is the least or the most that passes
    bound: str = ""  # what the limit asks for, in words


def open_gates(settings: TuneSettings) -> tuple[Gate, ...]:
    """The gates that the settings ask for.

    Raises:
        ConfigurationError: a limit that is no number, or of no metric there is.
    """
    gates = []
    if settings.min_gain is not None:
        gates.append(
            Gate(
                "min-gain",
                _number(settings.min_gain, "`min_gain`"),
                _gain,
                bound="at least {:g} is asked for",
            )
        )
    for text in settings.max_regression:
        name, _, value = text.partition("=")
        known: tuple[Measure, ...] = METRICS if settings.score is None else (SCORE,)
        metric = next((metric for metric in known if metric == name), None)
        if metric is None:
            raise ConfigurationError(
                f"`max_regression` takes METRIC=VALUE, got {text!r}", f"METRIC is one of: {', '.join(known)}"
            )
        limit = _number(value, f"`max_regression={metric}`")
        gates.append(
            Gate(
                f"max-regression {metric}",
                limit,
                _regression(metric),
                least=False,
                bound="at most {:g} worse is allowed",
            )
        )
    if settings.require_significant:
        gates.append(Gate("require-significant", 1.0, _significant))
    if settings.max_latency_ratio is not None:
        limit = _number(settings.max_latency_ratio, "`max_latency_ratio`")
        gates.append(Gate("max-latency-ratio", limit, _latency, least=False, bound="at most {:g} is allowed"))
    return tuple(gates)


def judge(gates: tuple[Gate, ...], document: Tuned) -> tuple[JudgedGate, ...]:
    """Hold the result of a tune against each gate; what is not known does not pass."""
    judged = []
    for gate in gates:
        value, words = gate.look(document)
        if value is None:
            passed = False
        else:
            # The limit itself passes, also where a difference of decimals misses it by a rounding error.
            close = math.isclose(value, gate.limit, rel_tol=1e-9, abs_tol=1e-12)
            passed = close or (value > gate.limit if gate.least else value < gate.limit)
        bound = f": {gate.bound.format(gate.limit)}" if gate.bound else ""
        judged.append(
            JudgedGate(name=gate.name, limit=gate.limit, value=value, passed=passed, reason=f"{words}{bound}")
        )
    return tuple(judged)


def failures(document: Tuned) -> list[str]:
    """A sentence on each gate that failed."""
    return [f"gate {g.name} failed: {g.reason}" for g in document.gates if not g.passed]


def _number(value: float | str, option: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"{option} takes a number, got {value!r}")
    return number


def _kept(document: Tuned) -> list[tuple[str, float | None, bool]]:
    """What became of a model whose α stayed: in words, the gain in the metric, and whether it is significant.

    Nothing, unless a temperature was taken or its averages were measured anew.
    """
    metric = document.metric
    found: list[tuple[str, float | None, bool]] = []
    if (refinement := document.refinement) and document.chosen.temperature != 1:
        (level,) = (row for row in refinement.levels if row.name == refinement.chosen)
        # The loss is what is tested: it is what a temperature is fitted by.
        paired = refinement.temperature_gain
        significant = metric == "loss" and paired is not None and paired.significant
        gain = -_worse(metric, level.metrics, level.calibrated)
        found.append(("the temperature's", gain, bool(significant)))
    if recalibration := document.recalibration:
        worth = recalibration.gain
        significant = worth is not None and worth.significant and worth.delta > 0
        found.append(("the new averages'", None if worth is None else worth.delta, significant))
    return found


def _gain(document: Tuned) -> tuple[float | None, str]:
    metric, gain = document.metric, document.gain
    if document.decision.keep_baseline:
        parts = _kept(document)
        if not parts:
            return 0.0, f"the plain model is kept, a gain of 0 in {metric}"
        values = [value for _, value, _ in parts if value is not None]
        if len(values) < len(parts):
            return None, f"the gain in {metric} was not estimated"
        whose = " and ".join(words for words, _, _ in parts)
        return sum(values), f"{whose} gain in {metric} is {sum(values):.6g}"
    if gain is None:
        return None, f"the gain in {metric} was not estimated"
    return gain.delta, f"the {gain.scheme} gain in {gain.metric} is {gain.delta:.6g}"


def _worse(metric: Measure, before: Part, after: Part) -> float:
    return float(INFO[metric].sign * (before[metric] - after[metric]))


def _regression(metric: Measure) -> Callable[[Tuned], tuple[float | None, str]]:
    def look(document: Tuned) -> tuple[float | None, str]:
        # Averages that were measured anew are part of what tuning did, though not of the baseline.
        stored = document.recalibration and document.recalibration.before
        before, after = stored or document.baseline, document.chosen.metrics
        worse = _worse(metric, before, after)
        if worse == 0:
            return worse, f"{metric} stays {after[metric]:.6g}"
        change = f"{abs(worse):.6g} {'worse' if worse > 0 else 'better'}"
        return worse, f"{metric} went from {before[metric]:.6g} to {after[metric]:.6g}, {change}"

    return look


def _significant(document: Tuned) -> tuple[float | None, str]:
    found = bool(document.decision.significant)
    if document.decision.keep_baseline:
        parts = _kept(document)
        if not parts:
            return 0.0, "the plain model is kept: " + document.decision.reason
        found = any(significant for _, _, significant in parts)
    return float(found), f"the gain is {'' if found else 'not '}significant"


def _latency(document: Tuned) -> tuple[float | None, str]:
    if document.decision.keep_baseline:  # a temperature costs next to nothing
        return 1.0, "the norm layers are those of the plain model"
    cost = document.deployment
    if cost is None:
        return None, "the time of a forward pass was not measured"
    ratio = cost.ratio_to_plain
    return ratio, f"a forward pass takes {ratio:.3g} times that of the plain model"
