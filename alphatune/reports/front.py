"""What α gains in smaller and smaller sets of layers, and what it costs there, as rows."""

from __future__ import annotations

from dataclasses import dataclass

from alphatune.core.metrics import INFO
from alphatune.reports.changes import change_text, span_text, value_text
from alphatune.results.front import Front
from alphatune.results.tune import Tuned

#: where costs come from
_RUNTIMES = {"torch": "PyTorch", "onnxruntime": "onnxruntime", "counted": "counted, not timed"}


@dataclass(frozen=True)
class FrontRow:
    """A set of layers as text; changes are against the plain network, in the metric's own direction."""

    layers: str  # that take an α; of each half where they differ
    ratio: str  # times the folded network's time
    value: str
    change: str
    interval: str
    note: str
    chosen: bool


@dataclass(frozen=True)
class FrontTable:
    """All sets, from all layers down, and what the columns hold."""

    metric: str
    unit: str  # of changes: " (points)", or ""
    rows: tuple[FrontRow, ...]
    sentences: tuple[str, ...]


def front_of(document: Tuned) -> Front | None:
    """Gain and cost by set of layers; None unless layers were chosen by them."""
    return document.refinement.front if document.refinement else None


def front_table(document: Tuned) -> FrontTable | None:
    """The table; None unless layers were chosen by what α costs in them."""
    front = front_of(document)
    if front is None:
        return None
    metric = front.sets[0].gain.metric
    sign, tempered = INFO[metric].sign, " with a temperature" if front.with_temperature else ""
    rows = []
    for place, each in enumerate(front.sets):
        low, high = sorted(sign * end for end in each.gain.ci)
        metrics = each.calibrated if front.with_temperature else each.metrics
        chosen = place == front.chosen
        note = "chosen" if chosen else "" if each.keeps_guards else "ruled out by the guard"
        if not each.within_budget:
            note = "over the budget"
        rows.append(
            FrontRow(
                layers=" / ".join(map(str, dict.fromkeys(each.layers))),
                ratio=f"{each.ratio:.2f}",
                value=value_text(metric, metrics[metric]),
                change=change_text(metric, sign * each.gain.delta, unit=False),
                interval=span_text(metric, (low, high)),
                note=note,
                chosen=chosen,
            )
        )
    unit = " (points)" if INFO[metric].is_share else ""
    return FrontTable(f"{INFO[metric].name}{tempered}", unit, tuple(rows), _sentences(front))


def _sentences(front: Front) -> tuple[str, ...]:
    batch = f"batch of {front.batch_size}"
    threads = (
        "" if front.runtime == "counted" else f", {front.threads} thread{'' if front.threads == 1 else 's'}"
    )
    found = [
        f"Time is in multiples of the network with all norm layers folded ({_RUNTIMES[front.runtime]}, {batch}{threads}), "
        "added up over the layers that take an α. Each half of the images chose layers, and was scored with those of "
        "the other half."
    ]
    if front.budget is not None:
        found.append(f"The budget is {front.budget:g}.")
    total = front.sets[0].layers[0]
    if front.chosen is None:
        found.append("No set of layers is deployed.")
    else:
        timed = "" if front.measured is None else f", {front.measured:.2f} when timed"
        found.append(
            f"α in {len(front.layers)} of {total} layers is chosen: {front.predicted:.2f} added up{timed}."
        )
    return tuple(found)
