"""report.html: the result as one page that reads anywhere, without network and without script.

It says nothing of where the folder lies or of the run that wrote it, so that
equal results have equal pages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup, escape

from alphatune.core.metrics import INFO, REPORTED, SCORE, Measure
from alphatune.reports.averages import averages_sentences
from alphatune.reports.batch_statistics import companions_sentence
from alphatune.reports.before_after import compare_runs
from alphatune.reports.drawings import Drawn, draw_all
from alphatune.reports.flips import frequent_moves, pictures
from alphatune.reports.markdown import LABELS, beyond, headline, level_name
from alphatune.reports.page_tables import artifact_rows, layer_rows, provenance_rows, repeatable_command
from alphatune.reports.palette import DARK, LIGHT
from alphatune.reports.per_class import ENDS, ClassChange, Selection, most_changed
from alphatune.reports.printable import printable
from alphatune.reports.scores import StoredScores
from alphatune.reports.templating import open_templates
from alphatune.results.alpha import alpha_text
from alphatune.results.document import Part
from alphatune.results.tune import Tuned, TuneDocument
from alphatune.statistics.gain import CONFIDENCE


@dataclass(frozen=True)
class Tile:
    """One metric before and after."""

    label: str
    chosen_by: bool  # whether α was chosen by it
    by_label: str  # what α was chosen by
    before: float
    after: float | None  # None where no other α is better
    name: str  # of what comes after
    kept: bool
    rises: bool  # whether more is better

    @property
    def change(self) -> float:
        return 0.0 if self.after is None else self.after - self.before

    @property
    def word(self) -> str:
        """What the change is; "" where there is nothing to compare with."""
        if self.after is None:
            return ""
        return "same" if self.change == 0 else "better" if (self.change > 0) == self.rises else "worse"


def render_html(document: Tuned, stored: StoredScores | None) -> tuple[str, Drawn]:
    """The page, and the figures in it.

    Args:
        stored: scores of every example; a page without them has fewer sections, and says so.
    """
    compared = compare_runs(document, stored)
    drawn = draw_all(document, stored, compared)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            document=document,
            verdict=verdict(document),
            tiles=tiles(document),
            gain=gain_sentence(document),
            averages=averages_sentences(document),
            companions=companions_sentence(document.batch_statistics),
            stored=stored,
            compared=compared,
            drawn=drawn,
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


def verdict(document: Tuned) -> tuple[str, str]:
    """The headline in two parts: what to do, and why."""
    what, _, why = headline(document).partition(": ")
    return what, why[:1].upper() + why[1:]


def tiles(document: Tuned) -> list[Tile]:
    """The metrics before and after; where the unpatched model is kept, beside those of the best other α."""
    before, chosen = document.baseline, document.chosen
    kept = chosen.alpha == document.baseline_alpha and chosen.temperature == 1
    best = document.best[document.metric]
    other = next((p for p in document.curve if p.alpha == best), None)
    after: Part | None = chosen.metrics
    name = "now"
    if kept:
        after, name = other if best != document.baseline_alpha else None, f"with α = {best:g}"
    return [
        Tile(
            label=label(document, metric),
            chosen_by=metric == document.metric,
            by_label=label(document, document.metric),
            before=before[metric],
            after=None if after is None else after[metric],
            name=name,
            kept=kept,
            rises=INFO[metric].higher_is_better,
        )
        for metric in ((SCORE,) if document.metric == SCORE else REPORTED)
    ]


def gain_sentence(document: Tuned) -> str:
    """What choosing α in this way is worth on examples that did not choose it."""
    gain = document.gain
    if gain is None:
        return f"Not estimated: {document.decision.reason}."
    if gain.scheme == "progressive":
        how = (
            f"Measured on {gain.examples} examples that each had no part in choosing the α they were scored at "
            f"(α = {', '.join(f'{a:g}' for a in gain.fold_alphas)})"
        )
    else:
        how = f"Chosen on {gain.folds - 1} of {gain.folds} folds and scored on the other, in turn"
    return (
        f"{how}: improvement in {label(document, gain.metric)}{beyond(document)} {number(gain.delta)} "
        f"({100 * gain.confidence:.0f} % interval "
        f"{number(gain.ci[0])} to {number(gain.ci[1])}, p = {gain.p:.2g}; {gain.method}). "
        f"{'Significant' if gain.significant else 'Not significant'}."
    )


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
    }
    environment.globals.update(
        light=LIGHT, dark=DARK, labels=LABELS, level_name=level_name, alpha_text=alpha_text,
        each=f"{100 * CONFIDENCE:.0f} %", counted=counted, left_out=left_out, ends=ENDS,
    )  # fmt: skip
    return environment


def _code(text: str) -> Markup:
    """Text of the library's, in which `this` is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escape(printable(text))))


def _inline(drawing: Any) -> Markup:
    return Markup(drawing.inline)  # ours: what is the user's in it is escaped where it is drawn
