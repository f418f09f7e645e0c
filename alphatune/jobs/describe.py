"""Model, data and environment as they appear in a result."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from alphatune.data.examples import Unreadable
from alphatune.data.loading import Batches
from alphatune.jobs.opening import DTYPES, OpenedModel, Prepared
from alphatune.jobs.settings import EvaluateSettings
from alphatune.jobs.training_job import TrainingJob
from alphatune.models.probe import Probe
from alphatune.norms.patching import get_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.reading import kept_reading, reading_to_dict
from alphatune.reports.result import environment
from alphatune.training.optimizers import parameter_groups
from alphatune.tuning.remarks import remark_on_inactive


def describe_source(opened: OpenedModel) -> dict[str, Any]:
    """Where architecture and weights came from."""
    source, checkpoint = opened.source, opened.checkpoint
    return {
        "source": source.spec,
        "kind": source.kind,
        "model_kwargs": source.model_kwargs,
        "checkpoint": checkpoint.path if checkpoint else source.weights,
        "checkpoint_sha256": checkpoint.sha256 if checkpoint else "",
        "weights_key": checkpoint.weights_key if checkpoint else "",
        "unsafe_pickle": bool(checkpoint and checkpoint.unsafe_pickle),
        "output": reading_to_dict(kept_reading(opened.module)),
    }


def describe_model(
    opened: OpenedModel,
    layers: tuple[NormLayer, ...],
    seen: Probe,
    patched: tuple[str, ...],
    too_small: Collection[str] = (),
) -> dict[str, Any]:
    """The source, and what became of each norm layer."""
    skipped = []
    for layer in layers:
        if layer.name in patched:
            continue
        reason = layer.reason
        if layer.name in too_small:
            reason = "fewer positions an example than --min-positions"
        elif layer.status == "patchable":
            reason = f"left as plain {'BatchNorm' if 'Batch' in layer.kind else layer.kind}"
        skipped.append({"name": layer.name, "kind": layer.kind, "reason": reason, "status": layer.status})
    return {
        **describe_source(opened),
        "norm_layers": len(layers),
        "patched": list(patched),
        "skipped": skipped,
        "remarks": [
            {"name": name, "remark": seen.layers[name].remark}
            for name in patched
            if name in seen.layers and seen.layers[name].remark
        ],
    }


def describe_data(batches: Batches, skipped: Sequence[Unreadable] = ()) -> dict[str, Any]:
    """Which examples, how they were prepared, and which could not be read."""
    examples = batches.examples
    return {
        "source": examples.source,
        "root": examples.root,
        "split": examples.split,
        "n": len(examples),
        "classes": len(examples.classes),
        "class_map": examples.class_map,
        "labels": examples.labels,
        "classes_only_present": examples.outputs is not None,
        "preprocessing": batches.preprocessing.to_dict(),
        "decoder": examples.decoder,
        "skipped": [{"name": image.name, "reason": image.reason} for image in skipped],
    }


def describe_env(settings: EvaluateSettings, prepared: Prepared) -> dict[str, Any]:
    return environment(prepared.opened.device, DTYPES[settings.dtype]) | {
        "batch_size": prepared.batches.batch_size,
        "workers": prepared.batches.workers,
        "cache": prepared.batches.cache,
        "seed": settings.seed,
    }


def common_alpha(module: nn.Module) -> Any:
    values = get_alpha(module)
    distinct = {repr(v) for v in values.values()}
    if not distinct:
        return 0.0
    return next(iter(values.values())) if len(distinct) == 1 else values


def describe_plan(
    settings: EvaluateSettings,
    prepared: Prepared,
    patched: tuple[str, ...],
    alphas: tuple[float, ...],
) -> dict[str, Any]:
    """What would be done, as far as it is known before a pass over the data."""
    layers = prepared.probe.watched.account(survey(prepared.opened.module))
    inactive = {layer.name for layer in layers if layer.status == "inactive"}
    acting = [name for name in patched if name not in inactive]
    notes = remark_on_inactive(layers, len(acting)) if patched else []
    return {
        "schema": 1,
        "command": "dry-run",
        "model": describe_source(prepared.opened) | {"norm_layers": len(layers), "patched": acting},
        "data": describe_data(prepared.batches, prepared.skipped),
        "env": describe_env(settings, prepared),
        "alphas": list(alphas),
        "settings": asdict(settings),
        "warnings": [*prepared.warnings, *notes],
    }


def describe_training(job: TrainingJob) -> dict[str, Any]:
    """Model, data, environment and warnings as they appear in a result."""
    source, settings, batches = job.started.source, job.settings, job.batches
    groups = parameter_groups(job.model, job.recipe)
    return {
        "model": {
            "source": source.spec,
            "kind": source.kind,
            "model_kwargs": source.model_kwargs,
            "checkpoint": settings.checkpoint or source.weights,
            "new_weights": list(job.started.loaded.new) if job.started.loaded else [],
            "parameters": sum(p.numel() for p in job.model.parameters()),
            "norm_layers": len(survey(job.model)),
            "norm": job.norm.to_dict(),
        },
        "data": {
            "source": settings.data,
            "classes": len(batches.examples.classes),
            "train": len(batches.examples),
            "validation": len(job.splits.validation),
            "test": len(job.splits.test) if job.splits.test is not None else 0,
            "validation_split": job.splits.validation.split,
            "val_fraction": job.splits.val_fraction,
            "split_seed": settings.split_seed,
            "class_map": settings.class_map or "",
            "labels": job.splits.train.labels,
            "preprocessing": job.preprocessing.to_dict(),
            "augmentation": batches.augmentation,
            "decoder": batches.examples.decoder,
        },
        "env": environment(batches.device, job.recipe.dtype)
        | {
            "batch_size": settings.batch_size,
            "steps_per_epoch": batches.steps_per_epoch,
            "processes": job.world.size,
            "workers": batches.workers,
            "seed": settings.seed,
            "decay": {g["name"]: g["decay_to_one"] or g["weight_decay"] for g in groups},
        },
        "warnings": list(job.warnings),
    }


def describe_recipe(job: TrainingJob) -> dict[str, Any]:
    """The hyperparameters as they appear in a result."""
    recipe, settings = job.recipe, job.settings
    values = asdict(recipe) | {"dtype": settings.dtype, "milestones": list(recipe.milestones)}
    return values | {
        name: getattr(settings, name) for name in ("batch_size", "classes_per_batch", "batch_order")
    }
