"""Results side by side: where the examples are the same, paired, as a tune's own gain is.

The first one is what all others are held against. A difference is that of the
metric, other − first, so that it has the sign one sees in the figures; its
interval and p are those of ``gain.paired_gain``, but for the p of an ECE
(permutation_test.py). With several others p is adjusted by Holm's method, for each
metric by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from msgspec.structs import replace

from alphatune.core.errors import ConfigurationError
from alphatune.core.metrics import INFO, METRICS, Measure, Metric
from alphatune.core.progress import Meter, ShowProgress, as_meter
from alphatune.core.version import VERSION
from alphatune.reports.compared import Compared
from alphatune.reports.comparison_remarks import remarks, why_other_data, why_unpaired
from alphatune.results.comparison import (
    ComparedData,
    ComparedModel,
    CompareDocument,
    Comparison,
    Difference,
    Entry,
    Predictions,
)
from alphatune.results.data import ScoredData
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.metrics import AnyMetrics
from alphatune.statistics.gain import CONFIDENCE, paired_gain
from alphatune.statistics.holm import holm
from alphatune.statistics.permutation_test import exchange_p
from alphatune.statistics.scores import Scores

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compare_document(
    compared: Sequence[Compared],
    *,
    metric: str | None = None,
    seed: int = 0,
    progress: ShowProgress = None,
) -> CompareDocument:
    """The result of ``alphatune compare``.

    Args:
        compared: two or more; the first is what the others are compared with.
        metric: what to rank by; by default what the first was tuned for, else top1.
        seed: of the bootstrap.
        progress: counts what is compared.

    Raises:
        ConfigurationError: the first one has no such metric, or there are too few or too many.
    """
    if not 2 <= len(compared) <= len(LABELS):
        raise ConfigurationError(f"expected 2 to {len(LABELS)} results to compare, got {len(compared)}")
    first = compared[0]
    metric = metric or first.tuned_for or "top1"
    measures = _measures(first.metrics)
    if metric not in measures:
        raise ConfigurationError(f"{first.name} has no {metric} to rank by", f"one of: {', '.join(measures)}")
    meter = as_meter(progress)
    meter.begin("comparing", len(measures) * (len(compared) - 1), "")
    comparisons = _adjusted(
        [
            _comparison(first, other, label, seed, meter)
            for other, label in zip(compared[1:], LABELS[1:], strict=False)
        ]
    )
    alike = [first, *(one for one, c in zip(compared[1:], comparisons, strict=True) if c.same_data)]
    alike = [one for one in alike if one.metrics.has(metric)]  # earlier versions knew fewer metrics
    entries = tuple(
        _entry(one, label, _rank(one, alike, metric) if any(one is other for other in alike) else None)
        for one, label in zip(compared, LABELS, strict=False)
    )
    ranked = sorted((e for e in entries if e.rank is not None), key=lambda e: e.rank or 0)
    return CompareDocument(
        alphatune=VERSION,
        metric=cast("Measure", metric),
        seed=seed,
        confidence=CONFIDENCE,
        correction="holm" if len(comparisons) > 1 else "none",
        entries=entries,
        comparisons=tuple(comparisons),
        ranking=tuple(e.label for e in ranked),
        warnings=tuple(_warnings(compared, comparisons)),
    )


def _measures(metrics: AnyMetrics) -> list[str]:
    return [name for name, _ in metrics.items() if name != "n"]


def _entry(one: Compared, label: str, rank: int | None) -> Entry:
    """A result as far as one wants to see it beside others."""
    document, model, data = one.document, one.document.model, one.document.data
    images = None if isinstance(data, ScoredData) else data
    tuned = None if isinstance(document, EvaluateDocument) else document
    chosen = tuned if one.run == "chosen" else None
    return Entry(
        label=label,
        name=one.name,
        command=document.command,
        run=one.run,
        alphatune=document.alphatune,
        model=ComparedModel(
            source=model.source,
            checkpoint=model.checkpoint,
            checkpoint_sha256=model.checkpoint_sha256,
            norm_layers=model.norm_layers,
            patched=len(model.patched),
        ),
        data=ComparedData(
            source=data.source,
            split=images.split if images else "",
            n=one.metrics.n,
            preprocessing=images.preprocessing if images else None,
            decoder=images.decoder if images else "",
        ),
        tuned_for=one.tuned_for,
        score=one.score_name,
        alpha=one.alpha,
        temperature=one.temperature,
        decision=chosen.decision if chosen else None,
        gain=chosen.gain if chosen else None,
        baseline=tuned.baseline.extended(AnyMetrics) if tuned and one.run != "baseline" else None,
        metrics=one.metrics,
        deployment=chosen.deployment if chosen else None,
        scores=one.scores is not None,
        rank=rank,
    )


def _comparison(first: Compared, other: Compared, label: str, seed: int, meter: Meter) -> Comparison:
    meter.phase(f"comparing A with {label}")
    done = meter.done
    reason = why_other_data(first, other)
    same = not reason
    reason = reason or why_unpaired(first, other)
    pairs = None if reason or first.scores is None or other.scores is None else (first.scores, other.scores)
    differences: list[Difference] = []
    names = cast("list[Measure]", [n for n in _measures(first.metrics) if other.metrics.has(n)])
    if pairs is not None:
        for metric in METRICS:
            if metric in names:
                differences.append(_paired(*pairs, metric, seed))
                meter.add(1)
    elif same:
        differences = [_unpaired(first.metrics[name], other.metrics[name], name) for name in names]
    meter.add(done + len(_measures(first.metrics)) - meter.done)
    return Comparison(
        other=label,
        same_data=same,
        paired=pairs is not None,
        reason=reason,
        differences=tuple(differences),
        predictions=None if pairs is None else _predictions(*pairs),
        remarks=tuple(remarks(first, other)) if same else (),
    )


def _unpaired(first: float, other: float, metric: Measure) -> Difference:
    return Difference(
        metric=metric, difference=other - first, ci=None, p=None, p_adjusted=None, method="", verdict=None
    )


def _paired(first: Scores, other: Scores, metric: Metric, seed: int) -> Difference:
    gain = paired_gain(other, first, metric, seed=seed)
    low, high = gain.ci
    up = INFO[metric].higher_is_better
    p, method = gain.p, gain.method
    if metric == "ece":
        p, method = exchange_p(first, other, seed=seed), "paired basic bootstrap interval, exchange test"
    return Difference(
        metric=metric,
        difference=gain.delta if up else 0.0 - gain.delta,  # not -0.0
        ci=(low, high) if up else (0.0 - high, 0.0 - low),
        p=p,
        p_adjusted=p,
        method=method,
        verdict=None,
    )


def _predictions(first: Scores, other: Scores) -> Predictions:
    """How many examples are classified otherwise, and who is right."""
    return Predictions(
        examples=len(first),
        differ=int((first.predicted != other.predicted).sum()),
        both_right=int((first.top1 & other.top1).sum()),
        first_only=int((first.top1 & ~other.top1).sum()),
        other_only=int((~first.top1 & other.top1).sum()),
        both_wrong=int((~first.top1 & ~other.top1).sum()),
    )


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With each metric's p adjusted for the number of comparisons, and what each difference means."""
    judged: dict[Measure, Iterator[Difference]] = {}
    for metric in METRICS:
        rows = [r for c in comparisons if c.paired for r in c.differences if r.metric == metric]
        judged[metric] = map(_judged, rows, holm([row.p or 0.0 for row in rows]))
    return [
        replace(c, differences=tuple(next(judged[r.metric]) for r in c.differences)) if c.paired else c
        for c in comparisons
    ]


