"""The tables of docs/benchmarks/shift.md from the runs of shift.py.

    python tests/benchmarks/shift_tables.py

Reads docs/benchmarks/shift.jsonl, and writes means over the seeds into the page.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from alphatune.results.repairs import NAMES

PAGES = Path(__file__).parents[2] / "docs" / "benchmarks"
FREE = ("plain", "temperature", "averages", "affine")


def main() -> None:
    runs = [json.loads(line) for line in (PAGES / "shift.jsonl").read_text().splitlines()]
    frame = as_frame(runs)
    page = PAGES / "shift.md"
    text = page.read_text()
    tables = [
        f"### {model}\n\n{by_condition(of)}\n\n{by_count(of)}"
        for model, of in frame.groupby("model", sort=False)
    ]
    machines = sorted({run["machine"] for run in runs})
    block = (
        "<!-- tables -->\n\n"
        + "\n\n".join([*tables, f"Machine: {'; '.join(machines)}."])
        + "\n\n<!-- end -->"
    )
    page.write_text(re.sub(r"<!-- tables -->.*<!-- end -->", lambda _: block, text, flags=re.S))


def as_frame(runs: list[dict]) -> pd.DataFrame:
    """One row for each run and condition."""
    rows = []
    for run in runs:
        for name, (top1, loss) in run["conditions"].items():
            kind = "clean" if name == "clean" else "seen" if name in run["seen"] else "unseen"
            rows.append(
                {
                    "model": run["model"].rpartition(":")[2],
                    "metric": run["metric"],
                    "images": run["images"],
                    "seed": run["seed"],
                    "repair": run["repair"],
                    "numbers": {"temperature": 1, "plain": 0}.get(run["repair"], run["numbers"]),
                    "alpha": run["alpha"],
                    "temperature": run["temperature"],
                    "condition": name,
                    "kind": kind,
                    "top1": top1,
                    "loss": loss,
                }
            )
    return pd.DataFrame(rows)


def by_condition(frame: pd.DataFrame) -> str:
    """Top-1 under each condition with the most images, mean over the seeds."""
    most = frame[frame.images == frame.images.max()]
    seeds = most.seed.nunique()
    kinds = most.drop_duplicates("condition").set_index("condition").kind
    means = 100 * most.pivot_table(index="repair", columns="condition", values="top1", sort=False)
    losses = most.pivot_table(index="repair", columns="kind", values="loss", sort=False)
    head = ["repair", "numbers", "at inference", *kinds.index, "mean", "worst", "clean loss"]
    rows = [head, ["---", "---:", "---", *["---:"] * (len(head) - 3)]]
    for repair in [name for name in NAMES if name in means.index]:
        numbers = most[most.repair == repair].numbers.iloc[0]
        values = means.loc[repair, list(kinds.index)]
        figures = [f"{value:.1f}" for value in (*values, values.mean(), values.min())]
        cost = "free" if repair in FREE else "α"
        rows.append([NAMES[repair], f"{numbers:.0f}", cost, *figures, f"{losses.loc[repair, 'clean']:.3f}"])
    shifts = {kind: ", ".join(kinds.index[kinds == kind]) for kind in ("seen", "unseen")}
    caption = (
        f"{most.images.max()} images per condition, {seeds} seed{'s' * (seeds > 1)}, top-1 in percent; "
        f"tuned on clean, {shifts['seen']}; not tuned on {shifts['unseen']}:"
    )
    return caption + "\n\n" + _markdown(rows)


def by_count(frame: pd.DataFrame) -> str:
    """Change in top-1 from the plain network by number of images, in points, with its standard error."""
    mean = frame.groupby(["images", "seed", "repair", "kind"]).top1.mean()
    change = 100 * (
        mean - mean.xs("plain", level="repair").reindex(mean.index.droplevel("repair")).to_numpy()
    )
    counts = sorted(frame.images.unique())
    rows = [["repair", *(f"{count} images" for count in counts)], ["---", *["---:"] * len(counts)]]
    for repair in [name for name in NAMES if name in set(frame.repair) - {"plain", "temperature"}]:
        cells = []
        for count in counts:
            parts = []
            for kind in ("clean", "seen", "unseen"):
                of = change.xs((count, repair, kind), level=("images", "repair", "kind"))
                error = f"±{of.sem():.1f}" if len(of) > 1 else ""
                parts.append(f"{of.mean():+.1f}{error}".replace("-", "−"))
            cells.append("/".join(parts))
        rows.append([NAMES[repair], *cells])
    caption = "Points over the plain network, clean / seen / unseen, by number of images per condition:"
    return caption + "\n\n" + _markdown(rows)


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"|{'|'.join(row)}|" for row in rows)


if __name__ == "__main__":
    main()
