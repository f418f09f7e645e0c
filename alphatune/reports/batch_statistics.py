"""Inference by the test batch's statistics, in a sentence: a row beside the curve, never a choice."""

from __future__ import annotations

from alphatune.core.metrics import INFO, STANDARD
from alphatune.results.tune import BatchStatistics


def batch_statistics_sentence(compared: BatchStatistics) -> str:
    """What it gives, and what it is."""
    figures = ", ".join(f"{INFO[metric].name} {compared[metric]:.4f}" for metric in STANDARD)
    return f"By the test batch's statistics: {figures}.\n{companions_sentence(compared)}"


def companions_sentence(compared: BatchStatistics | None) -> str:
    """What the row is, and why it is no choice; "" without one."""
    if compared is None:
        return ""
    return (
        f"test batch: moving averages (counted as {compared.pseudo_count:g} examples) mixed with the moments of "
        f"the test batch, batches of up to {compared.batch_size} drawn at random (Schneider et al. 2020). For "
        "comparison only, never chosen: a prediction depends on the other examples of its batch; with the same "
        f"examples in other random batches {100 * compared.changed:.1f} % of the predictions changed."
    )
