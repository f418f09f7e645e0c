"""Inspect a model: every norm layer, whether it can be patched, and its health."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict

import torch
from msgspec import UNSET

from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.core.progress import ShowProgress, as_meter
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import PARTS
from alphatune.evaluation.reading import SeveralOutputsError
from alphatune.jobs.averages import open_images
from alphatune.jobs.describe import describe_data, describe_preprocessing, describe_source
from alphatune.jobs.opening import OpenedModel, open_model
from alphatune.jobs.preparation import Say, announce
from alphatune.models.measurement import measure_moments
from alphatune.models.outputs import check_outputs_, find_reading_
from alphatune.models.paths import trace_paths
from alphatune.models.probe import EXAMPLES, watch_layers
from alphatune.models.running_stats_check import examine
from alphatune.models.stats_drift import STALE, distances, look_stale
from alphatune.norms.survey import survey
from alphatune.results.inspection import (
    InspectDocument,
    InspectedData,
    InspectedLayer,
    InspectedModel,
    Paths,
)
from alphatune.settings import InspectSettings


def run_inspect(
    settings: InspectSettings,
    progress: ShowProgress = None,
    *,
    paths: bool = False,
    say: Say | None = None,
) -> InspectDocument:
    """List every norm layer of any model: what it is, what it sees, whether it can be patched, its health.

    With data also how far its moving averages are from what it sees of them (stats_drift.py). With
    ``paths`` also whether it has a norm-free path to the output, as ``trace_paths`` finds it.
    ``say`` is told how the images are prepared, before they are read.
    """
    opened = open_model(settings)
    batches, announcement = _opened_images(settings, opened)
    output, seen, watched = watch_layers(opened.module, opened.preprocessing.input_size, opened.device)
    classes, notes = _outputs(settings, opened, output)
    health = {h.layer: h for h in examine(opened.module)}
    announce(announcement, say)
    found, data = _measured(opened, batches, progress)
    traced = trace_paths(opened.module, opened.preprocessing.input_size, opened.device) if paths else None
    rows = []
    for layer in watched.account(survey(opened.module)):
        shape, state, distance = seen.get(layer.name), health.get(layer.name), found.get(layer.name)
        remark = "" if shape is None else shape.remark
        if shape is None and layer.status == "skipped" and layer.name in watched.inactive:
            remark = watched.inactive[layer.name]
        rows.append(
            InspectedLayer(
                **asdict(layer),
                spatial=None if shape is None else shape.spatial,
                positions=None if shape is None else shape.positions,
                remark=remark,
                health="" if state is None else state.problem or state.remark,
                healthy=state is None or not state.problem,
                distance=distance if distance is not None and math.isfinite(distance) else None,
                stale=None if distance is None else not distance < STALE,
                free_path=traced.free.get(layer.name) if traced else UNSET,
            )
        )
    assumed = opened.preparation.warnings(
        PARTS if batches else ("input_size",)
    )  # without images their size matters
    warnings = [*opened.warnings, *assumed, *notes, *_stale(rows, found)]
    if traced and traced.remark:
        warnings.append(f"paths to the output are unknown: {traced.remark}")
    return InspectDocument(
        model=describe_source(opened).extended(InspectedModel, num_classes=classes),
        preprocessing=describe_preprocessing(opened.preprocessing),
        layers=tuple(rows),
        summary=dict(Counter(row.status for row in rows)),
        warnings=tuple(warnings),
        data=data,
        paths=Paths(found=traced.count(True), of=len(rows), unknown=traced.count(None)) if traced else UNSET,
    )


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


def _opened_images(settings: InspectSettings, opened: OpenedModel) -> tuple[Batches | None, tuple[str, ...]]:
    """The images to measure on, if any are named, and what to announce of how they are prepared."""
    if settings.data is None:
        for name in ("split", "limit", "data_root", "input_key", "target_key"):
            if getattr(settings, name) is not None:
                raise ConfigurationError(f"`{name}` needs `data=DATA`")
        return None, ()
    batches = open_images(
        settings,
        settings.data,
        opened,
        split=settings.split,
        limit=settings.limit,
        split_seed=settings.split_seed,
    )
    return batches, opened.preparation.check(batches.examples)


def _measured(
    opened: OpenedModel, batches: Batches | None, progress: ShowProgress
) -> tuple[dict[str, float], InspectedData | None]:
    """Each layer's distance between stored and measured moments, and the data they were measured on."""
    if batches is None:
        return {}, None
    found = distances(opened.module, measure_moments(opened.module, batches, progress=as_meter(progress)))
    return found, describe_data(batches).extended(InspectedData, threshold=STALE)


def _stale(rows: list[InspectedLayer], found: dict[str, float]) -> list[str]:
    """A warning where many distances are large."""
    stale = [row for row in rows if row.stale]
    if not look_stale(found):
        return []
    first = stale[0]
    shown = "not finite" if first.distance is None else f"{first.distance:.3g}"
    return [
        f"the stored averages of {len(stale)} of {len(found)} norm layers look stale on these images, first "
        f"{first.name or '(root)'} (distance {shown}, from {STALE:g}): the images differ from those of "
        "training, or the averages do not belong to the weights; tune with `recalibrate` measures them anew"
    ]
