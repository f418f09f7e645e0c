"""A result as a notebook shows it: the decision first, then the numbers, in the notebook's own colours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from markupsafe import Markup

from alphatune.core.metrics import INFO, METRICS, REPORTED, SCORE, shown
from alphatune.reports.before_after import is_on_curve
from alphatune.reports.changes import value_text
from alphatune.reports.curve import split_curve
from alphatune.reports.front import front_table
from alphatune.reports.label_curve import label_kinds, label_rows
from alphatune.reports.printable import printable
from alphatune.reports.repairs import repair_table
from alphatune.reports.shifts import condition_table
from alphatune.reports.small_chart import small_chart
from alphatune.reports.summary import metric_name, summarise_tune
from alphatune.reports.templating import open_templates
from alphatune.results.alpha import alpha_text
from alphatune.results.bench import BenchDocument
from alphatune.results.comparison import CompareDocument
from alphatune.results.diagnosis import DoctorDocument
from alphatune.results.document import Document, Part
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.export import ExportDocument
from alphatune.results.inspection import InspectDocument
from alphatune.results.training import TrainDocument
from alphatune.results.tune import ScoreTuneDocument, Tuned, TuneDocument

if TYPE_CHECKING:  # of the library, which a document does without
    from alphatune.tuning.custom_score import ScoreResult
    from alphatune.tuning.tune import TuneResult

#: rows of a table at most
MOST_ROWS = 100
_D = TypeVar("_D", bound=Document)


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column is set to the left, those of numbers to the right."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: bool = True
    left_out: int = 0


@dataclass(frozen=True)
class View:
    """What there is to see of a result, from the most important part to the least."""

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Markup, ...] = ()
    folded: tuple[tuple[str, Table], ...] = ()  # by what is shown of each
    about: str = ""
    warnings: tuple[str, ...] = ()


def to_html(result: Document | TuneResult | ScoreResult) -> str:
    """A result as a piece of HTML without scripts or links, as notebooks show it."""
    template = open_templates(html=True).get_template("notebook.html.j2")
    return printable(template.render(view=_whole_view(result)))


def to_text(result: Document | TuneResult | ScoreResult) -> str:
    """The same in a few lines of ASCII where possible, as an interactive session shows it."""
    view = _whole_view(result)
    lines = [view.title, *view.sentences]
    for table in view.tables:
        cells = [[text.replace("α", "alpha") for text in row] for row in (table.head, *table.rows) if row]
        widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]
        for row in cells:
            padded = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=False)]
            lines.append("  ".join([row[0].ljust(widths[0]), *padded]).rstrip())
    lines += [*filter(None, [view.about]), *(f"warning: {text}" for text in view.warnings)]
    return printable("\n".join(lines).replace("α", "alpha"))


def _whole_view(result: Document | TuneResult | ScoreResult) -> View:
    document = result if isinstance(result, Document) else _document(result)
    view = _view(document)
    return replace(
        view, tables=tuple(t for t in view.tables if t.rows), warnings=getattr(document, "warnings", ())
    )


def _document(result: TuneResult | ScoreResult) -> Tuned:
    """A result of the library, which knows of models and images only that they were there."""
    from alphatune.reports.custom_score import score_document
    from alphatune.reports.result import tune_document
    from alphatune.results.data import ScoredData
    from alphatune.tuning.tune import TuneResult

    unknown: Any = None
    known: Any = ScoredData(
        source="", n=len(result.sweep.baseline) if isinstance(result, TuneResult) else len(result)
    )
    if isinstance(result, TuneResult):
        return tune_document(
            result, command_line="", model=unknown, data=known, env=unknown, calibration=None, recalibration=None,
            warnings=result.warnings,
        )  # fmt: skip
    return score_document(
        result, command_line="", model=unknown, data=known, env=unknown, source="", warnings=result.warnings
    )


@functools.singledispatch
def _view(document: Document) -> View:
    """Of a document without a view of its own: its plain values, and those of its parts."""
    values = dict(document.items())
    for part, inner in document.items():
        if isinstance(inner, Part):
            values |= {f"{part} {name}": value for name, value in inner.items()}
    plain = [(k, f"{v}") for k, v in values.items() if isinstance(v, str | int | float) and k != "schema"]
    return View(document.command, tables=(_table((), plain, numbers=False),))


def _shows(function: Callable[[_D], View]) -> Callable[[_D], View]:
    """Register the view of a kind of document, which the function's annotation names."""
    registered: Callable[[_D], View] = _view.register(function)
    return registered


@_shows
def _tune(document: TuneDocument) -> View:
    return _tuned(document)


@_shows
def _score_tune(document: ScoreTuneDocument) -> View:
    return _tuned(document)