def _judged(row: Difference, p: float) -> Difference:
    told = p <= 1 - CONFIDENCE and row.ci is not None and not row.ci[0] <= 0 <= row.ci[1]
    better = (row.difference > 0) == INFO[row.metric].higher_is_better
    return replace(row, p_adjusted=p, verdict=("better" if better else "worse") if told else "undecided")


def _rank(one: Compared, alike: Sequence[Compared], metric: str) -> int:
    """1 for the best; equal figures share a rank."""
    sign = INFO[cast("Measure", metric)].sign
    own = sign * one.metrics[metric]
    return 1 + sum(bool(sign * other.metrics[metric] > own) for other in alike)


def _warnings(compared: Sequence[Compared], comparisons: Sequence[Comparison]) -> list[str]:
    notes = []
    if (paired := sum(c.paired for c in comparisons)) > 1:
        notes.append(
            f"{paired} comparisons are made: p is adjusted for them (Holm), metric by metric; the intervals are not"
        )
    fitted = [label for one, label in zip(compared, LABELS, strict=False) if one.was_chosen]
    if fitted and any(c.same_data for c in comparisons):
        notes.append(
            f"{_listed(fitted)} had α chosen on the very examples that are compared, which flatters it: "
            "what it is worth on others is the gain in its own result; evaluate with `scores` on others compares "
            "without that"
        )
    return notes


def _listed(words: Sequence[str]) -> str:
    """``A, B and C``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
