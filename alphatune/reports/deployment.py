"""What α costs in deployment, as it appears in a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import alphatune
from alphatune.deployment import DeploymentCost
from alphatune.reports.result import SCHEMA


def bench_document(
    costs: Sequence[DeploymentCost], *, model: dict[str, Any], env: dict[str, Any], warnings: Sequence[str]
) -> dict[str, Any]:
    """The result of ``alphatune bench``: one cost a batch size."""
    return {
        "schema": SCHEMA,
        "command": "bench",
        "alphatune": alphatune.__version__,
        "model": model,
        "env": env,
        "results": [row for cost in costs for row in cost_rows(cost)],
        "folded": folding_summary(costs),
        "cost": [cost_summary(cost) for cost in costs],
        "warnings": list(dict.fromkeys([*warnings, *(w for cost in costs for w in cost.warnings)])),
    }


def cost_rows(cost: DeploymentCost) -> list[dict[str, Any]]:
    """One object a variant: seconds are a batch's, quartiles with the median."""
    return [
        {
            "batch_size": cost.batch_size,
            "variant": m.variant,
            "kernel": m.kernel,
            "torch_compile": m.torch_compile,
            "median_s": m.timing.median,
            "low_s": m.timing.low,
            "high_s": m.timing.high,
            "rounds": len(m.timing.samples),
            "images_per_s": cost.batch_size / m.timing.median,
            "ratio_to_plain": m.ratio_to_plain,
            "peak_bytes": m.peak_bytes,
            "first_use_s": m.timing.first_use,
        }
        for m in cost.measured
    ]


def cost_summary(cost: DeploymentCost) -> dict[str, Any]:
    """Example-weighted inference with the fastest kernel next to what else one could deploy."""
    return {
        "batch_size": cost.batch_size,
        "alpha": cost.alpha,
        "kernel": cost.fastest.kernel,
        "ratio_to_plain": cost.ratio_to_plain,
        "ratio_to_folded": cost.ratio_to_folded,
        "ratio_compiled": cost.ratio_compiled,
    }


def folding_summary(costs: Sequence[DeploymentCost]) -> dict[str, Any]:
    """How many norm layers went into convolutions, and how far outputs moved."""
    differences = [c.largest_difference for c in costs if c.largest_difference is not None]
    first = costs[0]
    return {
        "norms": first.norms,
        "folded": first.folded,
        "largest_difference": max(differences, default=None),
        "kept": [{"name": name, "reason": reason} for name, reason in first.kept.items()],
    }
