"""Inspect a model: every norm layer, whether it can be patched, and its health."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import torch

from alphatune.errors import ConfigurationError, UnsupportedModelError
from alphatune.evaluation import Progress
from alphatune.jobs.averages import open_images
from alphatune.jobs.describe import describe_data, describe_source
from alphatune.jobs.opening import OpenedModel, open_model
from alphatune.jobs.settings import InspectSettings
from alphatune.models.health import examine
from alphatune.models.measurement import measure_moments
from alphatune.models.outputs import check_outputs_, find_reading_
from alphatune.models.paths import trace_paths
from alphatune.models.probe import EXAMPLES, watch_layers
from alphatune.models.staleness import STALE, distances, look_stale
from alphatune.norms.survey import survey
from alphatune.reading import SeveralOutputsError


def run_inspect(
    settings: InspectSettings, progress: Progress | None = None, *, paths: bool = False
) -> dict[str, Any]:
    """List every norm layer of any model: what it is, what it sees, whether it can be patched, its health.

    With data also how far its moving averages are from what it sees of them (staleness.py). With
    ``paths`` also whether it has a norm-free path to the output, as ``trace_paths`` finds it.
    """
    # Without data only the size of an image matters.
    opened = open_model(settings, images=settings.data is not None or settings.input_size is None)
    output, seen, watched = watch_layers(opened.module, opened.preprocessing.input_size, opened.device)
    classes, notes = _outputs(settings, opened, output)
    health = {h.layer: h for h in examine(opened.module)}
    rows = []
    for layer in watched.account(survey(opened.module)):
        shape, state = seen.get(layer.name), health.get(layer.name)
        row = asdict(layer)
        row["aliases"] = list(layer.aliases)
        row["spatial"] = None if shape is None else list(shape.spatial)
        row["positions"] = None if shape is None else shape.positions
        row["remark"] = "" if shape is None else shape.remark
        if shape is None and layer.status == "skipped" and layer.name in watched.inactive:
            row["remark"] = watched.inactive[layer.name]
        row["health"] = "" if state is None else state.problem or state.remark
        row["healthy"] = state is None or not state.problem
        row["distance"] = row["stale"] = None
        rows.append(row)
    document: dict[str, Any] = {
        "schema": 1,
        "command": "inspect",
        "model": {**describe_source(opened), "num_classes": classes},
        "preprocessing": opened.preprocessing.to_dict(),
        "layers": rows,
        "summary": dict(Counter(row["status"] for row in rows)),
        "warnings": [*opened.warnings, *notes],
    }
    document["data"] = _measure(settings, opened, document, progress)
    if paths:
        traced = trace_paths(opened.module, opened.preprocessing.input_size, opened.device)
        for row in rows:
            row["free_path"] = traced.free.get(row["name"])
        document["paths"] = {"with": traced.count(True), "of": len(rows), "unknown": traced.count(None)}
        if traced.remark:
            document["warnings"].append(f"paths to the output are unknown: {traced.remark}")
    return document


def _outputs(
    settings: InspectSettings, opened: OpenedModel, output: object
) -> tuple[int | None, tuple[str, ...]]:
    """The number of classes of a classifier, None of another model, and what is worth saying of its outputs."""
    generator = torch.Generator().manual_seed(settings.seed)
    try:
        classes, notes = find_reading_(opened.module, output, EXAMPLES, wanted=settings.logits)
        noise = torch.randn(4, *opened.preprocessing.input_size, generator=generator)
        return classes, notes + check_outputs_(opened.module, noise.to(opened.device))
    except (UnsupportedModelError, SeveralOutputsError) as error:
        return None, (str(error),)
    except ConfigurationError:
        if settings.logits is not None:
            raise
        return None, ()


def _measure(
    settings: InspectSettings, opened: OpenedModel, document: dict[str, Any], progress: Progress | None
) -> dict[str, Any] | None:
    """Fill in each layer's distance between stored and measured moments, and warn of large ones."""
    if settings.data is None:
        for name in ("split", "limit", "data_root", "input_key", "target_key"):
            if getattr(settings, name) is not None:
                raise ConfigurationError(f"--{name.replace('_', '-')} needs --data DATA")
        return None
    batches = open_images(
        settings,
        settings.data,
        opened,
        split=settings.split,
        limit=settings.limit,
        split_seed=settings.split_seed,
    )
    found = distances(opened.module, measure_moments(opened.module, batches, progress=progress))
    for row in document["layers"]:
        if (value := found.get(row["name"])) is not None:
            row["distance"] = value if math.isfinite(value) else None
            row["stale"] = not value < STALE
    stale = [row for row in document["layers"] if row["stale"]]
    if look_stale(found):
        first = stale[0]
        shown = "not finite" if first["distance"] is None else f"{first['distance']:.3g}"
        document["warnings"].append(
            f"the stored averages of {len(stale)} of {len(found)} norm layers look stale on these images, first "
            f"{first['name'] or '(root)'} (distance {shown}, from {STALE:g}): the images differ from those of "
            "training, or the averages do not belong to the weights; tune --recalibrate measures them anew"
        )
    return {**describe_data(batches), "threshold": STALE}
