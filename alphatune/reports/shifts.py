"""What a tune over several conditions is worth in each of them, in words and rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alphatune.core.metrics import INFO, Metric
from alphatune.reports.changes import (
    Worth,
    amount_text,
    change_text,
    span_text,
    value_text,
    verdict_of,
    worth_of,
)
from alphatune.reports.printable import printable
from alphatune.reports.repairs import as_sentence, changes_model, deployed_gain, deployed_name, repair_label
from alphatune.results.shift import Condition, Guard
from alphatune.results.tune import Tuned

MEAN, WORST = "mean", "worst"


@dataclass(frozen=True)
class ConditionRow:
    """A condition, or what all of them come to, as text; the change is in the metric's own direction."""

    label: str
    detail: str  # severities
    images: str
    before: str
    after: str  # "" where nothing but the model as it was given is deployed
    change: str
    interval: str
    verdict: str
    others: tuple[str, ...]  # the values of the repairs, in the order of the table's names
    total: bool = False  # whether it is the mean or the worst of the others


@dataclass(frozen=True)
class ConditionTable:
    """Condition by condition: before, after, and what each repair gives."""

    metric: str
    unit: str  # of changes: " (points)", or ""
    after_name: str  # "" where nothing but the model as it was given is deployed
    others: tuple[str, ...]  # names of the repairs
    rows: tuple[ConditionRow, ...]


@dataclass(frozen=True)
class UnseenRow:
    """The gain on a shift that took no part in tuning, as text, in the metric's own direction."""

    label: str
    change: str
    interval: str
    verdict: str
    total: bool = False


@dataclass(frozen=True)
class GuardRow:
    """A guard as text; costs are positive where the condition gets worse."""

    condition: str
    metric: str
    margin: str
    cost: str
    bound: str
    passed: bool
    reason: str


def condition_name(name: str) -> str:
    """A condition's name on one line, without what would spoil it."""
    return " ".join(printable(name).split())


def severity_text(condition: Condition) -> str:
    """``severity 3``, ``severities 1 to 5``; "" where there is none."""
    levels = condition.severities
    if not levels:
        return ""
    if len(levels) == 1:
        return f"severity {levels[0]}"
    if list(levels) == list(range(levels[0], levels[-1] + 1)):
        return f"severities {levels[0]} to {levels[-1]}"
    return f"severities {', '.join(map(str, levels))}"


def headline(document: Tuned) -> str:
    """The gain on shifts that took no part in tuning, and that on those that did; "" where it is not known."""
    shift = document.shift
    if shift is None or shift.unseen_mean is None:
        return ""
    unseen = worth_of("", INFO[document.metric].name, shift.unseen_mean)
    if not changes_model(document):
        return f"Tuned without each shift in turn, the gain on that shift was: {_gain_text(unseen)}."
    text = f"On shifts it has not seen: {_gain_text(unseen)}"
    if gain := deployed_gain(document):
        refinement = document.refinement
        joint = refinement is not None and refinement.with_temperature and gain == document.gain
        beyond = ", beyond a temperature" if joint else ""
        seen = worth_of("", INFO[document.metric].name, gain)
        text += f"; on those it was tuned on{beyond}: {_gain_text(seen)}"
    return f"{text}."


def worse_sentence(document: Tuned) -> str:
    """Which conditions got worse, and whether that may be luck; "" where nothing is deployed or none is known."""
    shift, metric = document.shift, document.metric
    if shift is None or metric == "score" or not changes_model(document):
        return ""
    seen = [
        _worse(metric, each.name, each.chosen[metric] - each.baseline[metric], each.ci.get(metric))
        for each in shift.conditions
    ]
    found = ", ".join(filter(None, seen))
    name = INFO[metric].name
    text = (
        f"Worse in {name}: {found}." if found else f"No condition that it was tuned on got worse in {name}."
    )
    worths = [(each.condition, worth_of("", "", each.gain)) for each in shift.unseen]
    unseen = ", ".join(filter(None, (_worse(metric, name, w.change, w.interval) for name, w in worths)))
    return f"{text} Worse in {name} where the shift was not tuned on: {unseen}." if unseen else text


def guard_sentences(document: Tuned) -> tuple[str, ...]:
    """Of each guard that is not met, why."""
    guards = () if document.shift is None else document.shift.guards
    return tuple(
        f"The guard on {condition_name(each.condition)} is not met: {each.reason.rstrip('.')}."
        for each in guards
        if not each.passed
    )


