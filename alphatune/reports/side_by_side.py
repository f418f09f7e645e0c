"""Results side by side: where the examples are the same, paired, as a tune's own gain is.

The first one is what all others are held against. A difference is that of the
metric, other − first, so that it has the sign one sees in the figures; its
interval and p are those of ``selection.paired_gain``, but for the p of an ECE
(exchange.py). With several others p is adjusted by Holm's method, for each
metric by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import alphatune
from alphatune.errors import ConfigurationError
from alphatune.evaluation import HIGHER_IS_BETTER, METRICS, Metric, Scores
from alphatune.reports.compared import Compared
from alphatune.reports.comparison_remarks import remarks, why_other_data, why_unpaired
from alphatune.reports.result import SCHEMA
from alphatune.tuning.exchange import exchange_p
from alphatune.tuning.gain import CONFIDENCE, SCORE, paired_gain
from alphatune.tuning.holm import holm

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compare_document(
    compared: Sequence[Compared], *, metric: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """The result of ``alphatune compare``.

    Args:
        compared: two or more; the first is what the others are compared with.
        metric: what to rank by; by default what the first was tuned for, else top1.
        seed: of the bootstrap.

    Raises:
        ConfigurationError: the first one has no such metric, or there are too few or too many.
    """
    if not 2 <= len(compared) <= len(LABELS):
        raise ConfigurationError(f"expected 2 to {len(LABELS)} results to compare, got {len(compared)}")
    first = compared[0]
    metric = metric or first.document.get("metric") or "top1"
    if metric not in first.metrics:
        raise ConfigurationError(
            f"{first.name} has no {metric} to rank by",
            f"one of: {', '.join(m for m in first.metrics if m != 'n')}",
        )
    comparisons = [
        _comparison(first, other, label, seed) for other, label in zip(compared[1:], LABELS[1:], strict=False)
    ]
    _adjust_(comparisons)
    entries = [_entry(one, label) for one, label in zip(compared, LABELS, strict=False)]
    alike = [entries[0], *(e for e, c in zip(entries[1:], comparisons, strict=True) if c["same_data"])]
    for entry in alike:
        entry["rank"] = _rank(entry, alike, metric)
    return {
        "schema": SCHEMA,
        "command": "compare",
        "alphatune": alphatune.__version__,
        "metric": metric,
        "seed": seed,
        "confidence": CONFIDENCE,
        "correction": "holm" if len(comparisons) > 1 else "none",
        "entries": entries,
        "comparisons": comparisons,
        "ranking": [e["label"] for e in sorted(alike, key=lambda e: e["rank"])],
        "warnings": _warnings(compared, comparisons),
    }


def _entry(one: Compared, label: str) -> dict[str, Any]:
    """A result as far as one wants to see it beside others."""
    document = one.document
    model, data, tuned = document["model"], document["data"], document["command"] == "tune"
    chosen = one.run == "chosen"
    return {
        "label": label,
        "name": one.name,
        "command": document["command"],
        "run": one.run,
        "alphatune": str(document.get("alphatune", "")),
        "model": {
            "source": model["source"],
            "checkpoint": str(model.get("checkpoint") or ""),
            "checkpoint_sha256": str(model.get("checkpoint_sha256") or ""),
            "norm_layers": model.get("norm_layers"),
            "patched": len(model.get("patched") or ()),
        },
        "data": {
            "source": data["source"],
            "split": str(data.get("split", "")),
            "n": one.metrics["n"],
            "preprocessing": data.get("preprocessing"),
            "decoder": str(data.get("decoder", "")),
        },
        "tuned_for": document["metric"] if tuned else None,
        "score": document["score"]["name"] if document.get("metric") == SCORE else None,
        "alpha": one.alpha,
        "temperature": one.temperature,
        "decision": document["decision"] if chosen else None,
        "gain": document.get("gain") if chosen else None,
        "baseline": document["baseline"] if tuned and one.run != "baseline" else None,
        "metrics": one.metrics,
        "deployment": document.get("deployment") if chosen else None,
        "scores": one.scores is not None,
        "rank": None,  # among those of the same data
    }


def _comparison(first: Compared, other: Compared, label: str, seed: int) -> dict[str, Any]:
    reason = why_other_data(first, other)
    same = not reason
    reason = reason or why_unpaired(first, other)
    pairs = None if reason or first.scores is None or other.scores is None else (first.scores, other.scores)
    differences: list[dict[str, Any]] = []
    if pairs is not None:
        differences = [_paired(*pairs, metric, seed) for metric in METRICS]
    elif same:
        names = [name for name in first.metrics if name != "n"]
        differences = [_unpaired(first.metrics[name], other.metrics[name], name) for name in names]
    return {
        "first": LABELS[0],
        "other": label,
        "same_data": same,
        "paired": pairs is not None,
        "reason": reason,
        "differences": differences,
        "predictions": None if pairs is None else _predictions(*pairs),
        "remarks": remarks(first, other) if same else [],
    }


def _unpaired(first: float, other: float, name: str) -> dict[str, Any]:
    return {
        "metric": name,
        "difference": other - first,
        "ci": None,
        "p": None,
        "p_adjusted": None,
        "method": "",
        "verdict": None,
    }


def _paired(first: Scores, other: Scores, metric: Metric, seed: int) -> dict[str, Any]:
    gain = paired_gain(other, first, metric, seed=seed)
    low, high = gain.ci
    up = HIGHER_IS_BETTER[metric]
    p, method = gain.p, gain.method
    if metric == "ece":
        p, method = exchange_p(first, other, seed=seed), "paired basic bootstrap interval, exchange test"
    return {
        "metric": metric,
        "difference": gain.delta if up else 0.0 - gain.delta,  # not -0.0
        "ci": [low, high] if up else [0.0 - high, 0.0 - low],
        "p": p,
        "p_adjusted": p,
        "method": method,
        "verdict": None,
    }


def _predictions(first: Scores, other: Scores) -> dict[str, int]:
    """How many examples are classified otherwise, and who is right."""
    return {
        "examples": len(first),
        "differ": int((first.predicted != other.predicted).sum()),
        "both_right": int((first.top1 & other.top1).sum()),
        "first_only": int((first.top1 & ~other.top1).sum()),
        "other_only": int((~first.top1 & other.top1).sum()),
        "both_wrong": int((~first.top1 & ~other.top1).sum()),
    }


def _adjust_(comparisons: Sequence[dict[str, Any]]) -> None:
    """Adjust each metric's p for the number of comparisons, and say what each difference means."""
    for metric in METRICS:
        rows = [r for c in comparisons if c["paired"] for r in c["differences"] if r["metric"] == metric]
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_adjusted"] = p
            low, high = row["ci"]
            told = p <= 1 - CONFIDENCE and not low <= 0 <= high
            better = (row["difference"] > 0) == HIGHER_IS_BETTER[metric]
            row["verdict"] = ("better" if better else "worse") if told else "undecided"


def _rank(entry: dict[str, Any], alike: Sequence[dict[str, Any]], metric: str) -> int:
    """1 for the best; equal figures share a rank."""
    sign = 1 if HIGHER_IS_BETTER.get(metric, True) else -1  # type: ignore[call-overload]
    own = sign * entry["metrics"][metric]
    return 1 + sum(bool(sign * e["metrics"][metric] > own) for e in alike)


def _warnings(compared: Sequence[Compared], comparisons: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    if (paired := sum(c["paired"] for c in comparisons)) > 1:
        notes.append(
            f"{paired} comparisons are made: p is adjusted for them (Holm), metric by metric; the intervals are not"
        )
    fitted = [label for one, label in zip(compared, LABELS, strict=False) if one.was_chosen]
    if fitted and any(c["same_data"] for c in comparisons):
        notes.append(
            f"{_listed(fitted)} had alpha chosen on the very examples that are compared, which flatters it: "
            "what it is worth on others is the gain in its own result; evaluate --scores on others compares "
            "without that"
        )
    return notes


def _listed(words: Sequence[str]) -> str:
    """``A, B and C``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
