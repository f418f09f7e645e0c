"""The page about breadth, from what the slow test of it has found.

    ALPHATUNE_BREADTH=records.jsonl pytest -m slow tests/test_breadth.py
    python tests/benchmarks/breadth.py records.jsonl --machine "2 shared CPU cores" --output docs/benchmarks/breadth.md

Nothing is measured here: a record is one architecture, as tests/breadth.py describes it.
"""

from __future__ import annotations

import argparse
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


def row(label: str, records: Records) -> str:
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
    return f"| {' | '.join(map(str, cells))} |"


def table(records: Records) -> list[str]:
    lines = [f"| {' | '.join(HEADS)} |", "|---|---:|---:|---:|---:|---:|---|---|---|---:|---:|---:|"]
    lines += [row(family, members) for (_, family), members in by_family(records) if tried(members)]
    return [*lines, row("**all**", records)]


def left_out(records: Records) -> list[str]:
    lines = []
    for reason, count in Counter(r["left_out"] for r in records if r["left_out"]).most_common():
        whole, parts = [], []
        for (_, family), members in by_family(records):
            names = [r["name"] for r in members if r["left_out"] == reason]
            if names and len(names) == len(members):
                whole.append(f"{family} {len(names)}")
            elif names:
                parts.append(f"{family} {len(names)} of {len(members)} ({', '.join(names)})")
        lines.append(f"- {reason}: {count}. {'; '.join(parts)}.")
        if whole:
            lines.append(f"  Whole families: {', '.join(whole)}.")
    return lines or ["- none"]


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
    lines = [
        "# Breadth",
        "",
        "What patching promises, tried on every architecture that timm and torchvision build and that carries",
        "BatchNorm (`pytest -m slow tests/test_breadth.py`; this page: `tests/benchmarks/breadth.py`). Weights are",
        f"random, moving averages drawn. Images have the smallest side of {SIDES[0]}, {SIDES[1]}, … {SIDES[-1]} and its own",
        f"that an architecture takes. Tried with {EXAMPLES} examples:",
        "",
        "- no BatchNorm layer is unsupported, and at least one is patched;",
        "- α = 0 gives `eval()` bit for bit;",
        f"- α = {ALPHA:g} changes the output; an example alone gives what it gives in a batch, within",
        f"  {TOLERANCE:g} of the largest number of the output;",
        "- so does the same network with stock layers, each with the moments of",
        "  [the definition](../method.md#example-weighting), computed in float64, in the place of its moving averages;",
        "- the keys of the state dict never change; unpatching restores types, weights and output bit for bit;",
        "- the state dict loads strictly into a fresh network.",
        "",
        f"{len(records)} architectures; {len(mine)} carry BatchNorm and were tried, "
        f"{sum(not r['failure'] for r in mine)} keep all promises; {sum(sum(r['patched'].values()) for r in mine)} layers. "
        f"{machine}, one thread, {sum(r['seconds'] for r in records) / 60:.0f} minutes in all, "
        f"{max(r['peak'] for r in records) / 1e6:.1f} GB at most; "
        f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}.",
    ]
    for source in ("timm", "torchvision"):
        some = [r for r in records if r["source"] == source]
        lines += ["", f"## {source}", "", *table(some), "", "Left out:", "", *left_out(some)]
    lines += [
        "",
        f"An architecture with more than {MOST_BYTES / 1e9:g} GB of parameters in float32 is left out, and the process",
        f"may hold {MEMORY / 1e9:g} GB. Of detection networks, examples alone and in a batch are compared by the feature",
        "maps, as the number of boxes may hang on the last bit of a score; α = 0 is compared by all that they find.",
        "",
        "## Layers that nothing goes through",
        "",
        f"Patched, but not called in eval mode: {', '.join(unreached) or 'none'}.",
        "",
        "## Rows that are no examples",
        "",
        "Layers that are given tokens, windows or regions at this size, each of which is weighed in by itself:",
        f"{', '.join(by_row) or 'none'}.",
        "",
        "## Other forms",
        "",
        "The smallest network of each of timm's families with BatchNorm, converted by timm's own functions to kinds that",
        "no architecture is built with, and as a backbone that returns a list of feature maps (`features_only`). The same",
        "promises:",
        "",
        *converted(forms),
        "",
        "## What fails",
        "",
        "Nothing is exempt but what is listed here, and an entry that holds again makes the test fail:",
        "",
        *(f"- {reason}: {', '.join(names)}" for reason, names in known_by_reason().items()),
        *(f"- {label(r)}: {r['failure']}" for r in everything if r["failure"] and label(r) not in KNOWN),
    ]
    return lines


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
    text = "\n".join(page(list(latest.values()), given.machine)) + "\n"
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
