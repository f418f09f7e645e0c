"""The result as Markdown, for people and for the summary of a CI run."""

from __future__ import annotations

import re

from msgspec.structs import asdict

from alphatune.core.metrics import INFO, METRICS
from alphatune.reports.averages import averages_sentences
from alphatune.reports.batch_statistics import companions_sentence
from alphatune.reports.templating import open_templates
from alphatune.results.alpha import alpha_text
from alphatune.results.tune import Level, ScoreTuneDocument, Tuned, TuneDocument

#: a setting as the library's messages name it, `batch_size=8`
_SETTING = re.compile(r"(`[a-z_]+(?:=[\w.:,-]+)?`)")
#: of a classifier, in the order of a table
LABELS: dict[str, str] = {metric: INFO[metric].label for metric in METRICS}


def render_markdown(document: Tuned) -> str:
    """report.md: the decision in a sentence, the curve, the gain, the provenance."""
    environment = open_templates(html=False)
    environment.filters["escape"] = escape
    environment.globals.update(level_name=level_name, alpha_text=alpha_text)
    name = "score_report.md.j2" if document.metric == "score" else "report.md.j2"
    return environment.get_template(name).render(
        **asdict(document),
        headline=headline(document),
        beyond=beyond(document),
        labels=LABELS,
        companions=companions_sentence(document.batch_statistics),
        averages=averages_sentences(document),
    )


def headline(document: Tuned) -> str:
    """The decision in one sentence."""
    if isinstance(document, ScoreTuneDocument):
        return _score_headline(document)
    chosen, baseline = document.chosen, document.baseline
    reason, temperature = document.decision.reason, chosen.temperature
    after = chosen.metrics
    change = f"top-1 {baseline.top1:.4f} → {after.top1:.4f}, loss {baseline.loss:.4f} → {after.loss:.4f}"
    if document.decision.keep_baseline:
        plain = f"α = {chosen.alpha:g} (plain {_plain_kind(document)})"
        if temperature == 1:
            return f"Keep {plain}: {reason}."
        return f"Keep {plain}, with temperature {temperature:g}: {change}; {reason}."
    tempered = "" if temperature == 1 else f" and temperature {temperature:g}"
    return f"Use α = {alpha_text(chosen.alpha)}{tempered}: {change}; {reason}."


def _plain_kind(document: TuneDocument) -> str:
    """What the unpatched model's norm layers are."""
    if document.chosen.alpha == 0:
        return "BatchNorm"
    return " and ".join(document.calibration.kinds) if document.calibration else "GroupNorm"


def _score_headline(document: ScoreTuneDocument) -> str:
    before, after, reason = document.baseline, document.chosen, document.decision.reason
    if document.decision.keep_baseline:
        kind = "BatchNorm" if after.alpha == 0 else "GroupNorm"
        return f"Keep α = {after.alpha:g} (plain {kind}): {reason}."
    change = f"{document.score.name} {before.score:.6g} → {after.metrics.score:.6g}"
    return f"Use α = {after.alpha:g}: {change}; {reason}."


def beyond(document: Tuned) -> str:
    """What ``gain`` is relative to, where that is not the plain model as it is."""
    refinement = document.refinement
    return " beyond a temperature" if refinement and refinement.with_temperature else ""


def level_name(level: Level, baseline_alpha: float) -> str:
    """A granularity as a row of a table is called."""
    names = {"plain": f"{baseline_alpha:g} (plain)", "global": "one for all layers"}
    return names.get(level.name, f"one a {level.name}")


def escape(text: object) -> str:
    """Text that Markdown and HTML show as it is, whatever a file or class is called; `settings` are code."""
    parts = _SETTING.split(" ".join(str(text).split()))
    return "".join(part if i % 2 else _escape(part) for i, part in enumerate(parts))


def _escape(shown: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        shown = shown.replace(character, entity)
    for character in "\\`*_[]|":
        shown = shown.replace(character, "\\" + character)
    return shown
