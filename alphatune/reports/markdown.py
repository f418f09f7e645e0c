"""The result as Markdown, for people and for the summary of a CI run."""

from __future__ import annotations

from typing import Any

from alphatune.reports.averages import averages_sentences
from alphatune.reports.batch_statistics import companions_sentence
from alphatune.reports.templating import open_templates

LABELS = {"top1": "top-1", "top5": "top-5", "loss": "loss (nats)", "ece": "ECE"}


def render_markdown(document: dict[str, Any]) -> str:
    """report.md: the decision in a sentence, the curve, the gain, the provenance."""
    environment = open_templates(html=False)
    environment.filters["escape"] = escape
    environment.globals.update(level_name=level_name, alpha_text=alpha_text)
    name = "score_report.md.j2" if document["metric"] == "score" else "report.md.j2"
    compared = document["batch_statistics"]
    return environment.get_template(name).render(
        **document,
        headline=headline(document),
        beyond=beyond(document),
        labels=LABELS,
        companions=companions_sentence(compared) if compared else "",
        averages=averages_sentences(document) if "calibration" in document else [],
    )


def headline(document: dict[str, Any]) -> str:
    """The decision in one sentence."""
    if document["metric"] == "score":
        return _score_headline(document)
    chosen, baseline = document["chosen"], document["baseline"]
    reason, temperature = document["decision"]["reason"], chosen["temperature"]
    after = chosen["metrics"]
    change = f"top-1 {baseline['top1']:.4f} → {after['top1']:.4f}, loss {baseline['loss']:.4f} → {after['loss']:.4f}"
    if document["decision"]["keep_baseline"]:
        plain = f"α = {chosen['alpha']:g} (plain {_plain_kind(document)})"
        if temperature == 1:
            return f"Keep {plain}: {reason}."
        return f"Keep {plain}, with temperature {temperature:g}: {change}; {reason}."
    tempered = "" if temperature == 1 else f" and temperature {temperature:g}"
    return f"Use α = {alpha_text(chosen['alpha'])}{tempered}: {change}; {reason}."


def _plain_kind(document: dict[str, Any]) -> str:
    """What the unpatched model's norm layers are."""
    if document["chosen"]["alpha"] == 0:
        return "BatchNorm"
    return " and ".join(document["calibration"]["kinds"]) if document["calibration"] else "GroupNorm"


def _score_headline(document: dict[str, Any]) -> str:
    before, after, reason = document["baseline"], document["chosen"], document["decision"]["reason"]
    if document["decision"]["keep_baseline"]:
        kind = "BatchNorm" if after["alpha"] == 0 else "GroupNorm"
        return f"Keep α = {after['alpha']:g} (plain {kind}): {reason}."
    change = f"{document['score']['name']} {before['score']:.6g} → {after['metrics']['score']:.6g}"
    return f"Use α = {after['alpha']:g}: {change}; {reason}."


def alpha_text(alpha: Any) -> str:
    """α in a few words: a number, or the range of those of the layers."""
    if not isinstance(alpha, dict):
        return f"{alpha:g}"
    numbers = [v for value in alpha.values() for v in (value if isinstance(value, list) else [value])]
    kind = "channel" if len(numbers) > len(alpha) else "layer"
    return f"{min(numbers):g} to {max(numbers):g} by {kind}"


def beyond(document: dict[str, Any]) -> str:
    """What ``gain`` is relative to, where that is not the plain model as it is."""
    refinement = document.get("refinement")
    return " beyond a temperature" if refinement and refinement["with_temperature"] else ""


def level_name(level: dict[str, Any], baseline_alpha: float) -> str:
    """A granularity as a row of a table is called."""
    names = {"plain": f"{baseline_alpha:g} (plain)", "global": "one for all layers"}
    return names.get(level["level"], f"one a {level['level']}")


def escape(text: object) -> str:
    """Text that Markdown and HTML show as it is, whatever a file or class is called."""
    shown = " ".join(str(text).split())
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        shown = shown.replace(character, entity)
    for character in "\\`*_[]|":
        shown = shown.replace(character, "\\" + character)
    return shown
