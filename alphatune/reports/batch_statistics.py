"""Inference by the test batch's statistics as it appears in a result: a row beside the curve, never a choice."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is shown of a result does not wait for torch
    from alphatune.tuning.companions import BatchStatistics


def batch_statistics_summary(compared: BatchStatistics | None) -> dict[str, Any] | None:
    """Metrics and intervals as those of a point of the curve, and how far they depend on companions."""
    if compared is None:
        return None
    return {
        "pseudo_count": compared.pseudo_count,
        "batch_size": compared.batch_size,
        **asdict(compared.metrics),
        "ci": {metric: list(interval) for metric, interval in compared.ci.items()},
        "changed": compared.changed,
    }


def companions_sentence(summary: dict[str, Any]) -> str:
    """What the row is, and why it is no choice."""
    return (
        f"test batch: moving averages (counted as {summary['pseudo_count']:g} examples) mixed with the moments of "
        f"the test batch, batches of up to {summary['batch_size']} drawn at random (Schneider et al. 2020). For "
        "comparison only, never chosen: a prediction depends on the other examples of its batch; with the same "
        f"examples in other random batches {100 * summary['changed']:.1f} % of the predictions changed."
    )