def condition_table(document: Tuned) -> ConditionTable | None:
    """Each condition, then their mean and the worst; None where there are no conditions."""
    shift, metric = document.shift, document.metric
    if shift is None or metric == "score":
        return None
    deployed = changes_model(document)
    tried = document.repairs.tried if document.repairs else ()
    repairs = [each for each in tried if each.by_condition and each.name != "plain"]  # a column of its own
    by_name: list[dict[str, float]] = [
        {name: metrics[metric] for name, metrics in each.by_condition.items()} for each in repairs
    ]

    def row(label: str, before: float, after: float, ends: tuple[float, float] | None) -> ConditionRow:
        change = after - before
        return ConditionRow(
            label, "", "", value_text(metric, before), value_text(metric, after) if deployed else "",
            change_text(metric, change, unit=False) if deployed else "",
            span_text(metric, ends) if deployed else "", verdict_of(metric, change, ends) if deployed else "", (),
        )  # fmt: skip

    def others(value: Callable[[int], float | None]) -> tuple[str, ...]:
        found = [value(i) for i in range(len(repairs))]
        return tuple("" if v is None else value_text(metric, v) for v in found)

    rows = []
    for each in shift.conditions:
        made = row(condition_name(each.name), each.baseline[metric], each.chosen[metric], each.ci.get(metric))
        values = others(lambda i, name=each.name: by_name[i].get(name))  # type: ignore[misc]
        rows.append(_with(made, severity_text(each), f"{each.baseline.n}", values))
    ends = getattr(document.chosen, "ci", {}).get(metric)
    mean = row(MEAN, document.baseline[metric], document.chosen.metrics[metric], ends)
    rows.append(_with(mean, "", "", others(lambda i: repairs[i].metrics[metric]), total=True))
    worst = min if INFO[metric].higher_is_better else max
    rows.append(
        _with(
            row(WORST, *shift.worst, None), "", "", others(lambda i: worst(by_name[i].values())), total=True
        )
    )
    unit = " (points)" if INFO[metric].is_share else ""
    name = deployed_name(document) if deployed else ""
    return ConditionTable(INFO[metric].name, unit, name, tuple(map(repair_label, repairs)), tuple(rows))


def unseen_rows(document: Tuned) -> tuple[UnseenRow, ...]:
    """Each shift with its gain when it was left out, then their mean."""
    shift = document.shift
    if shift is None:
        return ()
    gains = [(condition_name(each.condition), each.gain, False) for each in shift.unseen]
    if shift.unseen_mean is not None:
        gains.append(("mean of these shifts", shift.unseen_mean, True))
    rows = []
    for name, gain, total in gains:
        worth = worth_of("", "", gain)
        change = change_text(gain.metric, worth.change)
        verdict = verdict_of(gain.metric, worth.change, worth.interval)
        rows.append(UnseenRow(name, change, worth.interval_text, verdict, total))
    return tuple(rows)


def guard_rows(document: Tuned) -> tuple[GuardRow, ...]:
    """Each guard, whether it is met, and why."""
    return tuple(map(_guard, () if document.shift is None else document.shift.guards))


def _guard(guard: Guard) -> GuardRow:
    unit = " points" if INFO[guard.metric].is_share else ""
    margin = (
        "not significantly worse"
        if guard.margin is None
        else f"{amount_text(guard.metric, guard.margin)}{unit}"
    )
    return GuardRow(
        condition_name(guard.condition),
        INFO[guard.metric].name,
        margin,
        change_text(guard.metric, guard.cost),
        change_text(guard.metric, guard.bound),
        guard.passed,
        as_sentence(guard.reason),
    )


def _gain_text(worth: Worth) -> str:
    """``top-1 +6.20 points (95 % interval +4.00 to +8.40)``, and whether it may be luck."""
    luck = worth.interval is not None and worth.interval[0] <= 0 <= worth.interval[1]
    return f"{worth.text}{', which may be luck' if luck else ''}"


def _worse(metric: Metric, name: str, change: float, ends: tuple[float, float] | None) -> str:
    """``clean -0.40 points (undecided)``; "" where it is no worse."""
    if change * INFO[metric].sign >= 0:
        return ""
    verdict = {"worse": " (beyond luck)", "undecided": " (undecided)"}.get(
        verdict_of(metric, change, ends), ""
    )
    return f"{condition_name(name)} {change_text(metric, change)}{verdict}"


def _with(
    row: ConditionRow, detail: str, images: str, others: tuple[str, ...], *, total: bool = False
) -> ConditionRow:
    return ConditionRow(
        row.label, detail, images, row.before, row.after, row.change, row.interval, row.verdict, others, total
    )
