"""A metric over α: the curve with its paired band, the unpatched model, what was chosen, and the optimum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from alphatune.core.metrics import INFO, SCORE, Measure
from alphatune.reports.before_after import chosen_name, plain_name
from alphatune.reports.figures.canvas import Drawing, draw, margins, shown, style, tick_width
from alphatune.results.tune import Point, ScorePoint, Tuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curve(document: Tuned, metric: Measure) -> Drawing:
    """One metric of a tune's result, or its score."""
    return draw(
        f"curve-{metric}", curve_text(document, metric), lambda f: _paint(f, document, metric), height=3.5
    )


def curve_title(document: Tuned, metric: Measure) -> str:
    """What the metric is called above its curve."""
    return document.score_name if metric == SCORE else INFO[metric].title


def curve_text(document: Tuned, metric: Measure) -> str:
    """What there is to see, in words."""
    points = document.curve
    best, chosen = document.best[metric], document.chosen
    alphas = [p.alpha for p in points]
    text = (
        f"{curve_title(document, metric)} over α from {min(alphas):g} to {max(alphas):g}, {len(points)} points: "
        f"{document.baseline[metric]:.4f} at {plain_name(document)}"
    )
    if (at_best := _at(points, best)) is not None:
        text += f", best {at_best[metric]:.4f} at α = {best:g}"
    return f"{text}, chosen {chosen_name(chosen)} with {chosen.metrics[metric]:.4f}."


def _paint(figure: Figure, document: Tuned, metric: Measure) -> None:
    points: list[Point | ScorePoint] = sorted(document.curve, key=lambda p: p.alpha)
    base, chosen = document.baseline[metric], document.chosen
    axes = figure.subplots()
    banded = [p for p in points if metric in p.ci]
    if len(banded) > 1:
        axes.fill_between(
            [p.alpha for p in banded],
            [base + p.ci[metric][0] for p in banded],
            [base + p.ci[metric][1] for p in banded],
            label="95 % band, paired",
            **style(color="tuned", alpha=0.16, linewidth=0),
        )
    axes.plot([p.alpha for p in points], [p[metric] for p in points], **style(color="tuned", linewidth=1.6))
    axes.axhline(
        base,
        label=plain_name(document),
        **style(color="before", linewidth=1.2, linestyle=(0, (5, 3))),
    )
    for measured, name, marker, size in ((True, "measured", "o", 4.5), (False, "interpolated", "|", 5.5)):
        some = [p for p in points if p.measured == measured]
        if some:
            axes.plot(
                [p.alpha for p in some], [p[metric] for p in some], marker, label=name,
                **style(color="tuned", markersize=size, markeredgewidth=1),
            )  # fmt: skip
    best = _at(points, document.best[metric])
    if best is not None:
        axes.plot(
            best.alpha, best[metric], "*", label=f"best: α = {best.alpha:g}", zorder=5,
            **style(color="optimum", markersize=11, markeredgecolor="card", markeredgewidth=0.6),
        )  # fmt: skip
    value, label = chosen.metrics[metric], f"chosen: {chosen_name(chosen)}"
    if chosen.on_curve and not isinstance(chosen.alpha, dict):
        axes.axvline(chosen.alpha, **style(color="ink", linewidth=0.9, linestyle=":"))
        axes.plot(
            chosen.alpha, value, "D", label=label, zorder=4,
            **style(markerfacecolor="none", color="ink", markersize=9.5, markeredgewidth=1.3),
        )  # fmt: skip
    else:  # another α for each layer, or a temperature: no point of this curve
        axes.axhline(value, label=label, **style(color="ink", linewidth=1.3, linestyle="-."))
    axes.set_xlabel("α")
    better = "higher is better" if INFO[metric].higher_is_better else "lower is better"
    axes.set_title(
        shown(curve_title(document, metric), 40), loc="left", fontsize=11, fontweight="bold", pad=9
    )
    axes.set_title("" if metric == SCORE else better, loc="right", fontsize=9, pad=9, **style(color="muted"))
    axes.margins(x=0.03, y=0.08)
    if INFO[metric].is_share:  # a normal interval does not know that there is no more than all
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1 + 0.02 * (high - low)))
    axes.locator_params(axis="x", nbins=6)
    margins(figure, left=tick_width(axes) + 18, right=10, bottom=72, top=28)
    figure.legend(
        loc="lower center", ncols=3, handlelength=1.8, columnspacing=1.2, labelcolor=style(c="muted")["c"]
    )


def _at(points: Iterable[Point | ScorePoint], alpha: float) -> Point | ScorePoint | None:
    return next((p for p in points if abs(p.alpha - alpha) < 1e-9), None)
