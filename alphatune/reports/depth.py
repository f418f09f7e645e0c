"""α over the depth of a network, as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FILE = "alpha-over-depth.svg"


def draw_depth(alphas: dict[str, Any], path: Path) -> None:
    """Draw α by layer in model order; with one a channel the median, and the middle 80 % as a band.

    The same α give the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    spread = [np.atleast_1d(np.asarray(value, dtype=float)) for value in alphas.values()]
    place = np.arange(len(spread))
    # Neither a window nor a date nor random ids: the figure is a file like any other.
    with matplotlib.rc_context({"svg.hashsalt": "alphatune", "svg.fonttype": "path"}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        if any(len(values) > 1 for values in spread):
            low, high = (np.array([np.quantile(values, q) for values in spread]) for q in (0.1, 0.9))
            axes.fill_between(place, low, high, alpha=0.25, linewidth=0, label="middle 80 % of channels")
            axes.plot(place, [np.median(values) for values in spread], marker="o", label="median channel")
            axes.legend(frameon=False)
        else:
            axes.plot(place, [values[0] for values in spread], marker="o")
        shown = place[:: max(1, -(-len(place) // 40))]
        axes.set_xticks(shown, [list(alphas)[i] for i in shown], rotation=90, fontsize=6)
        axes.set(ylabel="α", xlabel="norm layer, from input to output", ylim=(0, None))
        axes.grid(alpha=0.3)
        figure.savefig(path, metadata={"Date": None})