def _tuned(document: Tuned) -> View:
    found = summarise_tune(document)
    compares = bool(found.after_name)
    after_name = found.after_name if found.taken else f"{found.after_name} (not chosen)"
    head = ("", found.before_name, *((after_name, "change") if compares else ()))
    rows = []
    for each in found.figures:
        row = (each.label, value_text(each.metric, each.before))
        after = () if each.after is None else (value_text(each.metric, each.after), each.change_text)
        rows.append((*row, *after))
    gains = tuple(
        f"{worth.label.capitalize()}{'' if worth.of == 'α' else f' ({worth.of})'}: {worth.text}"
        for worth in found.gains
    )
    gates = tuple(
        f"{'passed' if gate.passed else 'FAILED'}: {gate.name} ({gate.reason})" for gate in document.gates
    )
    about = [f"{document.data.n} {'images' if isinstance(document, TuneDocument) else 'examples'}"]
    if document.model is not None:  # which the library does not know
        about = [document.model.source, f"{about[0]} of {document.data.source}"]
    folded = [("What other choices could give", _table((), [(text,) for text in found.missed]))]
    folded.append(("What each repair is worth by number of labelled images", _labels(document)))
    folded.append(("What α gains and costs by set of layers", _front(document)))
    crossings = () if document.label_curve is None else document.label_curve.crossings
    return View(
        f"{found.decision}.",
        (found.sentence, *found.notes, *gains, *gates, *crossings),
        (_table(head, rows), _conditions(document), _repairs(document)),
        _curves(document),
        tuple(part for part in folded if part[1].rows),
        ", ".join(about),
    )


def _conditions(document: Tuned) -> Table:
    """Each condition before and after; no rows where there are none."""
    found = condition_table(document)
    if found is None:
        return _table((), ())
    compared = (found.after_name, f"change{found.unit}", "95 % interval", "") if found.after_name else ()
    rows = [
        (
            ", ".join(filter(None, (row.label, row.detail))),
            row.before,
            *((row.after, row.change, row.interval, row.verdict) if compared else ()),
        )
        for row in found.rows
    ]
    return _table((f"{found.metric} by condition", "plain", *compared), rows)


def _repairs(document: Tuned) -> Table:
    """Each repair beside plain and the best; no rows where there was no comparison."""
    found = repair_table(document)
    if found is None:
        return _table((), ())
    head = ("repair", "numbers", "cost", found.metric, f"change{found.unit}", "95 % interval", "behind", "")
    rows = [
        (
            row.label,
            row.numbers,
            row.cost,
            row.value,
            row.change,
            row.interval,
            row.behind or "best",
            row.note,
        )
        for row in found.rows
    ]
    return _table(head, rows)


def _labels(document: Tuned) -> Table:
    """What each repair is worth by number of labelled images; no rows where that was not measured."""
    curve = document.label_curve
    if curve is None:
        return _table((), ())
    rows = [
        (f"{row.images}: {row.label}", *(f"{cell.value}{cell.mark}" for cell in row.cells))
        for row in label_rows(curve)
    ]
    return _table((f"{INFO[curve.metric].name}, ↑ better than plain, ↓ worse", *label_kinds(curve)), rows)


def _front(document: Tuned) -> Table:
    """Each set of layers; no rows where α was in all of them from the start."""
    found = front_table(document)
    if found is None:
        return _table((), ())
    head = ("layers with α", "time", found.metric, f"change{found.unit}", "interval", "")
    rows = [(row.layers, row.ratio, row.value, row.change, row.interval, row.note) for row in found.rows]
    return _table(head, rows)


def _curves(document: Tuned) -> tuple[Markup, ...]:
    """The curve of the metric that chose, and of the loss or top-1 beside it."""
    if len(document.curve) < 2:
        return ()
    parts, alpha = split_curve(document), document.chosen.alpha
    other = () if document.metric == SCORE else ("top1", "loss")
    marked = None if isinstance(alpha, dict) or not is_on_curve(document) else alpha
    return tuple(
        small_chart(
            f"{metric_name(document, metric)} over α",
            [(p.alpha, p[metric]) for p in parts.joined],
            level=document.baseline[metric],
            dots=[(p.alpha, p[metric]) for p in (*parts.whole, *parts.fewer)],
            marked=marked,
        )
        for metric in dict.fromkeys((document.metric, *other))
    )


@_shows
def _evaluate(document: EvaluateDocument) -> View:
    metrics, model = document.metrics, document.model
    alpha = f"α = {alpha_text(model.alpha)}" + (
        "" if model.temperature == 1 else f", T = {model.temperature:g}"
    )
    names = (*REPORTED, *(name for name in METRICS if name not in REPORTED))
    rows = [(INFO[name].label, value_text(name, metrics[name])) for name in names if metrics.has(name)]
    return View(
        f"top-1 {metrics.top1:.4f} on {metrics.n} images",
        tables=(_table((), rows),),
        about=f"{model.source} at {alpha}, images of {document.data.source}",
    )


