"""The page about breadth, from what the slow test of it has found.

    ALPHATUNE_BREADTH=records.jsonl pytest -m slow tests/models/test_breadth.py
    python tests/benchmarks/breadth.py records.jsonl --machine "2 shared CPU cores" --output docs/benchmarks/breadth.md

The table of all families goes into a CSV file of the same name. Nothing is measured here: a record is one
architecture, as tests/breadth.py describes it.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from breadth import ALPHA, EXAMPLES, MOST_BYTES, SIDES, TOLERANCE
from test_breadth import KNOWN, MEMORY

Records = list[dict[str, Any]]
NO_BATCH_NORM = "no BatchNorm"
HEADS = ["family", "architectures", "with BatchNorm", "tried", "kept", "layers patched", "kinds",
         "parameters (M)", "shape of an example", "alone or in a batch", "from the definition", "seconds"]  # fmt: skip


def tried(records: Records) -> Records:
    return [r for r in records if not r["left_out"]]


def by_family(records: Records) -> list[tuple[tuple[str, str], Records]]:
    def key(record: dict[str, Any]) -> tuple[str, str]:
        return record["source"], record["family"]

    return [(family, list(members)) for family, members in groupby(sorted(records, key=key), key)]


def row(label: str, records: Records) -> list[str]:
    mine = tried(records)
    kinds: Counter[str] = Counter()
    for record in mine:
        kinds.update(record["patched"])
    sizes = [r["parameters"] / 1e6 for r in mine]
    shapes = dict.fromkeys("×".join(map(str, r["shape"])) for r in sorted(mine, key=lambda r: r["shape"]))
    cells = [
        label,
        len(records),
        sum(r["left_out"] != NO_BATCH_NORM for r in records),
        len(mine),
        sum(not r["failure"] for r in mine),
        sum(kinds.values()),
        ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()),
        f"{min(sizes):.1f} to {max(sizes):.1f}",
        ", ".join(shapes),
        f"{max(r['apart'] for r in mine):.0e}",
        f"{max(r['off'] for r in mine):.0e}",
        f"{sum(r['seconds'] for r in records):.0f}",
    ]
    return [str(cell) for cell in cells]


def families(records: Records) -> list[list[str]]:
    """The rows of the CSV file."""
    rows = [["source", *HEADS]]
    for source, some in by_source(records):
        tables = [row(family, members) for (_, family), members in by_family(some) if tried(members)]
        rows += [[source, *cells] for cells in [*tables, row("all", some)]]
    return rows


def by_source(records: Records) -> list[tuple[str, Records]]:
    return [(source, [r for r in records if r["source"] == source]) for source in ("timm", "torchvision")]


def totals(records: Records) -> list[str]:
    """A row for each library."""
    lines = [
        "| library | architectures | with BatchNorm | keep all promises | layers patched | kinds |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for source, some in by_source(records):
        cells = row(source, some)
        lines.append(f"| {' | '.join([*cells[:3], *cells[4:7]])} |")
    return lines


def left_out(records: Records) -> str:
    counts = Counter(r["left_out"] for r in records if r["left_out"]).most_common()
    return ", ".join(f"{reason} ({count})" for reason, count in counts) or "nothing"


def converted(records: Records) -> list[str]:
    lines = ["| form | networks | kept | layers patched | kinds |", "|---|---:|---:|---:|---|"]
    for form, members in groupby(sorted(records, key=lambda r: r["form"]), lambda r: r["form"]):
        mine = tried(list(members))
        kinds: Counter[str] = Counter()
        for record in mine:
            kinds.update(record["patched"])
        kept = sum(not r["failure"] for r in mine)
        shown = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        lines.append(f"| {form} | {len(mine)} | {kept} | {sum(kinds.values())} | {shown} |")
    return lines


def label(record: dict[str, Any]) -> str:
    """The key of a record in KNOWN."""
    return f"{record['source']}:{record['name']}" + (f", {record['form']}" if record["form"] else "")


def known_by_reason() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in KNOWN.items():
        found.setdefault(reason, []).append(name)
    return found


def page(everything: Records, machine: str) -> list[str]:
    records = [r for r in everything if not r["form"]]
    forms = [r for r in everything if r["form"]]
    mine = tried(records)
    unreached = [f"{r['source']}:{r['name']} ({r['unreached']})" for r in mine if r["unreached"]]
    by_row = [
        f"{r['source']}:{r['name']} ({r['by_row']} of {sum(r['patched'].values())})"
        for r in mine
        if r["by_row"]
    ]
    largest = max(max(r["apart"], r["off"]) for r in mine)
    return [
        "# Breadth",
        "",
        "Every architecture of timm and torchvision that has BatchNorm, with random weights and moving averages, tried with",
        f"{EXAMPLES} examples (`pytest -m slow tests/models/test_breadth.py`; page and [table of families](breadth.csv):",
        f"`tests/benchmarks/breadth.py`). Images have the smallest side of {SIDES[0]}, {SIDES[1]}, … {SIDES[-1]}",
        "that an architecture takes.",
        "",
        "- Every BatchNorm layer is supported.",
        "- α = 0 gives `eval()` bit for bit.",
        f"- α = {ALPHA:g} changes the output, and an example alone gives the same as in a batch, within {TOLERANCE:g} of",
        "  the largest output.",
        "- Stock layers with the moments of [the definition](../idea.md#example-weighting) in float64 give the same.",
        "- State-dict keys never change, unpatching restores everything bit for bit, and the state dict loads into a",
        "  fresh network.",
        "",
        *totals(records),
        "",
        f"{len(mine)} were tried, {sum(not r['failure'] for r in mine)} keep all promises; the largest difference was",
        f"{largest:.0e} of the largest output. {machine}, one thread,",
        f"{sum(r['seconds'] for r in records) / 60:.0f} minutes in all,",
        f"{max(r['peak'] for r in records) / 1e6:.1f} GB at most; timm {timm.__version__},",
        f"torchvision {torchvision.__version__}, torch {torch.__version__}.",
        f"Left out: {left_out(records)}. The limits are {MOST_BYTES / 1e9:g} GB of float32 parameters and",
        f"{MEMORY / 1e9:g} GB for the process. Detection networks are compared by",
        "their feature maps, because the number of boxes can depend on the last bit of a score.",
        "",
        "## Layers that nothing goes through",
        "",
        f"Patched, but not called in eval mode: {', '.join(unreached) or 'none'}.",
        "",
        "## Rows that are not examples",
        "",
        f"Layers that see tokens, windows or regions, each of which is weighted by itself: {', '.join(by_row) or 'none'}.",
        "",
        "## Other forms",
        "",
        "The smallest network of each timm family, converted by timm's own functions or as a backbone (`features_only`):",
        "",
        *converted(forms),
        "",
        "## What fails",
        "",
        "An entry that works again makes the test fail:",
        "",
        *(f"- {reason}: {', '.join(names)}" for reason, names in known_by_reason().items()),
        *(f"- {label(r)}: {r['failure']}" for r in everything if r["failure"] and label(r) not in KNOWN),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    records = [
        {"form": ""} | json.loads(line) for line in given.records.read_text(encoding="utf-8").splitlines()
    ]
    latest = {(r["source"], r["name"], r["form"]): r for r in records}
    everything = list(latest.values())
    text = "\n".join(page(everything, given.machine)) + "\n"
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")
        with given.output.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                families([r for r in everything if not r["form"]])
            )


if __name__ == "__main__":
    main()
