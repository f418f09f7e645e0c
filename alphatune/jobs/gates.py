"""Gates: what a result must keep to for a pipeline to go on.

All output is kept when a gate fails: the folder and the whole result are
written, the reason is said, and the exit code is 1.

With ``gate_on="interval"`` a limit has to be kept by the whole 95 % interval: a gate passes where it is sure that the
gain is at least G, or the loss at most V, as in a test for non-inferiority. Where the limit lies inside the interval
the gate is undecided: it does not pass, and the reason says how many images would decide it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alphatune.core.errors import ConfigurationError
from alphatune.core.metrics import INFO, METRICS, SCORE, Measure, Metric
from alphatune.core.suggestions import did_you_mean
from alphatune.results.document import Part
from alphatune.results.tune import Gate as JudgedGate
from alphatune.results.tune import Tuned
from alphatune.settings import TuneSettings

if TYPE_CHECKING:  # an answer from the cache does not wait for SciPy, which few gates need
    from alphatune.reports.scores import StoredScores

Interval = tuple[float, float]
#: metrics that a class has of its own
OF_A_CLASS: tuple[Metric, ...] = ("top1", "top5", "loss")
#: classes that a reason names
NAMED = 3


@dataclass(frozen=True)
class Reading:
    """What of a result is held against a limit: the value, None where it is not known, and what it is in words."""

    value: float | None
    words: str
    interval: Interval | None = None


@dataclass(frozen=True)
class Gate:
    """A requirement, and how a result is held against it; with scores of every example, where there are some."""

    name: str
    judge: Callable[[Tuned, StoredScores | None], JudgedGate]
    needs_scores: bool = False


def open_gates(settings: TuneSettings) -> tuple[Gate, ...]:
    """The gates that the settings ask for.

    Raises:
        ConfigurationError: a limit that is no number, or of no metric there is.
    """
    gates, by_interval = [], settings.gate_on == "interval"
    if settings.gate_on not in ("estimate", "interval"):
        raise ConfigurationError(f"unknown `gate_on` {settings.gate_on!r}", "one of: estimate, interval")
    if settings.min_gain is not None:
        limit = _number(settings.min_gain, "`min_gain`")
        gates.append(_min_gain(limit, by_interval))
    for text in settings.max_regression:
        known: tuple[Measure, ...] = METRICS if settings.score is None else (SCORE,)
        metric, limit = _metric_and_limit(text, "`max_regression`", known)
        gates.append(_max_regression(metric, limit, by_interval))
    for text in settings.max_class_regression:
        given = text if "=" in text else f"top1={text}"
        metric, limit = _metric_and_limit(given, "`max_class_regression`", OF_A_CLASS)
        gates.append(_max_class_regression(metric, limit, by_interval))
    if settings.require_significant:
        gates.append(_require_significant())
    if settings.max_latency_ratio is not None:
        gates.append(_max_latency_ratio(_number(settings.max_latency_ratio, "`max_latency_ratio`")))
    return tuple(gates)


def judge(
    gates: tuple[Gate, ...], document: Tuned, stored: StoredScores | None = None
) -> tuple[JudgedGate, ...]:
    """Hold the result of a tune against each gate; what is not known does not pass.

    Args:
        stored: the scores of every example, for intervals and classes.
    """
    return tuple(gate.judge(document, stored) for gate in gates)


def failures(document: Tuned) -> list[str]:
    """A sentence on each gate that failed."""
    return [f"gate {g.name} failed: {g.reason}" for g in document.gates if not g.passed]


def passes(document: Tuned) -> list[str]:
    """A sentence on each gate that passed."""
    return [f"gate {g.name} passed: {g.reason}" for g in document.gates if g.passed]


def _metric_and_limit(text: str, option: str, known: tuple[Measure, ...]) -> tuple[Measure, float]:
    name, _, value = text.partition("=")
    metric = next((metric for metric in known if metric == name), None)
    if metric is None:
        raise ConfigurationError(
            f"{option} takes METRIC=VALUE, got {text!r}",
            did_you_mean(name, known, f"METRIC is one of: {', '.join(known)}"),
        )
    return metric, _number(value, f"{option[:-1]}={metric}`")


def _number(value: float | str, option: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"{option} takes a number, got {value!r}")
    return number


def _name(document: Tuned, metric: Measure) -> str:
    return document.score_name if metric == SCORE else INFO[metric].name


def _judged(
    name: str, limit: float, asked: str, found: Reading, *, least: bool, by_interval: bool, images: int
) -> JudgedGate:
    """Hold a value, or its interval, against the least or the most that passes, and say so.

    Args:
        images: that the interval rests on, and any other would be a multiple of.
    """
    value, interval, passed, undecided = found.value, found.interval if by_interval else None, False, False
    why = ""
    if value is None:
        pass  # the words say why
    elif not by_interval or (interval and interval[0] == interval[1]):  # nothing changed, for sure
        passed = _keeps(value, limit, least)
    elif interval is None:
        why = "; its interval is not known"
    else:
        worse_end, better_end = interval if least else reversed(interval)
        passed = _keeps(worse_end, limit, least)
        undecided = not passed and _keeps(better_end, limit, least)
        why = f"; the whole interval {'keeps to the limit' if passed else 'is beyond the limit'}"
        if undecided:
            why = f"; the interval holds the limit, and {_enough(value, limit, interval, images)} images would decide it"
    words = found.words
    if interval is not None and interval[0] < interval[1]:
        of = "" if least else " of how much worse"
        words += f" (95 % interval{of}: {interval[0]:.4g} to {interval[1]:.4g})"
    return JudgedGate(
        name=name,
        limit=limit,
        value=value,
        interval=interval,
        passed=passed,
        undecided=undecided,
        reason=f"{asked}; {words}{why}",
    )


def _keeps(value: float, limit: float, least: bool) -> bool:
    """The limit itself passes, also where a difference of decimals misses it by a rounding error."""
    close = math.isclose(value, limit, rel_tol=1e-9, abs_tol=1e-12)
    return close or (value > limit if least else value < limit)


def _enough(value: float, limit: float, interval: Interval, images: int) -> str:
    """About how many images tell such a value from the limit, in 80 % of runs; an interval shrinks with their root."""
    from scipy.special import ndtri

    from alphatune.reports.power import rough_count
    from alphatune.results.power import MOST_EXAMPLES
    from alphatune.statistics.gain import CONFIDENCE
    from alphatune.statistics.power import POWER

    z = float(ndtri(0.5 + CONFIDENCE / 2))
    error = (interval[1] - interval[0]) / 2 / z
    apart = max(abs(value - limit), 1e-12)
    needed = images * ((z + float(ndtri(POWER))) * error / apart) ** 2
    return rough_count(round(min(needed, MOST_EXAMPLES)))


# --- what there is to hold against a limit ------------------------------------------------------


def _min_gain(limit: float, by_interval: bool) -> Gate:
    def judged(document: Tuned, stored: StoredScores | None) -> JudgedGate:
        asked = f"the gain in {_name(document, document.metric)} has to be at least {limit:g}"
        found = _gain(document, stored if by_interval else None)
        return _judged(
            "min-gain", limit, asked, found, least=True, by_interval=by_interval, images=document.data.n
        )

    return Gate("min-gain", judged, by_interval)


def _max_regression(metric: Measure, limit: float, by_interval: bool) -> Gate:
    name = f"max-regression {metric}"

    def judged(document: Tuned, stored: StoredScores | None) -> JudgedGate:
        asked = f"{_name(document, metric)} may get worse by at most {limit:g}"
        found = _regression(document, metric, stored, by_interval)
        return _judged(
            name, limit, asked, found, least=False, by_interval=by_interval, images=document.data.n
        )

    return Gate(name, judged, by_interval)


def _max_class_regression(metric: Measure, limit: float, by_interval: bool) -> Gate:
    name = f"max-class-regression {metric}"

    def judged(document: Tuned, stored: StoredScores | None) -> JudgedGate:
        asked = f"no class may get worse by more than {limit:g} in {_name(document, metric)}"
        if stored is None:
            unknown = "the scores of every example are not there"
            return _judged(
                name, limit, asked, Reading(None, unknown), least=False, by_interval=False, images=0
            )
        return _judged_classes(name, metric, limit, asked, stored, by_interval)

    return Gate(name, judged, True)


def _judged_classes(
    name: str, metric: Measure, limit: float, asked: str, stored: StoredScores, by_interval: bool
) -> JudgedGate:
    """Hold every class against a limit.

    By intervals a class passes by its own one: as all have to pass, looking at many does not make it easier
    (intersection-union test: Berger 1982, Technometrics 24). That a class fails is said by an interval widened for the
    number of classes (Bonferroni), as looking at many does make that easier.
    """
    from alphatune.reports.class_regression import FEWEST, class_regressions, images_a_class
    from alphatune.reports.power import rough_count

    classes = class_regressions(stored, metric)
    few = [each for each in classes if each.n < FEWEST]
    undecided = []
    if by_interval:
        judged, not_judged = classes, ""
        surely_keeps = [c for c in judged if c.alone and _keeps(c.alone[1], limit, least=False)]
        failed = [c for c in judged if c.together and not _keeps(c.together[0], limit, least=False)]
        undecided = [c for c in judged if c not in surely_keeps and c not in failed]
        worst = max(judged, key=lambda c: c.alone[1] if c.alone else math.inf, default=None)
    else:
        judged = [each for each in classes if each.n >= FEWEST]
        not_judged = f"; {_classes(len(few))} of fewer than {FEWEST} images not judged" if few else ""
        failed = [c for c in judged if not _keeps(c.worse, limit, least=False)]
        worst = max(judged, key=lambda c: c.worse, default=None)
    if worst is None:
        found = Reading(None, f"no class has {FEWEST} images")
        return _judged(name, limit, asked, found, least=False, by_interval=False, images=0)
    shown = sorted(failed or undecided or [worst], key=lambda c: -c.worse)
    named = ", ".join(each.text(by_interval, bool(failed)) for each in shown[:NAMED])
    named += f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    if failed:
        verdict = f"{len(failed)} of {_classes(len(judged))} got worse by more: {named}"
    elif undecided:
        needed = images_a_class(stored, metric, limit, len(judged))
        enough = f"; {rough_count(needed)} images a class would decide it" if needed else ""
        verdict = f"{len(undecided)} of {_classes(len(judged))} may have got worse by more: {named}{enough}"
    else:
        verdict = f"none of {_classes(len(judged))} did; worst: {named}"
    return JudgedGate(
        name=name,
        limit=limit,
        value=worst.worse,
        interval=worst.alone if by_interval else None,
        passed=not failed and not undecided,
        undecided=bool(undecided) and not failed,
        reason=f"{asked}; {verdict}{not_judged}",
    )


def _classes(number: int) -> str:
    return f"{number} class{'' if number == 1 else 'es'}"


def _kept(document: Tuned) -> list[tuple[str, float | None, bool]]:
    """What became of a model whose α stayed: in words, the gain in the metric, and whether it is significant.

    Nothing, unless a temperature was taken or its averages were measured anew.
    """
    metric = document.metric
    found: list[tuple[str, float | None, bool]] = []
    if (refinement := document.refinement) and document.chosen.temperature != 1:
        level = refinement.deployed
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


def _gain(document: Tuned, stored: StoredScores | None) -> Reading:
    metric, gain = document.metric, document.gain
    unknown = Reading(None, "the gain was not estimated")
    if document.decision.keep_baseline:
        parts = _kept(document)
        if not parts:
            return Reading(0.0, "the plain model is kept, so the gain is 0", (0.0, 0.0))
        values = [value for _, value, _ in parts if value is not None]
        if len(values) < len(parts):
            return unknown
        whose, value = " and ".join(words for words, _, _ in parts), sum(values)
        worse = _interval_of_worse(document, metric, stored, -value)
        return Reading(value, f"{whose} gain is {value:.6g}", worse and (-worse[1], -worse[0]))
    if gain is None:
        return unknown
    words = f"it is {gain.delta:.6g} on images that had no part in choosing α"
    return Reading(gain.delta, words, gain.ci)


def _worse(metric: Measure, before: Part, after: Part) -> float:
    return float(INFO[metric].sign * (before[metric] - after[metric]))


def _regression(document: Tuned, metric: Measure, stored: StoredScores | None, by_interval: bool) -> Reading:
    if not document.baseline.has(metric):
        return Reading(None, f"{_name(document, metric)} takes examples of two classes")
    # Averages that were measured anew are part of what tuning did, though not of the baseline.
    before, after = _before(document), document.chosen.metrics
    worse, interval = _worse(metric, before, after), None
    if by_interval:
        gain = document.gain
        others = document.refinement or document.recalibration or document.decision.keep_baseline
        if metric == document.metric and gain and not others:
            words = f"on images that had no part in choosing α it is {_change(-gain.delta)}"
            return Reading(-gain.delta, words, (-gain.ci[1], -gain.ci[0]))
        # What was fitted on some of these images flatters itself on them.
        value = worse if document.refinement is None else _worse(metric, before, _out_of_fold(document))
        interval = _interval_of_worse(document, metric, stored, value)
        if value != worse:
            return Reading(value, f"out of fold it is {_change(value)}", interval)
    if worse == 0:
        return Reading(worse, f"it stays {after[metric]:.6g}", interval)
    words = f"it went from {before[metric]:.6g} to {after[metric]:.6g}, {_change(worse)}"
    return Reading(worse, words, interval)


def _change(worse: float) -> str:
    return f"{abs(worse):.6g} {'worse' if worse > 0 else 'better'}"


def _before(document: Tuned) -> Part:
    stored = document.recalibration and document.recalibration.before
    return stored or document.baseline


def _out_of_fold(document: Tuned) -> Part:
    """Metrics of the level that was chosen, each example scored by a fit that had not seen it."""
    refinement = document.refinement
    if refinement is None:
        return document.chosen.metrics
    level = refinement.deployed
    return level.metrics if document.chosen.temperature == 1 else level.calibrated


def _interval_of_worse(
    document: Tuned, metric: Measure, stored: StoredScores | None, value: float
) -> Interval | None:
    """The paired interval of how much worse the tuned model is than the one that was given, around a value."""
    if document.decision.keep_baseline and not _kept(document):
        return 0.0, 0.0
    if metric == SCORE:
        return None if document.gain is None else (-document.gain.ci[1], -document.gain.ci[0])
    if stored is None:
        return None
    from alphatune.statistics.gain import paired_gain

    gain = paired_gain(stored.chosen, stored.original, metric)
    return value + gain.delta - gain.ci[1], value + gain.delta - gain.ci[0]


def _require_significant() -> Gate:
    name = "require-significant"

    def judged(document: Tuned, _: StoredScores | None) -> JudgedGate:
        gain, kept = document.gain, document.decision.keep_baseline
        found = bool(document.decision.significant)
        if kept:
            found = any(significant for _, _, significant in _kept(document))
            words = f"the plain model is kept, because {document.decision.reason}"
        if not kept or _kept(document):
            words = "the gain" if gain is None or kept else (
                f"the gain, {gain.delta:.6g} with a {100 * gain.confidence:.3g} % interval of {gain.ci[0]:.4g} to "
                f"{gain.ci[1]:.4g} and p = {gain.p:.2g},"
            )  # fmt: skip
            words += f" is {'' if found else 'not '}significant"
        return JudgedGate(
            name=name,
            limit=1.0,
            value=float(found),
            passed=found,
            reason=f"the gain in {_name(document, document.metric)} has to be significant; {words}",
        )

    return Gate(name, judged)


def _max_latency_ratio(limit: float) -> Gate:
    name = "max-latency-ratio"

    def judged(document: Tuned, _: StoredScores | None) -> JudgedGate:
        asked = f"a forward pass may take at most {limit:g} times that of the plain model"
        return _judged(name, limit, asked, _latency(document), least=False, by_interval=False, images=0)

    return Gate(name, judged)


def _latency(document: Tuned) -> Reading:
    if document.chosen.alpha == document.baseline_alpha:  # a temperature costs next to nothing
        return Reading(1.0, "the norm layers are plain, as those of the model that was given, 1 time")
    cost = document.deployment
    if cost is None:
        return Reading(None, "its time was not measured")
    ratio = cost.ratio_to_plain
    return Reading(ratio, f"it takes {ratio:.3g} times")