@_shows
def _inspect(document: InspectDocument) -> View:
    summary = ", ".join(f"{n} {status}" for status, n in document.summary.items())
    troubled = [layer for layer in document.layers if not layer.healthy or layer.status == "unsupported"]
    problems = [(la.name, la.kind, la.health if not la.healthy else la.reason) for la in troubled]
    layers = [(la.name, la.kind, la.status, la.reason or la.remark) for la in document.layers]
    return View(
        f"{len(document.layers)} norm layers: {summary}" if document.layers else "No norm layers",
        () if problems else ("No problems found.",),
        (_table(("problem", "kind", ""), problems, numbers=False),) if problems else (),
        folded=(("All layers", _table(("layer", "kind", "status", ""), layers, numbers=False)),),
        about=document.model.source,
    )


@_shows
def _compare(document: CompareDocument) -> View:
    metric = document.metric
    names = shown(metric)
    rows = [
        (
            f"{entry.label}  {entry.name}",
            alpha_text(entry.alpha),
            *(value_text(name, v) if isinstance(v := entry.metrics[name], float) else "" for name in names),
        )
        for entry in document.entries
    ]
    differences = [
        (
            f"{other.other} – {other.first}",
            INFO[each.metric].label,
            f"{each.difference:+.4f}",
            _ends(each.ci),
            each.verdict or "",
        )
        for other in document.comparisons
        for each in other.differences
    ]
    return View(
        f"Best by {INFO[metric].name}: {document.ranking[0]}",
        tables=(
            _table(("", "α", *(INFO[name].label for name in names)), rows),
            _table(
                ("difference", "metric", "", f"{100 * document.confidence:.3g} % interval", ""), differences
            ),
        ),
    )


@_shows
def _train(document: TrainDocument) -> View:
    parts = [(name, document[name]) for name in ("validation", "test") if document[name]]
    rows = [(name, *(value_text(m, metrics[m]) for m in REPORTED)) for name, metrics in parts]
    validated = [row for row in document.epochs if row.was_validated]
    charts = [
        small_chart(
            f"validation {INFO[name].name} over epochs",
            [(row.epoch, row[f"val_{name}"]) for row in validated],
            level=validated[0][f"val_{name}"],
        )
        for name in REPORTED[:2]
        if len(validated) > 1
    ]  # fmt: skip
    data, epochs = document.data, len(document.epochs)
    return View(
        f"top-1 {document.validation.top1:.4f} on {data.validation} validation images after {epochs} epochs",
        tables=(_table(("", *(INFO[name].label for name in REPORTED)), rows),),
        charts=tuple(charts),
        about=f"{document.model.source}, norm {document.model.norm.kind}, {data.train} training images of {data.source}",
    )


@_shows
def _bench(document: BenchDocument) -> View:
    rows = [
        (
            f"{each.variant}{f', {each.kernel}' if each.kernel else ''}{', torch.compile' if each.torch_compile else ''}",
            f"{each.batch_size}",
            f"{1000 * each.median_s:.4g}",
            f"{each.images_per_s:.0f}",
            f"{each.ratio_to_plain:.2f}",
        )
        for each in document.results
    ]
    cost = document.cost[-1]
    return View(
        f"α costs {cost.ratio_to_plain:.2f} times the plain model at batch size {cost.batch_size}",
        tables=(_table(("variant", "batch", "ms a batch", "images/s", "times plain"), rows),),
        about=document.model.source,
    )


@_shows
def _export(document: ExportDocument) -> View:
    files = [(each.path, f"{each.bytes / 2**20:.2f} MiB") for each in document.export.files]
    check = document.check
    checked = (
        "not checked" if check is None else f"largest difference to PyTorch {check.largest_difference:.2g}"
    )
    return View(f"Written to {document.export.path}", (f"{checked}.",), (_table(("file", "size"), files),))


@_shows
def _doctor(document: DoctorDocument) -> View:
    found = [(f.name, f.status, f.detail, f.hint) for f in document.findings if f.status != "ok"]
    counts = ", ".join(f"{n} {status}" for status, n in document.summary.items() if n)
    title = (
        "Nothing that alphatune needs is broken"
        if document.ok
        else "Something that alphatune needs is broken"
    )
    return View(title, (counts,), (_table(("not ok", "", "", "what to do"), found, numbers=False),))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], numbers: bool = True) -> Table:
    whole = list(rows)
    return Table(head, whole[:MOST_ROWS], numbers, max(0, len(whole) - MOST_ROWS))


def _ends(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
