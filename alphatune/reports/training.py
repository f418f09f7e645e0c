"""What a training run leaves behind: the log as a table, the curves, the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from alphatune.reports.artifacts import write_result
from alphatune.results.training import Epoch, TrainDocument


def log_frame(rows: Sequence[Epoch]) -> pd.DataFrame:
    """One row an epoch: learning rate, training loss and top-1, validation metrics, seconds."""
    return pd.DataFrame([dict(row.items()) for row in rows])


def draw_curves(rows: Sequence[Epoch], path: Path) -> None:
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
            points = [
                (row.epoch, row[f"{part}_{metric}"]) for row in rows if part == "train" or row.was_validated
            ]
            axes.plot(*zip(*points, strict=True), style, marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def write_training_reports(folder: Path, document: TrainDocument) -> TrainDocument:
    """Write log.csv, curves.png and, last, result.json; returns the document with its artifacts."""
    log_frame(document.epochs).to_csv(folder / "log.csv", index=False)
    draw_curves(document.epochs, folder / "curves.png")
    return write_result(folder, document)
