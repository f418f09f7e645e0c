"""The curve over α as a table: one row an α."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphatune.results.tune import Tuned

if TYPE_CHECKING:
    import pandas as pd


def curve_frame(document: Tuned) -> pd.DataFrame:
    """Columns alpha, measured, top1, top5, loss, ece, and the paired interval of each difference to α = 0."""
    import pandas as pd  # half a second that a result from the cache can do without

    rows = []
    for point in document.curve:
        row = dict(point.items())
        del row["ci"]
        for metric, (low, high) in point.ci.items():
            row[f"{metric}_delta_low"], row[f"{metric}_delta_high"] = low, high
        rows.append(row)
    return pd.DataFrame(rows)
