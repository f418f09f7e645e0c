"""Loss and top-1 over the epochs of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alphatune.reports.figures.canvas import Drawing, draw, lay_out, style
from alphatune.results.training import Epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: of the training images, and of the validation images
_PARTS = (
    ("train", "training", style(color="before", linestyle=(0, (5, 3)))),
    ("val", "validation", style(color="tuned")),
)


def draw_training(epochs: Sequence[Epoch]) -> Drawing:
    """On the images that it trains on, and on those of the validation where there was one."""
    text = f"Loss and top-1 over {len(epochs)} epochs, on the training and the validation images."
    return draw("curves", text, lambda figure: _paint(figure, epochs), height=3.2, width=8.0)


def _paint(figure: Figure, epochs: Sequence[Epoch]) -> None:
    from matplotlib.ticker import MaxNLocator

    panels = figure.subplots(1, 2)
    for axes, metric, label in zip(panels, ("loss", "top1"), ("loss (nats)", "top-1"), strict=True):
        for part, name, look in _PARTS:
            points = [
                (each.epoch, each[f"{part}_{metric}"])
                for each in epochs
                if part == "train" or each.was_validated
            ]
            legend = name if metric == "loss" else None  # once for both panels
            axes.plot(*zip(*points, strict=True), marker=".", label=legend, **look)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lay_out(figure, left=52, right=10, bottom=38, top=12)
    figure.subplots_adjust(wspace=0.24)
