"""α over the depth of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from alphatune.reports.figures.canvas import Drawing, draw, lay_out, shown, style, text_width, tick_width
from alphatune.results.alpha import LayerAlpha

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "alpha-over-depth"
_MOST_LABELS = 56


def draw_depth(alphas: Mapping[str, LayerAlpha]) -> Drawing:
    """α by layer in model order; with one a channel the median, and the middle 80 % as a band."""
    spread = [np.atleast_1d(np.asarray(value, dtype=float)) for value in alphas.values()]
    middle = [float(np.median(values)) for values in spread]
    low, high = int(np.argmin(middle)), int(np.argmax(middle))
    names = list(alphas)
    what = "median α" if _by_channel(spread) else "α"
    text = (
        f"{what} of {len(names)} norm layers from input to output: from {middle[low]:g} in {names[low]} "
        f"to {middle[high]:g} in {names[high]}."
    )
    return draw(NAME, text, lambda f: _paint(f, names, spread), height=3.9, width=10)


def _paint(figure: Figure, names: list[str], spread: list[Any]) -> None:
    place = np.arange(len(spread))
    axes = figure.subplots()
    if _by_channel(spread):
        low, high = (np.array([np.quantile(values, q) for values in spread]) for q in (0.1, 0.9))
        axes.fill_between(
            place, low, high, label="middle 80 % of channels", **style(color="tuned", alpha=0.18, linewidth=0)
        )
    middle = [np.median(values) for values in spread]
    label = "median channel" if _by_channel(spread) else None
    axes.plot(place, middle, "o-", label=label, **style(color="tuned", markersize=4.5, linewidth=1.4))
    axes.set_title("α by norm layer", loc="left", fontsize=11, fontweight="bold", pad=9)
    labelled = place[:: max(1, -(-len(place) // _MOST_LABELS))]
    labels = [shown(names[i]) for i in labelled]
    axes.set_xticks(labelled, labels, rotation=90, fontsize=9)
    axes.set(ylabel="α", xlabel="norm layer, from input to output", ylim=(0, None))
    room = max(text_width(name, 9) for name in labels)
    lay_out(figure, left=tick_width(axes) + 30, right=10, bottom=min(room, 110) + 30, top=28)


def _by_channel(spread: list[Any]) -> bool:
    return any(len(values) > 1 for values in spread)
