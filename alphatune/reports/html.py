"""report.html: the result as one page that reads anywhere, without network and without script.

It says nothing of where the folder lies or when it was written, so that equal
results have equal pages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from itertools import chain

import jinja2
from markupsafe import Markup, escape

from alphatune.core.metrics import INFO, SCORE, Measure, shown
from alphatune.reports.averages import averages_sentences
from alphatune.reports.batch_statistics import companions_sentence
from alphatune.reports.before_after import Comparison, compare_runs
from alphatune.reports.changes import NEW, change_text
from alphatune.reports.curve import split_curve
from alphatune.reports.drawings import Drawn, draw_all
from alphatune.reports.examples import example_rows
from alphatune.reports.figures.canvas import Drawing
from alphatune.reports.figures.inline import Key
from alphatune.reports.flips import frequent_moves, pictures
from alphatune.reports.front import front_table
from alphatune.reports.markdown import level_name
from alphatune.reports.page_tables import artifact_rows, layer_rows, provenance_rows, repeatable_command
from alphatune.reports.palette import DARK, LIGHT
from alphatune.reports.per_class import ENDS, ClassChange, Selection, most_changed
from alphatune.reports.printable import printable
from alphatune.reports.scores import StoredScores
from alphatune.reports.shift_tables import shift_tables
from alphatune.reports.summary import known_best, method_sentence, metric_name, summarise_tune
from alphatune.reports.templating import open_templates
from alphatune.results.tune import Tuned, TuneDocument
from alphatune.settings.naming import as_options
from alphatune.statistics.gain import CONFIDENCE


def render_html(document: Tuned, stored: StoredScores | None) -> tuple[str, Drawn]:
    """The page, and the figures in it.

    Args:
        stored: scores of every example; a page without them has fewer sections, and says so.
    """
    compared = compare_runs(document, stored)
    drawn = draw_all(document, stored, compared)
    metrics = shown(document.metric)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **shift_tables(document),
            examples=example_rows(stored),
            front=front_table(document),
            document=document,
            summary=summarise_tune(document),
            metrics=metrics,
            best={metric: known_best(document, metric) for metric in metrics},
            name=partial(metric_name, document),
            label=partial(label, document),
            curve=split_curve(document),
            method=method_sentence(document),
            averages=averages_sentences(document),
            companions=companions_sentence(document.batch_statistics),
            stored=stored,
            compared=compared,
            drawn=drawn,
            sections=sections(document, drawn, compared),
            shown_classes=[most_changed(changes) for changes in (drawn.top1, drawn.loss) if changes],
            classes=list(zip(drawn.top1, drawn.loss, strict=True)),
            pictures=pictures(stored, compared) if stored and compared else (),
            moves=frequent_moves(stored, compared) if stored and compared else (),
            command=repeatable_command(document.command_line),
            layers=layer_rows(document),
            provenance=provenance_rows(document),
            left_out_images=document.data.skipped if isinstance(document, TuneDocument) else (),
            artifacts=artifact_rows(document),
        )
    )
    return page, drawn


def sections(document: Tuned, drawn: Drawn, compared: Comparison | None) -> list[tuple[str, str]]:
    """Identifiers and short titles of those that the page has."""
    found = [
        ("conditions", "Conditions", document.shift is not None),
        ("repairs", "Repairs", document.repairs is not None),
        ("labels", "Labels", document.label_curve is not None),
        ("curves", "Over α", True),
        ("reliability", "Reliability", bool(drawn.reliability)),
        ("classes", "Classes", bool(drawn.top1)),
        ("images", "Images", compared is not None),
        ("companions", "Batch statistics", document.batch_statistics is not None),
        ("cost", "Cost", True),
        ("layers", "Norm layers", True),
        ("statistics", "Statistics", True),
        ("provenance", "Provenance", True),
    ]
    return [(name, title) for name, title, present in found if present]


def legend(drawings: Sequence[Drawing]) -> list[Key]:
    """The entries of several figures' legends, each once."""
    longest_first = sorted((drawing.keys for drawing in drawings), key=len, reverse=True)
    keys: dict[str, Key] = {}
    for key in chain.from_iterable(longest_first):
        keys.setdefault(key.label, key)
    return list(keys.values())


def label(document: Tuned, metric: Measure) -> str:
    """What a metric is called."""
    return document.score_name if metric == SCORE else INFO[metric].label


def counted(changes: Sequence[ClassChange]) -> str:
    """How many classes changed in which way, and how many of them beyond luck."""
    better, worse = ([c for c in changes if c.gain * sign > 0] for sign in (1, -1))
    parts = []
    for some, name in ((better, "better"), (worse, "worse")):
        sure = sum(c.beyond_luck for c in some)
        parts.append(f"{len(some)} {name} ({sure} of them beyond luck)")
    return f"{', '.join(parts)}, {len(changes) - len(better) - len(worse)} the same"


def left_out(selection: Selection) -> str:
    """How many classes a figure does not show."""
    return (
        f"{selection.hidden_worse} worse, {selection.hidden_better} better, {selection.hidden_same} the same"
    )


def number(value: float | None) -> str:
    """A metric: four decimals, or six digits of a score that is larger than any fraction."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 100 else f"{value:+.6g}"


def interval(values: list[float] | tuple[float, float] | None) -> str:
    """Both ends of a change."""
    return "" if not values else f"{signed(values[0])} … {signed(values[1])}"


@cache
def _environment() -> jinja2.Environment:
    environment = open_templates(html=True)
    environment.finalize = lambda value: value if isinstance(value, Markup) else printable(value)
    environment.filters |= {
        "number": number,
        "signed": signed,
        "interval": interval,
        "inline": _inline,
        "code": _code,
        "picture": _picture,
    }
    environment.globals.update(
        light=LIGHT, dark=DARK, info=INFO, new=NEW, level_name=level_name, change_text=change_text, legend=legend,
        each=f"{100 * CONFIDENCE:.0f} %", counted=counted, left_out=left_out, ends=ENDS,
    )  # fmt: skip
    return environment


def _code(text: str) -> Markup:
    """Text of the library's, in which `this` is code, and a setting the option that it is."""

    def code(found: re.Match[str]) -> str:
        return f"<code>{as_options(found.group()).strip('`')}</code>"

    return Markup(re.sub("`[^`]+`", code, escape(printable(text))))


def _inline(drawing: Drawing) -> Markup:
    return Markup(drawing.inline)  # ours: what is the user's in it is escaped where it is drawn


def _picture(key: Key) -> Markup:
    return Markup(key.svg)
