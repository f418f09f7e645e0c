"""Inspect a model: every norm layer, whether it can be patched, and its health."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from alphatune.jobs.describe import describe_source
from alphatune.jobs.opening import open_model
from alphatune.jobs.settings import ModelSettings
from alphatune.models.health import examine
from alphatune.models.paths import trace_paths
from alphatune.models.probe import probe
from alphatune.norms.survey import survey


def run_inspect(settings: ModelSettings, *, paths: bool = False) -> dict[str, Any]:
    """List every norm layer: what it is, what it sees, whether it can be patched, its health.

    With ``paths`` also whether it has a norm-free path to the output, as ``trace_paths`` finds it.
    """
    opened = open_model(settings)
    seen = probe(opened.module, opened.preprocessing.input_size, opened.device)
    health = {h.layer: h for h in examine(opened.module)}
    rows = []
    for layer in survey(opened.module):
        shape, state = seen.layers.get(layer.name), health.get(layer.name)
        row = asdict(layer)
        row["aliases"] = list(layer.aliases)
        row["spatial"] = None if shape is None else list(shape.spatial)
        row["positions"] = None if shape is None else shape.positions
        row["remark"] = "not reached by the forward pass" if shape is None else shape.remark
        row["health"] = "" if state is None else state.problem or state.remark
        row["healthy"] = state is None or not state.problem
        rows.append(row)
    document: dict[str, Any] = {
        "schema": 1,
        "command": "inspect",
        "model": {**describe_source(opened), "num_classes": seen.num_classes},
        "preprocessing": opened.preprocessing.to_dict(),
        "layers": rows,
        "summary": dict(Counter(row["status"] for row in rows)),
        "warnings": [] if settings.input_size else list(opened.warnings),
    }
    if paths:
        traced = trace_paths(opened.module, opened.preprocessing.input_size, opened.device)
        for row in rows:
            row["free_path"] = traced.free[row["name"]]
        document["paths"] = {"with": traced.count(True), "of": len(rows), "unknown": traced.count(None)}
        if traced.remark:
            document["warnings"].append(f"paths to the output are unknown: {traced.remark}")
    return document
