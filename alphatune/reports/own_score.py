"""The result of a tune by a score of one's own: the layout of any tune, with ``score`` for its metrics."""

from __future__ import annotations

from typing import Any

import alphatune
from alphatune.reports.result import SCHEMA, gain_summary
from alphatune.tuning.gain import SCORE
from alphatune.tuning.own_score import ScoreResult


def score_document(
    result: ScoreResult, *, model: dict[str, Any], data: dict[str, Any], env: dict[str, Any], source: str
) -> dict[str, Any]:
    """The result, less its artifacts, which are known only once written.

    Args:
        source: where the score comes from, as the user named it.
    """
    decision, n = result.decision, len(result)
    return {
        "schema": SCHEMA,
        "command": "tune",
        "alphatune": alphatune.__version__,
        "command_line": "",
        "model": model,
        "data": data,
        "env": env,
        "metric": SCORE,
        "score": {"source": source, "name": result.name},
        "baseline_alpha": result.baseline_alpha,
        "accept": result.accept,
        "curve": [
            {
                "alpha": point.alpha,
                "measured": True,
                "n": n,
                "score": point.score,
                "ci": {} if point.ci is None else {SCORE: list(point.ci)},
            }
            for point in result.curve
        ],
        "baseline": {"n": n, "score": result.baseline},
        "best": dict(decision.best),
        "chosen": {"alpha": result.alpha, "temperature": 1.0, "metrics": {"n": n, "score": result.chosen}},
        "refinement": None,
        "search": None,
        "passes": float(len(result.curve)),
        "seconds": result.seconds,
        "gain": None if decision.gain is None else gain_summary(decision.gain),
        "deployment": None,
        "batch_statistics": None,
        "decision": {
            "keep_baseline": result.alpha == result.baseline_alpha,
            "significant": decision.gain is not None and decision.gain.significant,
            "reason": decision.reason,
        },
        "gates": [],
        "cache": None,
        "artifacts": [],
        "warnings": list(result.warnings),
    }
