"""A metric over α: the curve with its paired band, the unpatched model, what was chosen, and the optimum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from alphatune.core.metrics import INFO, SCORE, Measure
from alphatune.reports.before_after import chosen_name, is_on_curve, plain_name
from alphatune.reports.curve import split_curve
from alphatune.reports.figures.canvas import Drawing, draw, lay_out, shown, style, tick_width
from alphatune.reports.summary import known_best
from alphatune.results.tune import Point, ScorePoint, Tuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curve(document: Tuned, metric: Measure) -> Drawing:
    """One metric of a tune's result, or its score."""
    return draw(
        f"curve-{metric}", curve_text(document, metric), lambda f: _paint(f, document, metric), height=2.8
    )


def curve_title(document: Tuned, metric: Measure) -> str:
    """What the metric is called above its curve."""
    return document.score_name if metric == SCORE else INFO[metric].title


def curve_text(document: Tuned, metric: Measure) -> str:
    """What there is to see, in words."""
    points, chosen, fewer = document.curve, document.chosen, split_curve(document).fewer
    alphas = [p.alpha for p in points]
    text = (
        f"{curve_title(document, metric)} over α from {min(alphas):g} to {max(alphas):g}, {len(points)} points: "
        f"{document.baseline[metric]:.4f} at {plain_name(document)}"
    )
    if (best := _best(document, metric)) is not None:
        text += f", best {best[metric]:.4f} at α = {best.alpha:g}"
    text += f", chosen {chosen_name(document)} with {chosen.metrics[metric]:.4f}."
    return text if not fewer else f"{text} {len(fewer)} points rest on fewer examples and are drawn apart."


def _paint(figure: Figure, document: Tuned, metric: Measure) -> None:
    parts, base, chosen = split_curve(document), document.baseline[metric], document.chosen
    axes = figure.subplots()
    banded = [p for p in parts.joined if metric in p.ci]
    if len(banded) > 1:
        axes.fill_between(
            [p.alpha for p in banded],
            [base + p.ci[metric][0] for p in banded],
            [base + p.ci[metric][1] for p in banded],
            label="95 % interval",
            **style(color="tuned", alpha=0.16, linewidth=0),
        )
    axes.axhline(
        base,
        label=plain_name(document),
        **style(color="before", linewidth=1.2, linestyle=(0, (5, 3))),
    )
    axes.plot(*_xy(parts.joined, metric), **style(color="tuned", linewidth=1.6))
    for some, name, marker, more in (
        ([p for p in (*parts.joined, *parts.whole) if p.measured], "measured", "o", {"markersize": 4.5}),
        ([p for p in parts.joined if not p.measured], "interpolated", "|", {"markersize": 5.5}),
        (parts.fewer, "not comparable", "o", {"markersize": 3.2, "markerfacecolor": "card", "markeredgewidth": 0.8}),
    ):  # fmt: skip
        if some:
            axes.plot(
                *_xy(some, metric), marker, label=f"{name}{_examples(some, document)}",
                **style(**{"color": "tuned", "markeredgewidth": 1} | more),
            )  # fmt: skip
    if (best := _best(document, metric)) is not None:
        axes.plot(
            best.alpha, best[metric], "*", label="best by this metric", zorder=5,
            **style(color="optimum", markersize=11, markeredgecolor="card", markeredgewidth=0.6),
        )  # fmt: skip
    value, label = chosen.metrics[metric], f"chosen: {chosen_name(document)}"
    if is_on_curve(document) and not isinstance(chosen.alpha, dict):
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
        shown(curve_title(document, metric), 34), loc="left", fontsize=11, fontweight="bold", pad=9
    )
    axes.set_title("" if metric == SCORE else better, loc="right", fontsize=9, pad=9, **style(color="muted"))
    axes.margins(x=0.03, y=0.08)
    if INFO[metric].is_share:  # a normal interval does not know that there is no more than all
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1 + 0.02 * (high - low)))
    axes.locator_params(axis="x", nbins=6)
    lay_out(figure, left=tick_width(axes) + 18, right=10, bottom=34, top=28)


def _xy(points: Iterable[Point | ScorePoint], metric: Measure) -> tuple[list[float], list[float]]:
    points = list(points)
    return [p.alpha for p in points], [p[metric] for p in points]


def _examples(points: Sequence[Point | ScorePoint], document: Tuned) -> str:
    """How many examples points rest on, where points differ in that."""
    if len({p.n for p in document.curve}) == 1:
        return ""
    low, high = min(p.n for p in points), max(p.n for p in points)
    return f", {low} examples" if low == high else f", {low} to {high} examples"


def _best(document: Tuned, metric: Measure) -> Point | ScorePoint | None:
    """The optimum of a metric, where it is known and on the curve."""
    best = known_best(document, metric)
    return next((p for p in document.curve if best is not None and abs(p.alpha - best) < 1e-9), None)
