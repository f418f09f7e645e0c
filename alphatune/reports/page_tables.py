"""Rows of the report's tables: where everything came from, and what became of each norm layer."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from statistics import median
from typing import Any

from alphatune.reports.summary import metric_name
from alphatune.results.alpha import LayerAlpha
from alphatune.results.data import Data, ScoredData
from alphatune.results.tune import ScoreTuneDocument, Search, Tuned
from alphatune.settings import TuneSettings
from alphatune.settings.option import without_effect

#: files whose hashes the page cannot know, or that tell of the run
_OWN = ("report.html", "report.md", "run.toml", "result.json")


def repeatable_command(command_line: str) -> str:
    """The command line without what belongs to one run, an option a line."""
    lines: list[list[str]] = [[]]
    for word in shlex.split(command_line):
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    free = without_effect(TuneSettings)
    lines = [line for line in lines if line and line[0].removeprefix("--").replace("-", "_") not in free]
    return " \\\n    ".join(shlex.join(line) for line in lines)


def artifact_rows(document: Tuned) -> list[tuple[str, str]]:
    """Path and hash of the files that the page does not belong to."""
    return [
        (a.path, a.sha256)
        for a in document.artifacts
        if a.path not in _OWN and not a.path.startswith("figures/")
    ]


def layer_rows(document: Tuned) -> list[dict[str, str]]:
    """Name, α and remark of each norm layer; those that were left alone last, with the reason."""
    model, alpha = document.model, document.chosen.alpha
    remarks = {layer.name: layer.remark for layer in model.remarks}
    rows = []
    for name in model.patched:
        own = alpha.get(name, document.baseline_alpha) if isinstance(alpha, dict) else alpha
        rows.append({"name": name, "alpha": _alpha(own), "note": remarks.get(name, "")})
    for layer in model.skipped:
        rows.append({"name": layer.name, "alpha": "–", "note": f"{layer.kind}: {layer.reason}"})
    return rows


def provenance_rows(document: Tuned) -> list[tuple[str, str]]:
    """What a figure of the page depends on, by name."""
    model, data, env = document.model, document.data, document.env
    rows = [
        ("model", f"{model.source} ({model.kind})"),
        ("arguments", _pairs(model.model_kwargs.items())),
        ("checkpoint", model.checkpoint),
        ("its SHA-256", model.checkpoint_sha256),
        ("weights from", model.weights_key),
        (
            "unpickled",
            "yes: reading the checkpoint may have run code in it" if model.unsafe_pickle else "",
        ),
        ("norm layers", f"{model.norm_layers}, of which {len(model.patched)} take an α"),
        ("data", f"{data.source}, {data.n} examples"),
        *_prepared(data),
        ("score", document.score.source if isinstance(document, ScoreTuneDocument) else ""),
        ("metric, accepted if", f"{metric_name(document, document.metric)}, {document.accept}"),
        ("seed", str(env.seed)),
        ("α looked for", _search(document.search)),
        (
            "cost of the tune",
            f"{document.passes:.3g} forward passes of the data in {document.seconds:.1f} s"
            if document.passes
            else "",
        ),
        ("run on", f"{env.device} ({env.device_name}), {env.dtype}, {env.kernel} kernel"),
        ("batch size, processes", f"{env.batch_size}, {env.processes}"),
        ("platform", env.platform),
        (
            "versions",
            ", ".join(f"{name} {env[name]}" for name in ("python", "torch", "torchvision", "timm", "numpy")),
        ),
        ("alphatune", document.alphatune),
    ]
    return [(name, text) for name, text in rows if text]


def _prepared(data: Data | ScoredData) -> list[tuple[str, str]]:
    """How images were found and prepared; nothing of what a loader of the user's own gives."""
    if isinstance(data, ScoredData):
        return []
    return [
        ("split", data.split),
        ("classes", str(data.classes)),
        ("scored", "the outputs of these classes only" if data.classes_only_present else ""),
        ("class map", data.class_map),
        ("labels", data.labels),
        ("preprocessing", _pairs(data.preprocessing.items())),
        ("decoder", data.decoder),
    ]


def _alpha(alpha: LayerAlpha) -> str:
    if not isinstance(alpha, list):
        return f"{alpha:g}"
    return f"{min(alpha):g} to {max(alpha):g}, median {median(alpha):g} ({len(alpha)} channels)"


def _pairs(values: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values)


def _search(search: Search | None) -> str:
    if search is None:
        return "at the values of the curve, each measured on all examples"
    return (
        f"from {search.range[0]:g} to {search.range[1]:g}, interpolated from "
        f"{', '.join(f'{a:g}' for a in search.nodes)}; {search.choosing} examples chose, "
        f"{search.confirming} confirmed"
    )
