"""What ``tune`` found, on the terminal; ``demo`` shows it, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphatune.cli.usage import as_options
from alphatune.core.metrics import INFO, STANDARD, shown

if TYPE_CHECKING:  # results are not waited for by --help
    from rich.table import Table

    from alphatune.reports.summary import Summary
    from alphatune.results.tune import Refinement, Tuned

#: a column's head; what is longer is called "chosen" and stands in the first line
LONGEST_HEAD = 12


def show_result(document: Tuned, output: str, *, verbose: bool = False, onward: bool = True) -> None:
    """What was found, where the files are and, with ``onward``, what to do next; with ``verbose`` how, too."""
    from rich.text import Text

    from alphatune.cli import console
    from alphatune.cli.shift_tables import shift_details, shift_tables
    from alphatune.reports.averages import averages_sentences
    from alphatune.reports.batch_statistics import batch_statistics_sentence
    from alphatune.reports.power import power_sentence
    from alphatune.reports.summary import summarise_tune

    out, summary = console.stdout(), summarise_tune(document, output)
    if verbose:
        _show_details(document)
    out.print(Text(summary.decision, style="bold"))
    for sentence in (summary.sentence, *summary.notes):
        out.print(Text(as_options(sentence)))
    for sentence in averages_sentences(document):
        out.print(Text(sentence))
    out.print()
    out.print(_figures(document, summary))
    out.print()
    if compared := document.batch_statistics:
        out.print(Text(batch_statistics_sentence(compared)))
        out.print()
    if summary.gains:
        out.print(_gains(summary))
        out.print()
    for table in shift_tables(document):
        out.print(table)
        out.print()
    if front := _front(document):
        out.print(front)
        out.print()
    if document.label_curve and document.label_curve.crossings:
        for sentence in document.label_curve.crossings:
            out.print(Text(as_options(sentence)))
        out.print()
    for table in shift_details(document) if verbose else ():
        out.print(table)
        out.print()
    power = "" if verbose else power_sentence(document)  # which is among the details
    for line in filter(None, [power, *summary.missed]):
        out.print(Text(as_options(line)))
    if power or summary.missed:
        out.print()
    more = "" if verbose else "; --verbose prints it"
    out.print(Text(f"Written to {output}. The whole curve is in report.html{more}."))
    if onward:
        console.show_next([(step.command, step.caption) for step in summary.next])


def _figures(document: Tuned, summary: Summary) -> Table:
    """The metrics at the unpatched model's α, at what was chosen, and at the best α of each."""
    from alphatune.cli import console
    from alphatune.reports.changes import value_text
    from alphatune.reports.power import count_text
    from alphatune.reports.summary import metric_name

    columns = [("", "left"), (summary.before_name, "number")]
    if name := summary.after_name:
        short = name if len(name) <= LONGEST_HEAD else "chosen"
        columns += [(short if summary.taken else f"({short})", "number"), ("change", "number"), ("", "left")]
    rows = []
    for figure in summary.figures:
        best = "not searched"
        if figure.best is not None:
            about = "~" if figure.best_is_estimate else ""
            best = f"{about}{value_text(figure.metric, figure.best)} at α = {figure.best_alpha:g}"
        after: tuple[str, ...] = ()
        if figure.after is not None:
            after = (value_text(figure.metric, figure.after), figure.change_text, figure.verdict)
        rows.append((figure.label, value_text(figure.metric, figure.before), *after, best))
    things = "example" if document.metric == "score" else "image"
    count = f"{count_text(document.data.n)} {things}{'' if document.data.n == 1 else 's'}"
    title = f"{count}, tuned by {metric_name(document, document.metric)}"
    if summary.after_name and not summary.taken:
        title += f"; {summary.after_name} was not taken"
    if any(figure.best_is_estimate for figure in summary.figures):
        title += "; ~ estimated"
    return console.table(title, [*columns, ("best", "left")], rows)


def _gains(summary: Summary) -> Table:
    """What the choice is worth on these images, and on new ones."""
    from alphatune.cli import console
    from alphatune.reports.changes import change_text

    names = list(dict.fromkeys(worth.name for worth in summary.gains))
    rows = []
    for worth in summary.gains:
        change = change_text(worth.metric, worth.change)
        named = change if len(names) == 1 else f"{worth.name} {change}"
        rows.append(
            (
                worth.label,
                worth.of.replace(" a ", " "),  # so that a row fits 80 columns
                named,
                f"{worth.level} {worth.interval_text}" if worth.interval else "",
            )
        )
    head = f"change in {names[0]}" if len(names) == 1 else "change"
    return console.table("", [(head, "left"), ("by", "left"), ("", "number"), ("interval", "left")], rows)


