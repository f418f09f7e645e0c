"""Classes that gained and lost, each with its intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphatune.reports.figures.canvas import Drawing, draw, lay_out, shown, style, text_width
from alphatune.reports.per_class import ClassChange, Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW, _LONGEST = 14.5, 22


def draw_classes(name: str, title: str, selection: Selection, *, lower_is_better: bool) -> Drawing:
    """One row a class, the worst at the top."""
    rows = (*selection.lost, *selection.gained)
    worst, best = rows[0], rows[-1]
    text = (
        f"{title} of {len(rows)} classes with intervals, {selection.hidden} more not drawn: from {worst.change:+.4f} "
        f"({worst.name}, {worst.n} examples) to {best.change:+.4f} ({best.name}, {best.n} examples)."
    )
    better = "lower is better" if lower_is_better else "higher is better"
    count = len(rows) + bool(selection.hidden)
    return draw(name, text, lambda f: _paint(f, title, selection, better), height=(74 + _ROW * count) / 72)


def _paint(figure: Figure, title: str, selection: Selection, better: str) -> None:
    axes = figure.subplots()
    rows: list[ClassChange | None] = [
        *selection.lost,
        *([None] if selection.hidden else []),
        *selection.gained,
    ]
    for sign, colour, marker, label in (
        (-1, "worse", "v", "worse"), (1, "tuned", "^", "better"), (0, "before", "o", "unchanged")
    ):  # fmt: skip
        drawn = [(i, row) for i, row in enumerate(rows) if row and _sign(row.gain) == sign]
        for i, row in drawn:
            for interval, width in ((row.together, 1.1), (row.alone, 3.2)):
                if interval:
                    axes.plot(interval, (i, i), **style(color=colour, linewidth=width, solid_capstyle="butt"))
        if drawn:
            axes.plot(
                [row.change for _, row in drawn], [i for i, _ in drawn], marker, label=label,
                **style(color=colour, markersize=6.5, markeredgecolor="card", markeredgewidth=0.7),
            )  # fmt: skip
    axes.axvline(0, **style(color="before", linewidth=1.2, linestyle=(0, (5, 3))))
    names = [
        f"{shown(row.name, _LONGEST)} ({row.n})" if row else f"… {selection.hidden} more …" for row in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=9.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, **style(labelcolor="ink"))
    axes.grid(axis="y", visible=False)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=9)
    axes.set_title(better, loc="right", fontsize=9, pad=9, **style(color="muted"))
    for width, label in ((3.2, "95 %, this class alone"), (1.1, "95 %, all classes at once")):
        axes.plot([], [], label=label, **style(color="before", linewidth=width, solid_capstyle="butt"))
    axes.set_xlabel("change")
    axes.set_xlim(*_span([row for row in rows if row]))
    axes.locator_params(axis="x", nbins=6)
    room = max(text_width(name, 9.5) for name in names)
    lay_out(figure, left=min(room, 160) + 8, right=12, bottom=34, top=28)


def _span(rows: list[ClassChange]) -> tuple[float, float]:
    """From end to end of what holds for one class; what holds for all at once may run out of the picture."""
    ends = [0.0, *(row.change for row in rows), *(end for row in rows for end in row.alone or ())]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or 1.0
    return low - room, high + room


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
