"""A comparison as rows of text: what the terminal, Markdown and CSV show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alphatune.core.metrics import INFO
from alphatune.reports.markdown import escape
from alphatune.results.alpha import alpha_text
from alphatune.results.comparison import (
    ComparedData,
    ComparedModel,
    CompareDocument,
    Comparison,
    Difference,
    Entry,
)

if TYPE_CHECKING:
    import pandas as pd

Row = tuple[str, ...]


def entry_rows(document: CompareDocument) -> list[Row]:
    """One row a property, one column an entry."""
    entries = document.entries
    names = list(dict.fromkeys(name for e in entries for name, _ in e.metrics.items() if name != "n"))
    rows: list[Row] = [
        ("run", *(_run(e) for e in entries)),
        ("model", *(e.model.source for e in entries)),
        ("weights", *(_weights(e.model) for e in entries)),
        ("data", *(_data(e.data) for e in entries)),
        ("alpha", *(alpha_text(e.alpha) for e in entries)),
        ("temperature", *(f"{e.temperature:g}" for e in entries)),
        *((label(name), *(_change(e, name) for e in entries)) for name in names),
        ("time, x plain", *(_cost(e) for e in entries)),
        ("decision", *("" if e.decision is None else e.decision.reason for e in entries)),
        (f"rank by {label(document.metric)}", *(str(e.rank or "") for e in entries)),
    ]
    return [row for row in rows if any(row[1:])]


def difference_rows(comparison: Comparison, *, adjusted: bool) -> list[Row]:
    """One row a metric: difference, interval, p, with several comparisons also p adjusted, and what it means."""
    rows = []
    for row in comparison.differences:
        p = ("", "") if row.p is None else (f"{row.p:.2g}", f"{row.p_adjusted:.2g}")
        interval = "" if row.ci is None else f"{row.ci[0]:+.4f} .. {row.ci[1]:+.4f}"
        cells = (label(row.metric), f"{row.difference:+.4f}", interval, *p[: 1 + adjusted])
        rows.append((*cells, row.verdict or ""))
    return rows


def comparison_title(comparison: Comparison) -> str:
    """``B - A, example by example``, or why not."""
    pair = f"{comparison.other} - {comparison.first}"
    if comparison.predictions:
        return f"{pair}, paired over {comparison.predictions.examples} examples"
    if comparison.same_data:
        return f"{pair}, unpaired: {comparison.reason}"
    return f"{pair}: not compared, {comparison.reason}"


def prediction_sentence(comparison: Comparison) -> str:
    """How many predictions are others, and who is right there; "" if they are not known."""
    counts, first, other = comparison.predictions, comparison.first, comparison.other
    if counts is None:
        return ""
    return (
        f"{counts.differ} of {counts.examples} predictions differ; right in {first} only: "
        f"{counts.first_only}, in {other} only: {counts.other_only}"
    )


def summary_sentences(document: CompareDocument) -> list[str]:
    """What the comparisons say by the metric that ranks, and the ranking."""
    metric, lines = document.metric, []
    for comparison in document.comparisons:
        row = next((r for r in comparison.differences if r.metric == metric), None)
        if row is None or row.verdict is None or row.ci is None:
            continue
        words = {"undecided": "is not told apart from"}.get(row.verdict, f"is {row.verdict} than")
        lines.append(
            f"{comparison.other} {words} {comparison.first} in {label(metric)}: {row.difference:+.4f} "
            f"({100 * document.confidence:.0f} % interval {row.ci[0]:+.4f} to {row.ci[1]:+.4f}, "
            f"p = {row.p_adjusted:.2g}; {row.method})."
        )
    if len(document.ranking) > 1:
        lines.append(f"By {label(metric)}, best first: {', '.join(document.ranking)}.")
    return lines


def comparison_markdown(document: CompareDocument) -> str:
    """The comparison for people and for the summary of a CI run."""
    entries, adjusted = document.entries, document.correction != "none"
    parts = ["# alphatune compare"]
    head = ("", *(f"{e.label}: {e.name}" for e in entries))
    parts.append("\n\n".join(escape(line) for line in summary_sentences(document)))
    parts.append(_markdown_table(head, entry_rows(document), numbers=False))
    for comparison in document.comparisons:
        parts.append(f"## {escape(comparison_title(comparison))}")
        if comparison.differences:
            rows = difference_rows(comparison, adjusted=adjusted)
            parts.append(_markdown_table(difference_columns(document), rows, numbers=True))
        parts.append(escape(prediction_sentence(comparison)))
        parts.append("\n".join(f"- {escape(remark)}" for remark in comparison.remarks))
    if document.warnings:
        parts += ["## Remarks", "\n".join(f"- {escape(warning)}" for warning in document.warnings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def difference_columns(document: CompareDocument) -> Row:
    """The headings of ``difference_rows``."""
    interval = f"{100 * document.confidence:.0f} % interval"
    return ("", "difference", interval, "p", *(("p (Holm)",) if document.correction != "none" else ()), "")


def comparison_frame(document: CompareDocument) -> pd.DataFrame:
    """One row an entry and metric: its value, and the difference to the first."""
    import pandas as pd  # which takes longer to import than all else here

    by_label = {c.other: c for c in document.comparisons}
    rows = []
    for entry in document.entries:
        comparison = by_label.get(entry.label)
        found: dict[str, Difference] = {r.metric: r for r in comparison.differences} if comparison else {}
        for metric, value in entry.metrics.items():
            if metric == "n":
                continue
            row: dict[str, object] = {key: entry[key] for key in ("label", "name", "run", "temperature")}
            row |= {"n": entry.metrics.n, "metric": metric, "value": value}
            if difference := found.get(metric):
                low, high = difference.ci or (None, None)
                row |= {k: difference[k] for k in ("difference", "p", "p_adjusted", "verdict")}
                row |= {"difference_low": low, "difference_high": high}
            rows.append(row)
    columns = [
        "label", "name", "run", "temperature", "n", "metric", "value", "difference", "difference_low",
        "difference_high", "p", "p_adjusted", "verdict",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def label(metric: str) -> str:
    known: dict[str, str] = {name: info.label for name, info in INFO.items()}
    return known.get(metric, metric)


def _run(entry: Entry) -> str:
    return f"{entry.run}, tuned for {entry.tuned_for}" if entry.tuned_for else entry.run


def _weights(model: ComparedModel) -> str:
    name = Path(model.checkpoint).name if model.checkpoint else ""
    digest = model.checkpoint_sha256[:12]
    return f"{name} ({digest})" if digest else name


def _data(data: ComparedData) -> str:
    split = f" ({data.split})" if data.split else ""
    return f"{Path(data.source).name}{split}, {data.n} examples"


def _change(entry: Entry, name: str) -> str:
    """The metric; of a chosen run also what it was before."""
    if name not in dict(entry.metrics.items()):
        return ""
    after = f"{entry.metrics[name]:.4f}"
    if entry.baseline is None:
        return after
    return f"{entry.baseline[name]:.4f} → {after}"


def _cost(entry: Entry) -> str:
    if entry.deployment is not None:
        return f"{entry.deployment.ratio_to_plain:.2f}"
    return "1" if entry.run == "baseline" or (entry.decision and entry.decision.keep_baseline) else ""


def _markdown_table(head: Row, rows: list[Row], numbers: bool) -> str:
    rule = ["---", *("---:" if numbers else "---" for _ in head[1:])]
    lines = [[escape(cell) for cell in head], rule, *([escape(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
