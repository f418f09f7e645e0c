"""A metric over α in each condition, as small panels over one axis of α."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphatune.core.metrics import INFO
from alphatune.reports.before_after import is_on_curve
from alphatune.reports.figures.canvas import Drawing, draw, lay_out, shown, style
from alphatune.reports.shifts import condition_name
from alphatune.results.shift import Condition
from alphatune.results.tune import TuneDocument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "curve-by-condition"
_COLUMNS, _PANEL = 2, 92  # units a row


def draw_conditions(document: TuneDocument) -> Drawing | None:
    """One panel a condition; None where no condition has a curve."""
    found = () if document.shift is None else document.shift.conditions
    conditions = [each for each in found if len(each.curve) > 1]
    if not conditions:
        return None
    metric = document.metric
    best = max if INFO[metric].higher_is_better else min
    ends = ", ".join(
        f"{condition_name(each.name)} {each.baseline[metric]:.4f} at α = {document.baseline_alpha:g}, best "
        f"{best(p.value for p in each.curve):.4f}"
        for each in conditions
    )
    text = f"{INFO[metric].title} over α by condition, each with a scale of its own: {ends}."
    rows = -(-len(conditions) // _COLUMNS)
    return draw(NAME, text, lambda f: _paint(f, document, conditions), height=(66 + _PANEL * rows) / 72)


def _paint(figure: Figure, document: TuneDocument, conditions: list[Condition]) -> None:
    rows = -(-len(conditions) // _COLUMNS)
    panels = figure.subplots(rows, _COLUMNS, sharex=True, squeeze=False).flatten().tolist()
    for index, (axes, condition) in enumerate(zip(panels, conditions, strict=False)):
        _panel(axes, document, condition, labelled=index == 0)
        if index + _COLUMNS >= len(conditions):  # nothing below it
            axes.set_xlabel("α")
            axes.tick_params(axis="x", labelbottom=True)
    for axes in panels[len(conditions) :]:
        axes.remove()
    figure.text(
        0.02, 1 - 13 / (72 * figure.get_figheight()), f"{INFO[document.metric].title} by condition",
        fontsize=11, fontweight="bold", va="center",
    )  # fmt: skip
    lay_out(figure, left=48, right=10, bottom=34, top=44)
    figure.subplots_adjust(hspace=0.5, wspace=0.42)


def _panel(axes: Axes, document: TuneDocument, condition: Condition, *, labelled: bool) -> None:
    """A condition's curve, the value without α, and what was chosen; the first panel names them in the legend."""
    metric, chosen = document.metric, document.chosen
    points = sorted(condition.curve, key=lambda p: p.alpha)
    label = (lambda text: text) if labelled else (lambda _: None)
    axes.axhline(
        condition.baseline[metric], label=label(f"α = {document.baseline_alpha:g} (plain)"),
        **style(color="before", linewidth=1.1, linestyle=(0, (5, 3))),
    )  # fmt: skip
    axes.plot([p.alpha for p in points], [p.value for p in points], **style(color="tuned", linewidth=1.5))
    measured = [p for p in points if p.measured]
    axes.plot(
        [p.alpha for p in measured], [p.value for p in measured], "o", label=label("measured"),
        **style(color="tuned", markersize=3.4),
    )  # fmt: skip
    value = condition.chosen[metric]
    if is_on_curve(document) and not isinstance(chosen.alpha, dict):
        axes.axvline(chosen.alpha, label=label("chosen α"), **style(color="ink", linewidth=1, linestyle=":"))
    else:  # another α for each layer, a temperature or a free repair: no point of these curves
        axes.axhline(value, label=label("chosen"), **style(color="ink", linewidth=1.2, linestyle="-."))
    axes.set_title(shown(condition_name(condition.name), 22), loc="left", fontsize=9.5, pad=4)
    axes.margins(x=0.04, y=0.12)
    axes.tick_params(labelsize=8.5)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=4)
