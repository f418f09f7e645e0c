"""α beside what is free: what each repair is called, which is deployed, and the rows of the table of them."""

from __future__ import annotations

from dataclasses import dataclass

from alphatune.core.metrics import INFO
from alphatune.reports.changes import amount_text, change_text, span_text, value_text, verdict_of
from alphatune.results.alpha import alpha_text
from alphatune.results.gain import Gain
from alphatune.results.repairs import Repair, RepairName
from alphatune.results.tune import Tuned

NAMES: dict[str, str] = {
    "plain": "plain",
    "temperature": "temperature",
    "averages": "running statistics",
    "affine": "γ and β",
    "global": "one α",
    "stage": "α a stage",
    "layer": "α a layer",
    "channel": "α a channel",
}  # fmt: skip
#: the free ones, as in "the gain of ..."
PHRASES: dict[str, str] = {
    "temperature": "a temperature",
    "averages": "running statistics measured anew",
    "affine": "tuned γ and β",
}
#: what can be deployed in place of α, and costs nothing at inference
_FREE = ("temperature", "averages", "affine")
RULED_OUT = "ruled out by the guard"


@dataclass(frozen=True)
class RepairRow:
    """A repair as text; changes are against plain, in the metric's own direction."""

    label: str
    numbers: str  # that were tuned by labels
    cost: str  # at inference
    value: str
    change: str  # "" for plain
    interval: str
    verdict: str
    behind: str  # the best; positive whatever the metric's direction; "" for the best
    behind_interval: str
    chosen: bool
    ruled_out: bool

    @property
    def note(self) -> str:
        """``chosen``, or that the guard rules it out."""
        return "chosen" if self.chosen else RULED_OUT if self.ruled_out else ""


@dataclass(frozen=True)
class RepairTable:
    """All repairs that were tried, and what their values are of."""

    metric: str  # "top-1", "mean top-1", "worst top-1"
    unit: str  # of changes: " (points)", or ""
    rows: tuple[RepairRow, ...]


def free_repair(document: Tuned) -> RepairName | None:
    """The free repair that is deployed in place of α; None where that is α or the model as it was given."""
    chosen = None if document.repairs is None else document.repairs.chosen
    return chosen if chosen in _FREE else None


def changes_model(document: Tuned) -> bool:
    """Whether anything but the model as it was given is deployed."""
    chosen = document.chosen
    return (
        chosen.alpha != document.baseline_alpha
        or chosen.temperature != 1
        or free_repair(document) is not None
    )


def deployed_name(document: Tuned) -> str:
    """What is deployed, in short: ``α = 0.12``, ``γ and β, T = 1.25``."""
    chosen, free = document.chosen, free_repair(document)
    tempered = "" if chosen.temperature == 1 else f"T = {chosen.temperature:.4g}"
    if free == "temperature" and tempered:
        return tempered
    name = f"α = {alpha_text(chosen.alpha)}" if free is None else NAMES[free]
    return ", ".join(filter(None, [name, tempered]))


def repair_decision(document: Tuned) -> str:
    """The decision where a free repair is deployed; "" elsewhere."""
    temperature = document.chosen.temperature
    tempered = "" if temperature == 1 else f" and temperature {temperature:.4g}"
    match free_repair(document):
        case "affine":
            return f"Use tuned γ and β{tempered} (no α)"
        case "averages":
            return f"Use running statistics measured anew{tempered} (no α)"
        case "temperature":
            return f"Use temperature {temperature:.4g} (no α)"
        case _:
            return ""


def deployed_gain(document: Tuned) -> Gain | None:
    """What is deployed against the model as it was given, on images that took no part in tuning it."""
    free = free_repair(document)
    if document.repairs is None or free is None:
        return document.gain
    return next((each.over_plain for each in document.repairs.tried if _is_chosen(document, each)), None)


def repair_label(repair: Repair) -> str:
    """What a repair is called in a table."""
    tempered = repair.with_temperature and repair.name != "temperature"
    return f"{NAMES[repair.name]}{', T' if tempered else ''}"


def repair_table(document: Tuned) -> RepairTable | None:
    """The table of the repairs, in the order in which they were tried; None where there was no comparison."""
    repairs, shift = document.repairs, document.shift
    if repairs is None:
        return None
    info = INFO[document.metric]
    over = "" if shift is None else f"{shift.over} "
    rows = tuple(_row(document, each) for each in repairs.tried)
    return RepairTable(f"{over}{info.name}", " (points)" if info.is_share else "", rows)


def repair_reason(document: Tuned) -> str:
    """Why this one is deployed, as a sentence; "" where there was no comparison."""
    return "" if document.repairs is None else as_sentence(document.repairs.reason)


def as_sentence(text: str) -> str:
    """With a capital, where it begins with a Latin letter, and a full stop."""
    return f"{text[0].upper() if text[0].isascii() else text[0]}{text[1:].rstrip('.')}."


def _row(document: Tuned, repair: Repair) -> RepairRow:
    metric, change, behind = document.metric, repair.over_plain, repair.behind_best
    sign = INFO[metric].sign
    ends = None if change is None else _ends(change.ci, sign)
    return RepairRow(
        label=repair_label(repair),
        numbers=f"{repair.numbers}",
        cost="free" if repair.free else "slower",
        value=value_text(metric, sign * repair.objective),
        change="" if change is None else change_text(metric, sign * change.delta, unit=False),
        interval=span_text(metric, ends),
        verdict="" if change is None else verdict_of(metric, sign * change.delta, ends),
        behind="" if behind is None else amount_text(metric, behind.delta),
        behind_interval="" if behind is None else span_text(metric, behind.ci),
        chosen=_is_chosen(document, repair),
        ruled_out=repair.guarded,
    )


def _is_chosen(document: Tuned, repair: Repair) -> bool:
    """Whether it is what is deployed; the same repair may be tried with a temperature and without."""
    if document.repairs is None or repair.name != document.repairs.chosen:
        return False
    named = [each for each in document.repairs.tried if each.name == repair.name]
    return len(named) == 1 or repair.with_temperature == (document.chosen.temperature != 1)


def _ends(interval: tuple[float, float], sign: int) -> tuple[float, float]:
    """A gain's interval in the metric's own direction."""
    low, high = sorted(sign * end for end in interval)
    return low, high
