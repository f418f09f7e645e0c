"""A study over α, or the range of outputs over the number of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alphatune.reports.figures.canvas import Drawing, draw, lay_out, shown, style
from alphatune.results.study import StudyDocument

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: colours and dashes, in the order of the lines
_COLOURS = ("before", "tuned", "optimum", "worse", "muted")
_DASHES = ("-", (0, (6, 2)), (0, (2, 2)))
_HEIGHT = 3.4


def draw_study(document: StudyDocument) -> Drawing | None:
    """Top-1 over α of each variant or network, or the ranges; None where there is nothing to draw."""
    name = f"{document.name}-{document.scale}"
    if document.ranges:
        text = "The lowest normalised value by the number of values a channel, against the bound."
        return draw(name, text, lambda figure: _paint_ranges(figure, document), height=_HEIGHT)
    lines = {each.name: (document.alphas, each.curve) for each in document.variants}
    lines |= {each.name: (each.alphas, each.top1) for each in document.networks}
    if not lines:
        return None
    text = f"Top-1 over α: {', '.join(lines)}. The table has the numbers."
    return draw(name, text, lambda figure: _paint_curves(figure, lines), height=_HEIGHT)


def _paint_curves(figure: Figure, lines: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    axes = figure.subplots()
    for number, (name, (alphas, values)) in enumerate(lines.items()):
        look = _look(number)
        axes.plot(alphas, [100 * value for value in values], marker=".", label=shown(name), **look)
    axes.set(xlabel="α", ylabel="top-1 (%)")
    lay_out(figure, left=52, right=10, bottom=38, top=12)


def _paint_ranges(figure: Figure, document: StudyDocument) -> None:
    axes, sizes = figure.subplots(), [each.values for each in document.ranges]
    axes.plot(sizes, [each.bound for each in document.ranges], label="bound √(B − 1)", **_look(0))
    for number, kind in enumerate(document.ranges[0].lowest, 1):
        lowest = [-each.lowest[kind] for each in document.ranges]
        axes.plot(sizes, lowest, marker=".", label=shown(kind), **_look(number))
    axes.set(xscale="log", yscale="log", xlabel="values a channel (B)", ylabel="−lowest output in training")
    lay_out(figure, left=52, right=10, bottom=38, top=12)


def _look(number: int) -> dict[str, Any]:
    dashes = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return style(color=_COLOURS[number % len(_COLOURS)], linestyle=dashes, linewidth=1.4)
