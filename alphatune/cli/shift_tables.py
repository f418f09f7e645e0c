"""Conditions, repairs and the number of labels as tables of the terminal, 80 columns wide."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # results are not waited for by --help
    from rich.table import Table

    from alphatune.reports.shifts import ConditionRow
    from alphatune.results.tune import Tuned

#: a column's head; what is longer is called "chosen"
LONGEST_HEAD = 10


def shift_tables(document: Tuned) -> list[Table]:
    """Conditions, repairs and the number of labels, those that there are, in the order of the reports."""
    tables = (_conditions(document), _repairs(document), _labels(document))
    return [table for table in tables if table is not None]


def shift_details(document: Tuned) -> list[Table]:
    """Each repair by condition, each shift left out, and the guards."""
    tables = (_others(document), _unseen(document), _guards(document))
    return [table for table in tables if table is not None]


def _conditions(document: Tuned) -> Table | None:
    from alphatune.cli import console
    from alphatune.reports.shifts import condition_table

    found = condition_table(document)
    if found is None:
        return None
    name = found.after_name
    columns = [("condition", "left"), ("plain", "number")]
    if name:
        short = name if len(name) <= LONGEST_HEAD else "chosen"
        columns += [(short, "number"), ("change", "number"), ("95 % interval", "number"), ("", "left")]
    rows = [
        (
            _condition(row),
            row.before,
            *((row.after, row.change, row.interval, row.verdict) if name else ()),
        )
        for row in found.rows
    ]
    return console.table(f"{found.metric} by condition{_changes_in(found.unit)}", columns, rows)


def _repairs(document: Tuned) -> Table | None:
    from alphatune.cli import console
    from alphatune.reports.repairs import repair_table

    found = repair_table(document)
    if found is None:
        return None
    columns = [
        ("", "left"), ("tuned", "number"), ("cost", "left"), (found.metric.split()[-1], "number"),
        ("change", "number"), ("95 % interval", "number"), ("behind", "number"), ("", "left"),
    ]  # fmt: skip
    rows = [
        (
            row.label, row.numbers, row.cost, row.value, row.change, row.interval, row.behind or "best",
            "chosen" if row.chosen else "guard" if row.ruled_out else "",
        )
        for row in found.rows
    ]  # fmt: skip
    title = f"Repairs by {found.metric}, on images that took no part in tuning them{_changes_in(found.unit)}"
    if any(row.ruled_out for row in found.rows):
        title += "; guard: ruled out by the guard"
    return console.table(title, columns, rows)


def _labels(document: Tuned) -> Table | None:
    from alphatune.cli import console
    from alphatune.core.metrics import INFO
    from alphatune.reports.label_curve import label_kinds, label_rows

    curve = document.label_curve
    if curve is None:
        return None
    columns = [("images", "number"), ("", "left"), *((kind, "right") for kind in label_kinds(curve))]
    rows = []
    for row in label_rows(curve):
        cells = [f"{cell.value}{cell.mark or '  '}" if cell.value else "" for cell in row.cells]
        rows.append((row.images, row.label, *cells))
    title = f"{INFO[curve.metric].name} by labelled images; ↑ better than plain, ↓ worse, beyond luck"
    return console.table(title, columns, rows)


def _others(document: Tuned) -> Table | None:
    """Each repair in each condition."""
    from alphatune.cli import console
    from alphatune.reports.shifts import condition_table

    found = condition_table(document)
    if found is None or not found.others:
        return None
    columns = [("condition", "left"), *((name, "right") for name in found.others)]
    rows = [(_condition(row), *row.others) for row in found.rows]
    title = f"{found.metric} of each repair, on images that took no part in tuning it"
    return console.table(title, columns, rows)


def _unseen(document: Tuned) -> Table | None:
    from alphatune.cli import console
    from alphatune.reports.shifts import unseen_rows

    rows = [(row.label, row.change, row.interval, row.verdict) for row in unseen_rows(document)]
    if not rows:
        return None
    columns = [("shift left out", "left"), ("change", "number"), ("95 % interval", "number"), ("", "left")]
    return console.table("Each shift left out in turn, and scored", columns, rows)


def _guards(document: Tuned) -> Table | None:
    from alphatune.cli import console
    from alphatune.cli.usage import as_options
    from alphatune.reports.shifts import guard_rows

    rows = [
        (f"{row.condition}: {row.metric}", row.margin, row.cost, row.bound, "met" if row.passed else "not met",
         as_options(row.reason))
        for row in guard_rows(document)
    ]  # fmt: skip
    if not rows:
        return None
    columns = [
        ("guard", "left"), ("margin", "left"), ("cost", "right"), ("bound", "right"), ("", "left"), ("reason", "left"),
    ]  # fmt: skip
    return console.table("Guards; a cost above 0 is a loss", columns, rows)


def _condition(row: ConditionRow) -> str:
    """``fog 2-4``: short, so that a row fits 80 columns."""
    levels = re.sub("^severit(y|ies) ", "", row.detail).replace(" to ", "-")
    return f"{row.label} {levels}".rstrip()


def _changes_in(unit: str) -> str:
    """Appended to a title: the unit of the changes."""
    return f"; changes in {unit.strip(' ()')}" if unit else ""
