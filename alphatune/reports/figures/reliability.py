"""The reliability diagram: accuracy by confidence, and how many examples each bin has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alphatune.reports.figures.canvas import Drawing, draw, lay_out, shown, style
from alphatune.reports.reliability import Bin

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_reliability(name: str, title: str, bins: Sequence[Bin], ece: float, most: int) -> Drawing:
    """One model's bins.

    Args:
        most: examples in the fullest bin of all that are shown side by side.
    """
    filled = [b for b in bins if b.count]
    sure = sum(b.count for b in filled if b.low >= 0.8)
    n = sum(b.count for b in filled)
    over = sum(b.count * ((b.confidence or 0) - (b.accuracy or 0)) for b in filled) / n
    tendency = "surer than it is right" if over > 0 else "right more often than it is sure"
    text = (
        f"Reliability at {title}: on average {abs(over):.4f} {tendency}; expected calibration error {ece:.4f}; "
        f"{100 * sure / n:.0f} % of {n} predictions have a confidence above 0.8."
    )
    return draw(name, text, lambda f: _paint(f, title, bins, ece, most), height=3.7)


def _paint(figure: Figure, title: str, bins: Sequence[Bin], ece: float, most: int) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [
        b for b in bins if b.count and b.interval and b.accuracy is not None and b.confidence is not None
    ]
    middle, width = [(b.low + b.high) / 2 for b in filled], 0.88 / len(bins)
    accuracy = [b.accuracy or 0.0 for b in filled]
    sure = [b.confidence or 0.0 for b in filled]
    upper.bar(middle, accuracy, width, label="accuracy", **style(color="tuned", alpha=0.30))
    upper.bar(
        middle, [s - a for s, a in zip(sure, accuracy, strict=True)], width, accuracy, label="gap to confidence",
        **style(facecolor="none", edgecolor="worse", hatch="////", linewidth=0.7),
    )  # fmt: skip
    below = [max(0.0, a - b.interval[0]) for a, b in zip(accuracy, filled, strict=True) if b.interval]
    above = [max(0.0, b.interval[1] - a) for a, b in zip(accuracy, filled, strict=True) if b.interval]
    upper.errorbar(
        middle, accuracy, (below, above), fmt="o", label="95 % interval",
        **style(color="tuned", markersize=3, elinewidth=1.2),
    )  # fmt: skip
    upper.plot(
        (0, 1),
        (0, 1),
        label="accuracy = confidence",
        **style(color="before", linestyle=(0, (5, 3)), linewidth=1.2),
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.set_title(shown(title, 34), loc="left", fontsize=11, fontweight="bold", pad=9)
    upper.set_title(f"ECE {ece:.4f}", loc="right", fontsize=9, pad=9, **style(color="muted"))
    lower.bar(middle, [b.count for b in filled], width, **style(color="before"))
    for x, b in zip(middle, filled, strict=True):
        lower.annotate(
            _short(b.count), (x, b.count), (0, 2), textcoords="offset points", ha="center", fontsize=8,
            **style(color="muted"),
        )  # fmt: skip
    lower.set_yscale("log")
    lower.set(ylim=(0.7, 6 * most), xlabel="confidence", ylabel="examples")
    lower.tick_params(axis="y", which="both", left=False, labelleft=False)
    lower.grid(axis="y", visible=False)
    lay_out(figure, left=50, right=10, bottom=34, top=28)


def _short(count: int) -> str:
    """A count in four characters; the table has it in full."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:.{0 if count >= 10 * unit else 1}f}{name}"
    return str(count)
