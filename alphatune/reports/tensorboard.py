"""Epoch figures for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alphatune.results.training import Epoch


@contextmanager
def open_tensorboard(folder: Path, step: int, *, enabled: bool = True) -> Iterator[Callable[[Epoch], None]]:
    """Yield a function that logs the row of an epoch; it does nothing without TensorBoard.

    Args:
        step: where the run goes on; what an interrupted run wrote after it is purged.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        enabled = False
    if not enabled:
        yield lambda _row: None
        return
    writer = SummaryWriter(folder, purge_step=step + 1)

    def log(row: Epoch) -> None:
        for name, value in row.items():
            if name not in ("epoch", "step"):
                writer.add_scalar(name.replace("_", "/", 1), value, row.step)
        writer.flush()

    try:
        yield log
    finally:
        writer.close()
