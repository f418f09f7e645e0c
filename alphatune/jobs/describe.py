"""Model, data and environment as they appear in a result."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, cast

from torch import nn

from alphatune.data.examples import Unreadable
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing as Transform
from alphatune.evaluation.reading import kept_reading
from alphatune.jobs.opening import DTYPES, OpenedModel, Prepared
from alphatune.jobs.training_job import TrainingJob
from alphatune.models.probe import Probe
from alphatune.norms.patching import get_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.reports.result import environment
from alphatune.results.alpha import ModelAlpha, common_alpha
from alphatune.results.data import Data, MeasuredData, Preprocessing, SkippedImage
from alphatune.results.environment import RunEnvironment, TrainEnvironment
from alphatune.results.model import LayerRemark, Model, Output, PlannedModel, SkippedLayer, Source
from alphatune.results.plan import ImagesPlan, TrainPlan
from alphatune.results.training import Recipe, TrainData, TrainedModel, TrainedNorm
from alphatune.results.values import ModelKind
from alphatune.settings import EvaluateSettings
from alphatune.training.optimizers import parameter_groups
from alphatune.tuning.remarks import remark_on_inactive


def describe_source(opened: OpenedModel) -> Source:
    """Where architecture and weights came from."""
    source, checkpoint, reading = opened.source, opened.checkpoint, kept_reading(opened.module)
    return Source(
        source=source.spec,
        kind=cast("ModelKind", source.kind),
        model_kwargs=source.model_kwargs,
        checkpoint=checkpoint.path if checkpoint else source.weights,
        checkpoint_sha256=checkpoint.sha256 if checkpoint else "",
        weights_key=checkpoint.weights_key if checkpoint else "",
        unsafe_pickle=bool(checkpoint and checkpoint.unsafe_pickle),
        output=Output(path=reading.path, probabilities=reading.probabilities, single=reading.single)
        if reading
        else None,
    )


def describe_model(
    opened: OpenedModel,
    layers: tuple[NormLayer, ...],
    seen: Probe,
    patched: tuple[str, ...],
    too_small: Collection[str] = (),
) -> Model:
    """The source, and what became of each norm layer."""
    skipped = []
    for layer in layers:
        if layer.name in patched:
            continue
        reason = layer.reason
        if layer.name in too_small:
            reason = "fewer positions an example than `min_positions`"
        elif layer.status == "patchable":
            reason = f"left as plain {'BatchNorm' if 'Batch' in layer.kind else layer.kind}"
        skipped.append(SkippedLayer(name=layer.name, kind=layer.kind, reason=reason, status=layer.status))
    return describe_source(opened).extended(
        Model,
        norm_layers=len(layers),
        patched=patched,
        skipped=tuple(skipped),
        remarks=tuple(
            LayerRemark(name=name, remark=seen.layers[name].remark)
            for name in patched
            if name in seen.layers and seen.layers[name].remark
        ),
    )


def describe_data(batches: Batches, skipped: Sequence[Unreadable] = ()) -> Data:
    """Which examples, how they were prepared, and which could not be read."""
    examples = batches.examples
    return Data(
        source=examples.source,
        root=examples.root,
        split=examples.split,
        n=len(examples),
        classes=len(examples.classes),
        class_map=examples.class_map,
        labels=examples.labels,
        classes_only_present=examples.outputs is not None,
        preprocessing=describe_preprocessing(batches.preprocessing),
        decoder=examples.decoder,
        skipped=tuple(SkippedImage(name=image.name, reason=image.reason) for image in skipped),
    )


def describe_measured(batches: Batches) -> MeasuredData:
    """Images that moving averages are measured on."""
    examples = batches.examples
    return MeasuredData(
        source=examples.source,
        root=examples.root,
        split=examples.split,
        n=len(examples),
        batch_size=batches.batch_size,
        decoder=examples.decoder,
    )


def describe_preprocessing(transform: Transform) -> Preprocessing:
    return Preprocessing(**asdict(transform))


def describe_env(settings: EvaluateSettings, prepared: Prepared) -> RunEnvironment:
    return environment(prepared.opened.device, DTYPES[settings.dtype]).extended(
        RunEnvironment,
        batch_size=prepared.batches.batch_size,
        workers=prepared.batches.workers,
        cache=prepared.batches.cache,
        seed=settings.seed,
    )


def model_alpha(module: nn.Module) -> ModelAlpha:
    """The α of a model as a result says it."""
    return common_alpha(get_alpha(module))


def describe_plan(
    settings: EvaluateSettings,
    prepared: Prepared,
    patched: tuple[str, ...],
    alphas: tuple[float, ...],
    **averages: Any,
) -> ImagesPlan:
    """What would be done, as far as it is known before a pass over the data.

    Args:
        averages: what would be measured, of a tune.
    """
    layers = prepared.probe.watched.account(survey(prepared.opened.module))
    inactive = {layer.name for layer in layers if layer.status == "inactive"}
    acting = tuple(name for name in patched if name not in inactive)
    notes = remark_on_inactive(layers, len(acting)) if patched else []
    return ImagesPlan(
        model=describe_source(prepared.opened).extended(
            PlannedModel, norm_layers=len(layers), patched=acting
        ),
        data=describe_data(prepared.batches, prepared.skipped),
        env=describe_env(settings, prepared),
        alphas=alphas,
        settings=asdict(settings),
        warnings=(*prepared.warnings, *notes),
        **averages,
    )


def describe_training(job: TrainingJob) -> TrainPlan:
    """Model, data, environment and settings of a training run."""
    source, settings, batches = job.started.source, job.settings, job.batches
    groups = parameter_groups(job.model, job.recipe)
    return TrainPlan(
        model=TrainedModel(
            source=source.spec,
            kind=cast("ModelKind", source.kind),
            model_kwargs=source.model_kwargs,
            checkpoint=settings.checkpoint or source.weights,
            new_weights=tuple(job.started.loaded.new) if job.started.loaded else (),
            parameters=sum(p.numel() for p in job.model.parameters()),
            norm_layers=len(survey(job.model)),
            norm=TrainedNorm(**asdict(job.norm)),
        ),
        data=TrainData(
            source=settings.data,
            classes=len(batches.examples.classes),
            train=len(batches.examples),
            validation=len(job.splits.validation),
            test=len(job.splits.test) if job.splits.test is not None else 0,
            validation_split=job.splits.validation.split,
            val_fraction=job.splits.val_fraction,
            split_seed=settings.split_seed,
            class_map=settings.class_map or "",
            labels=job.splits.train.labels,
            preprocessing=describe_preprocessing(job.preprocessing),
            augmentation=batches.augmentation,
            decoder=batches.examples.decoder,
        ),
        env=environment(batches.device, job.recipe.dtype).extended(
            TrainEnvironment,
            batch_size=settings.batch_size,
            steps_per_epoch=batches.steps_per_epoch,
            processes=job.world.size,
            workers=batches.workers,
            seed=settings.seed,
            decay={g["name"]: g["decay_to_one"] or g["weight_decay"] for g in groups},
        ),
        settings=asdict(settings),
        warnings=tuple(job.warnings),
    )


def describe_recipe(job: TrainingJob) -> Recipe:
    """The hyperparameters as they appear in a result."""
    settings = job.settings
    own = {
        name: getattr(settings, name) for name in ("dtype", "batch_size", "classes_per_batch", "batch_order")
    }
    return Recipe(**asdict(job.recipe) | own)
