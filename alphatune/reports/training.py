"""What a training run leaves behind: the log as a table, the curves, the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

import alphatune
from alphatune.hashing import sha256
from alphatune.reports.result import SCHEMA
from alphatune.reports.serialisation import to_json


def train_document(
    rows: list[dict[str, Any]],
    *,
    model: dict[str, Any],
    data: dict[str, Any],
    env: dict[str, Any],
    recipe: dict[str, Any],
    seconds: float,
    test: dict[str, Any] | None,
    warnings: list[str],
) -> dict[str, Any]:
    """The result of a training run, less its artifacts."""
    last = rows[-1]
    return {
        "schema": SCHEMA,
        "command": "train",
        "alphatune": alphatune.__version__,
        "model": model,
        "data": data,
        "env": env,
        "recipe": recipe,
        "epochs": rows,
        "validation": {key.removeprefix("val_"): last[key] for key in last if key.startswith("val_")},
        "test": test,
        "seconds": seconds,
        "artifacts": [],
        "warnings": warnings,
    }


def log_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row an epoch: learning rate, training loss and top-1, validation metrics, seconds."""
    return pd.DataFrame(rows)


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss and top-1 over epochs, training and validation, as an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Not pyplot: it keeps state, and looks for a screen.
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric, label in zip(
        figure.subplots(1, 2), ("loss", "top1"), ("loss (nats)", "top-1"), strict=True
    ):
        for part, name, style in (("train", "training", "--"), ("val", "validation", "-")):
            points = [(row["epoch"], row[f"{part}_{metric}"]) for row in rows if f"{part}_{metric}" in row]
            axes.plot(*zip(*points, strict=True), style, marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def write_training_reports(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Write log.csv, curves.png and, last, result.json; returns the document with its artifacts."""
    log_frame(document["epochs"]).to_csv(folder / "log.csv", index=False)
    draw_curves(document["epochs"], folder / "curves.png")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    document = {**document, "artifacts": [{"path": f.name, "sha256": sha256(f)} for f in files]}
    (folder / "result.json").write_text(to_json(document) + "\n", encoding="utf-8")
    return document
