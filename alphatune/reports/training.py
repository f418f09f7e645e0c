"""What a training run leaves behind: the log as a table, the curves, the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from alphatune.reports.artifacts import write_result
from alphatune.reports.figures.training import draw_training
from alphatune.results.training import Epoch, TrainDocument


def log_frame(rows: Sequence[Epoch]) -> pd.DataFrame:
    """One row an epoch: learning rate, training loss and top-1, validation metrics, seconds."""
    return pd.DataFrame([dict(row.items()) for row in rows])


def write_training_reports(folder: Path, document: TrainDocument) -> TrainDocument:
    """Write log.csv, curves.png and, last, result.json; returns the document with its artifacts."""
    log_frame(document.epochs).to_csv(folder / "log.csv", index=False)
    (folder / "curves.png").write_bytes(draw_training(document.epochs).png)
    return write_result(folder, document)