def _show_details(document: Tuned) -> None:
    """The whole curve, the levels, and how the gain was measured."""
    from rich.text import Text

    from alphatune.cli import console
    from alphatune.reports.summary import method_sentence

    out = console.stdout()
    out.print(_curve(document))
    for line in _sparklines(document):
        out.print(Text(line))
    if document.refinement:
        out.print()
        out.print(_levels(document.refinement, document.baseline_alpha))
    out.print()
    out.print(Text(as_options(method_sentence(document))))
    out.print()


def _curve(document: Tuned) -> Table:
    """Every α, with the paired interval of its change where there is room for it."""
    from alphatune.cli import console
    from alphatune.reports.changes import change_text, value_text
    from alphatune.reports.repairs import free_repair
    from alphatune.reports.summary import known_best, metric_name

    metrics = shown(document.metric, STANDARD)
    best = {metric: known_best(document, metric) for metric in metrics}
    rows = []
    for point in document.curve:
        marks = [] if point.measured else ["~"]
        if point.alpha == document.chosen.alpha and free_repair(document) is None:
            marks.append("chosen")
        if named := [metric_name(document, metric) for metric, alpha in best.items() if alpha == point.alpha]:
            marks.append(f"best {', '.join(named)}")
        interval = point.ci.get(document.metric) if point.alpha != document.baseline_alpha else None
        ends = [change_text(document.metric, end, unit=False) for end in interval or ()]
        values = [value_text(metric, point[metric]) for metric in metrics]
        rows.append((f"{point.alpha:g}", *values, " to ".join(ends), point.n or "", " ".join(marks)))
    if compared := document.batch_statistics:
        interval = compared.ci.get(document.metric)
        ends = [change_text(document.metric, end, unit=False) for end in interval or ()]
        values = [value_text(metric, compared[metric]) for metric in metrics]
        rows.append(("test batch", *values, " to ".join(ends), compared.n, "no choice"))
    name, model = metric_name(document, document.metric), document.model
    unit = " (points)" if INFO[document.metric].is_share else ""
    title = (
        f"{len(model.patched)} of {model.norm_layers} norm layers take an α; Δ: 95 % interval of the change"
    )
    if any(not point.measured for point in document.curve):
        title += "; ~ interpolated from n examples: compare rows of equal n only"
    names = [metric_name(document, metric) for metric in metrics]
    columns = [(each, "number") for each in ("α", *names, f"Δ {name}{unit}", "n")]
    return console.table(title, [*columns, ("", "left")], rows)


def _sparklines(document: Tuned) -> list[str]:
    """The curve as bars, and between which values they stand."""
    from alphatune.cli import console
    from alphatune.reports.changes import value_text
    from alphatune.reports.curve import split_curve
    from alphatune.reports.summary import metric_name

    points = split_curve(document).joined
    if len(points) < 3:
        return []
    lines = []
    for metric in shown(document.metric, ("top1", "loss")):
        values = [point[metric] for point in points]
        low, high = (value_text(metric, end) for end in (min(values), max(values)))
        span = f"α = {points[0].alpha:g} to {points[-1].alpha:g}"
        name = metric_name(document, metric)
        lines.append(f"{name} over {span}, lowest bar {low}, highest {high}: {console.sparkline(values)}")
    return lines


def _front(document: Tuned) -> Table | None:
    """Each set of layers: what α gains there, and what it costs."""
    from alphatune.cli import console
    from alphatune.reports.front import front_table

    found = front_table(document)
    if found is None:
        return None
    columns = [
        ("layers with α", "number"), ("time", "number"), (found.metric, "right"), ("change", "right"),
        ("interval", "left"), ("", "left"),
    ]  # fmt: skip
    rows = [(row.layers, row.ratio, row.value, row.change, row.interval, row.note) for row in found.rows]
    title = (
        f"Gain by cost; time in multiples of the folded network{'; changes in points' if found.unit else ''}"
    )
    return console.table(title, columns, rows)


def _levels(refinement: Refinement, baseline_alpha: float) -> Table:
    """Each granularity out of fold, without and with a temperature."""
    from alphatune.cli import console
    from alphatune.reports.markdown import level_name

    right = "right"
    rows = []
    for level in refinement.levels:
        metrics, calibrated = level.metrics, level.calibrated
        marks = "chosen" if level is refinement.deployed else ""
        rows.append(
            (
                level_name(level, baseline_alpha),
                f"{level.units}" if level.units else "",
                f"{metrics.top1:.4f}",
                f"{metrics.loss:.4f}",
                f"{metrics.ece:.4f}",
                f"{level.mean_temperature:.3f}",
                f"{calibrated.loss:.4f}",
                f"{calibrated.ece:.4f}",
                marks,
            )
        )
    columns = [
        ("α", "left"), ("numbers", right), ("top-1", right), ("loss", right), ("ECE", right),
        ("T", right), ("loss at T", right), ("ECE at T", right), ("", "left"),
    ]  # fmt: skip
    return console.table("Out of fold, without and with temperature", columns, rows)
