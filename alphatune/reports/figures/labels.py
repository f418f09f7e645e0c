"""What each repair is worth by the number of labelled images: clean images, shifts tuned on, and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alphatune.core.metrics import INFO
from alphatune.reports.figures.canvas import Drawing, draw, lay_out, style
from alphatune.reports.label_curve import label_kinds, label_name, part_of
from alphatune.results.shift import LabelCurve, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "label-curve"
_PANEL = 118  # units a row
#: colour tells what is tuned, line and marker how finely
_LINES: dict[str, tuple[str, Any, str]] = {
    "plain": ("before", (0, (5, 3)), ""),
    "global": ("tuned", "-", "o"),
    "stage": ("tuned", (0, (6, 2)), "s"),
    "layer": ("tuned", "-.", "^"),
    "channel": ("tuned", ":", "D"),
    "affine": ("worse", "-", "s"),
    "averages": ("optimum", "-", "v"),
    "temperature": ("ink", (0, (2, 2)), "x"),
}
_OTHER = ("muted", "-", "*")


def draw_labels(curve: LabelCurve) -> Drawing | None:
    """A panel for each kind of conditions, a line for each repair; None where there is but one number of images."""
    counts = sorted({row.images for row in curve.rows})
    if len(counts) < 2:
        return None
    kinds = label_kinds(curve)
    names = ", ".join(dict.fromkeys(label_name(row.repair) for row in curve.rows))
    text = (
        f"{INFO[curve.metric].title} by number of labelled images, from {counts[0]} to {counts[-1]}, on "
        f"{', '.join(kinds)}: {names}. The table has the numbers."
    )
    return draw(NAME, text, lambda f: _paint(f, curve, kinds, counts), height=(60 + _PANEL * len(kinds)) / 72)


def _paint(figure: Figure, curve: LabelCurve, kinds: tuple[str, ...], counts: list[int]) -> None:
    panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False).flatten().tolist()
    for index, (axes, kind) in enumerate(zip(panels, kinds, strict=True)):
        _panel(axes, curve, kind, labelled=index == 0)
    last = panels[-1]
    last.set_xscale("log")
    last.set_xticks(counts, [f"{count}" for count in counts])
    last.set_xticks([], minor=True)
    last.set_xlabel("labelled images")
    figure.text(
        0.02, 1 - 13 / (72 * figure.get_figheight()), f"{INFO[curve.metric].title} by labels",
        fontsize=11, fontweight="bold", va="center",
    )  # fmt: skip
    lay_out(figure, left=52, right=12, bottom=34, top=44)
    figure.subplots_adjust(hspace=0.32)


def _panel(axes: Axes, curve: LabelCurve, kind: str, *, labelled: bool) -> None:
    plain = {row.images: part for row in curve.rows if row.repair == "plain" and (part := part_of(row, kind))}
    for repair in dict.fromkeys(row.repair for row in curve.rows):
        found = [(row.images, part_of(row, kind)) for row in curve.rows if row.repair == repair]
        points = sorted((images, part) for images, part in found if part is not None)
        if not points:
            continue
        colour, line, marker = _LINES.get(repair, _OTHER)
        banded = [(images, part, plain[images]) for images, part in points if images in plain]
        if repair != "plain" and len(banded) > 1:
            low, high = zip(*(_band(part, base) for _, part, base in banded), strict=True)
            axes.fill_between(
                [b[0] for b in banded], low, high, **style(color=colour, alpha=0.08, linewidth=0)
            )
        axes.plot(
            [images for images, _ in points], [part.value for _, part in points],
            label=label_name(repair) if labelled else None, marker=marker or None,
            **style(color=colour, linestyle=line, linewidth=1.4, markersize=4),
        )  # fmt: skip
    axes.set_title(kind, loc="left", fontsize=9.5, pad=4)
    axes.margins(y=0.1)
    axes.tick_params(labelsize=9)
    axes.locator_params(axis="y", nbins=5)


def _band(part: Row, plain: Row) -> tuple[float, float]:
    """The interval of the change, from the value of the plain model."""
    return plain.value + part.ci[0], plain.value + part.ci[1]
