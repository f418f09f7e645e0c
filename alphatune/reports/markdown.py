"""The result as Markdown, for people and for the summary of a CI run."""

from __future__ import annotations

from typing import Any

import jinja2

LABELS = {"top1": "top-1", "top5": "top-5", "loss": "loss (nats)", "ece": "ECE"}


def render_markdown(document: dict[str, Any]) -> str:
    """report.md: the decision in a sentence, the curve, the gain, the provenance."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alphatune", "reports/templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML: user-supplied text goes through `escape`
    )
    environment.filters["escape"] = escape
    template = environment.get_template("report.md.j2")
    return template.render(**document, headline=headline(document), labels=LABELS)


def headline(document: dict[str, Any]) -> str:
    """The decision in one sentence."""
    chosen, baseline = document["chosen"], document["baseline"]
    if document["decision"]["keep_baseline"]:
        plain = (
            "α = 0 (plain BatchNorm)"
            if chosen["alpha"] == 0
            else f"α = {chosen['alpha']:g} (plain GroupNorm)"
        )
        return f"Keep {plain}: {document['decision']['reason']}."
    after = chosen["metrics"]
    return (
        f"Use α = {chosen['alpha']:g}: top-1 {baseline['top1']:.4f} → {after['top1']:.4f}, "
        f"loss {baseline['loss']:.4f} → {after['loss']:.4f}; {document['decision']['reason']}."
    )


def escape(text: object) -> str:
    """Text that Markdown and HTML show as it is, whatever a file or class is called."""
    shown = " ".join(str(text).split())
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        shown = shown.replace(character, entity)
    for character in "\\`*_[]|":
        shown = shown.replace(character, "\\" + character)
    return shown
