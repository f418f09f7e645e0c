"""What α gains against what it costs, by set of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphatune.core.metrics import INFO
from alphatune.reports.figures.canvas import Drawing, draw, lay_out, style, tick_width
from alphatune.results.front import Front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "gain-by-cost"


def draw_front(front: Front) -> Drawing | None:
    """A point for each set of layers, with the interval of its gain; None where there is but one set."""
    if len(front.sets) < 2:
        return None
    metric = INFO[front.sets[0].gain.metric]
    ends = front.sets[0], front.sets[-1]
    counts = [max(each.layers) for each in ends]
    text = (
        f"Gain in {metric.name} against the time of inference, from α in {counts[0]} layers "
        f"({ends[0].ratio:.2f} times the folded network) to {counts[1]} ({ends[1].ratio:.2f}). The table has the numbers."
    )
    return draw(NAME, text, lambda f: _paint(f, front), height=3.2)


def _paint(figure: Figure, front: Front) -> None:
    axes = figure.subplots()
    share = INFO[front.sets[0].gain.metric].is_share
    scale = 100 if share else 1
    costs = [each.ratio for each in front.sets]
    gains = [scale * each.gain.delta for each in front.sets]
    low, high = ([scale * abs(each.gain.ci[end] - each.gain.delta) for each in front.sets] for end in (0, 1))
    axes.errorbar(
        costs, gains, yerr=[low, high],
        **style(color="tuned", fmt="o-", markersize=4, linewidth=1.4, elinewidth=0.8, capsize=2),
        label="α in fewer and fewer layers",
    )  # fmt: skip
    axes.axhline(0, label="plain", **style(color="before", linewidth=1.2, linestyle=(0, (5, 3))))
    if front.budget is not None:
        axes.axvline(
            front.budget, label="budget", **style(color="muted", linewidth=1.2, linestyle=(0, (1, 2)))
        )
    if front.chosen is not None:
        chosen = front.sets[front.chosen]
        axes.plot(
            [chosen.ratio], [scale * chosen.gain.delta], "D", label="chosen",
            **style(color="optimum", markersize=7),
        )  # fmt: skip
    for x, y, each in zip(costs, gains, front.sets, strict=True):
        axes.annotate(str(max(each.layers)), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8.5)
    axes.set_title("gain by cost; number of layers", loc="left", fontsize=11, fontweight="bold", pad=9)
    name = INFO[front.sets[0].gain.metric].name
    axes.set(xlabel="times the folded network's time", ylabel=f"gain in {name}{' (points)' if share else ''}")
    axes.margins(x=0.08, y=0.12)
    lay_out(figure, left=tick_width(axes) + 30, right=14, bottom=34, top=28)
