"""The curve over α: which of its points rest on the same examples, and all of them as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alphatune.results.tune import Point, ScorePoint, Tuned

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CurveParts:
    """The points of a curve by the examples they rest on, each part in the order of α.

    A search stops measuring what cannot win, so its points rest on different
    examples, and a line through all of them would have steps that are not there.
    """

    joined: tuple[Point | ScorePoint, ...]  # on the same examples: these make the curve
    whole: tuple[Point | ScorePoint, ...]  # on all examples, where the curve rests on fewer
    fewer: tuple[Point | ScorePoint, ...]  # on fewer examples than the curve


def split_curve(document: Tuned) -> CurveParts:
    """Tell apart what rests on different examples.

    The estimates of any part of the examples start at the value of the unpatched
    model on all of them, so that this point belongs to the curve whatever it rests on.
    """
    points: list[Point | ScorePoint] = sorted(document.curve, key=lambda p: p.alpha)
    n = max([p.n for p in points if not p.measured] or [p.n for p in points])
    others = [p for p in points if p.alpha != document.baseline_alpha]
    return CurveParts(
        joined=tuple(p for p in points if p.n == n or p.alpha == document.baseline_alpha),
        whole=tuple(p for p in others if p.n > n),
        fewer=tuple(p for p in others if p.n < n),
    )


def curve_frame(document: Tuned) -> pd.DataFrame:
    """Columns alpha, measured, n, the metrics, and the paired interval of each difference to the unpatched model.

    Only points of equal ``n`` can be compared with each other.
    """
    import pandas as pd  # half a second that a result from the cache can do without

    rows = []
    for point in document.curve:
        row = dict(point.items())
        del row["ci"]
        for metric, (low, high) in point.ci.items():
            row[f"{metric}_delta_low"], row[f"{metric}_delta_high"] = low, high
        rows.append(row)
    return pd.DataFrame(rows)
