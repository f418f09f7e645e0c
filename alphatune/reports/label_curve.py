"""What each repair is worth by the number of labelled images, as rows."""

from __future__ import annotations

from dataclasses import dataclass

from alphatune.core.metrics import INFO, Metric
from alphatune.reports.changes import span_text, value_text, verdict_of
from alphatune.reports.printable import printable
from alphatune.reports.repairs import NAMES
from alphatune.results.shift import LabelCount, LabelCurve, Row

#: kinds of conditions, as the columns of the table and the panels of the figure are called
CLEAN, SEEN, UNSEEN = "clean", "shifts tuned on", "shifts not tuned on"


@dataclass(frozen=True)
class LabelCell:
    """A value, with the interval of its change against plain, as text; "" where there is none."""

    value: str = ""
    interval: str = ""
    verdict: str = ""

    @property
    def mark(self) -> str:
        """An arrow where it differs from plain beyond luck."""
        return {"better": " ↑", "worse": " ↓"}.get(self.verdict, "")


@dataclass(frozen=True)
class LabelRow:
    """A repair tuned on so many labelled images."""

    images: int
    label: str
    cells: tuple[LabelCell, ...]  # in the order of ``kinds``


def label_name(repair: str) -> str:
    """What a repair of the curve is called."""
    return NAMES.get(repair, " ".join(printable(repair).split()))


def label_kinds(curve: LabelCurve) -> tuple[str, ...]:
    """The kinds of conditions that there are values for."""
    kinds = (CLEAN, SEEN, UNSEEN)
    return tuple(kind for kind in kinds if any(part_of(row, kind) is not None for row in curve.rows))


def label_rows(curve: LabelCurve) -> tuple[LabelRow, ...]:
    """By number of images, and in the order in which the repairs first come."""
    kinds, order = label_kinds(curve), list(dict.fromkeys(row.repair for row in curve.rows))
    rows = sorted(curve.rows, key=lambda row: (row.images, order.index(row.repair)))
    return tuple(
        LabelRow(
            row.images,
            label_name(row.repair),
            tuple(_cell(curve.metric, part_of(row, kind)) for kind in kinds),
        )
        for row in rows
    )


def label_sentence(curve: LabelCurve) -> str:
    """What the values are of."""
    return (
        f"{INFO[curve.metric].label[0].upper()}{INFO[curve.metric].label[1:]} on {curve.tested_on} images that took no "
        "part in any tuning, with the 95 % interval of the change against plain."
    )


def part_of(row: LabelCount, kind: str) -> Row | None:
    """The value of a row on a kind of conditions."""
    return {CLEAN: row.clean, SEEN: row.seen, UNSEEN: row.unseen}[kind]


def _cell(metric: Metric, part: Row | None) -> LabelCell:
    if part is None:
        return LabelCell()
    middle = sum(part.ci) / 2
    same = part.ci == (0.0, 0.0)  # plain itself
    return LabelCell(
        value_text(metric, part.value),
        "" if same else span_text(metric, part.ci),
        "" if same else verdict_of(metric, middle, part.ci),
    )
