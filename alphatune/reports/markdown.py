"""The result as Markdown, for people and for the summary of a CI run."""

from __future__ import annotations

import re
from functools import partial

from msgspec.structs import asdict

from alphatune.core.metrics import SCORE, STANDARD, shown
from alphatune.reports.averages import averages_sentences
from alphatune.reports.batch_statistics import companions_sentence
from alphatune.reports.changes import value_text
from alphatune.reports.front import front_table
from alphatune.reports.shift_tables import shift_tables
from alphatune.reports.summary import known_best, method_sentence, metric_name, summarise_tune
from alphatune.reports.templating import open_templates
from alphatune.results.alpha import alpha_text
from alphatune.results.tune import Level, Tuned
from alphatune.settings.naming import as_options

#: a setting as the library's messages name it, `batch_size=8`
_SETTING = re.compile(r"(`[a-z_]+(?:=[\w.:,-]+)?`)")


def render_markdown(document: Tuned) -> str:
    """report.md: the summary, the gates, the curve, the provenance."""
    return _render(document, ".", folded=False)


def render_summary(document: Tuned, folder: str) -> str:
    """The same for the page of a CI run, where what is below the gates is folded and figures cannot be shown.

    Args:
        folder: the tuned folder, as commands are to name it.
    """
    return _render(document, folder, folded=True)


def _render(document: Tuned, folder: str, *, folded: bool) -> str:
    environment = open_templates(html=False)
    environment.filters["escape"] = escape
    environment.globals.update(level_name=level_name, alpha_text=alpha_text, value_text=value_text)
    name = "score_report.md.j2" if document.metric == "score" else "report.md.j2"
    fields = asdict(document)
    metrics = shown(document.metric, STANDARD)
    known = {metric: known_best(document, metric) for metric in metrics}
    front = front_table(document)
    return environment.get_template(name).render(
        **fields | {"best": known} | shift_tables(document),
        other="" if document.metric in (*STANDARD, SCORE) else document.metric,
        title=f"alphatune: {document.model.source}",
        front=front,
        front_drawn=front is not None and len(front.rows) > 1,
        here=folder == ".",
        folded=folded,
        summary=summarise_tune(document, folder),
        name=partial(metric_name, document),
        method=method_sentence(document),
        companions=companions_sentence(document.batch_statistics),
        averages=averages_sentences(document),
    )


def level_name(level: Level, baseline_alpha: float) -> str:
    """A granularity as a row of a table is called."""
    names = {"plain": f"{baseline_alpha:g} (plain)", "global": "one for all layers"}
    return names.get(level.name, f"one a {level.name}")


def escape(text: object) -> str:
    """Text that Markdown and HTML show as it is, whatever a file or class is called; `settings` are code, as options."""
    parts = _SETTING.split(" ".join(str(text).split()))
    return "".join(_option(part) if i % 2 else _escape(part) for i, part in enumerate(parts))


def _option(setting: str) -> str:
    return f"`{as_options(setting).strip('`')}`"


def _escape(shown: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        shown = shown.replace(character, entity)
    for character in "\\`*_[]|":
        shown = shown.replace(character, "\\" + character)
    return shown
