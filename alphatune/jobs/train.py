"""Train a model: from names of things to a folder that ``alphatune tune`` takes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm.layers
import torch
from torch import nn

from alphatune.data.augmentation import Augmentation, resolve_augmentation
from alphatune.data.examples import Examples
from alphatune.data.loading import Batches, automatic_batch_size, automatic_workers
from alphatune.data.preprocessing import SMALL_IMAGES, Preprocessing
from alphatune.data.sampling import Sampling
from alphatune.data.splits import Splits, open_splits
from alphatune.data.training_batches import CachedBatches, DeviceCache, TrainingBatches
from alphatune.errors import ConfigurationError, InputError
from alphatune.evaluation import Metrics, Progress, evaluate, summarise
from alphatune.jobs.opening import (
    DTYPES,
    override_preprocessing,
    require_device,
    resolve_device,
    resolved_paths,
    whole_number,
)
from alphatune.jobs.settings import TrainSettings, input_paths, to_toml
from alphatune.models.bundle import write_model
from alphatune.models.checkpoints import read_checkpoint
from alphatune.models.finetuning import Started, build_for_classes
from alphatune.models.output import check_output, is_bundle, published
from alphatune.models.probe import probe
from alphatune.models.sources import parse_model_kwargs
from alphatune.norms.conversion import Norm, convert_, groups_for
from alphatune.norms.survey import survey
from alphatune.reports.result import environment
from alphatune.reports.tensorboard import open_tensorboard
from alphatune.reports.training import log_frame, train_document, write_training_reports
from alphatune.training.distributed import World, gather, joined, local_device, shard
from alphatune.training.interruption import deferred_signals
from alphatune.training.loop import train
from alphatune.training.optimizers import parameter_groups
from alphatune.training.recipe import Recipe
from alphatune.training.state import TrainingState, load_state_, replace_file, save_state, start

CHECKPOINT, RUN, LOG = "checkpoint.pt", "run.toml", "log.csv"
#: settings that may differ between a run and its continuation
_FREE = (
    "output", "resume", "overwrite", "device", "workers", "eval_batch_size", "checkpoint_minutes", "download",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Everything of a training run, checked and ready."""

    settings: TrainSettings
    recipe: Recipe
    started: Started
    norm: Norm
    preprocessing: Preprocessing
    splits: Splits
    batches: TrainingBatches
    validation: Batches | CachedBatches
    world: World
    warnings: tuple[str, ...]

    @property
    def model(self) -> nn.Module:
        return self.started.source.model

    @property
    def fingerprint(self) -> str:
        """Which examples are trained on, in which order."""
        examples = self.batches.examples
        return hashlib.sha256(examples.indices.tobytes() + examples.targets.tobytes()).hexdigest()


def run_train(
    settings: TrainSettings,
    progress: Progress | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    *,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a model and write it, as a folder that ``alphatune tune`` takes as MODEL.

    Checkpoints go to the output folder while it runs; SIGINT and SIGTERM save
    first and are delivered then.

    Returns:
        The document that result.json holds; with ``dry_run`` the plan.

    Raises:
        AlphatuneError: in one of its kinds; the last checkpoint stays as it is.
    """
    device = local_device(resolve_device(settings.device))
    with joined(device) as world:
        recipe = _recipe(settings)
        output = Path(settings.output)
        if world.first:
            _check_folder(output, settings)
        if settings.resume and is_bundle(output):
            return _finished(output)
        job = _prepare(settings, recipe, device, world)
        if dry_run:
            return _describe(job) | {"command": "dry-run", "settings": asdict(settings)}
        state = start(job.model, recipe, device)
        if settings.resume and (output / CHECKPOINT).is_file():
            load_state_(state, output / CHECKPOINT, job.fingerprint)
        elif world.first:
            _open_folder(output, settings)
        if world.first:
            text = to_toml(resolved_paths(settings))
            replace_file(output / RUN, lambda path: path.write_text(text, encoding="utf-8"))
        _run(job, state, output, progress, on_epoch)
        test = None
        if job.splits.test is not None:
            batches = _evaluation_batches(job.splits.test, job.preprocessing, settings, device)
            test = asdict(_measure(state.evaluated, batches, job))
        document = train_document(
            state.rows,
            **_describe(job),
            recipe=_recipe_document(recipe, settings),
            seconds=state.seconds,
            test=test,
        )
        return _publish(job, state, output, document) if world.first else document


def _run(
    job: Job,
    state: TrainingState,
    output: Path,
    progress: Progress | None,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Train to the end, saving on the way; a signal that came is delivered on leaving."""
    first = job.world.first
    with open_tensorboard(output / "tensorboard", state.step, enabled=first) as tensorboard:

        def save() -> None:
            if first:
                save_state(state, output / CHECKPOINT, job.fingerprint)

        def finished_epoch(row: dict[str, Any]) -> None:
            if first:
                replace_file(output / LOG, lambda path: log_frame(state.rows).to_csv(path, index=False))
                tensorboard(row)
                if on_epoch:
                    on_epoch(row)

        with deferred_signals() as stop:
            train(
                state,
                job.batches,
                job.recipe,
                evaluate=lambda model, watch: _measure(model, job.validation, job, watch),
                save=save,
                save_minutes=job.settings.checkpoint_minutes,
                stop=stop,
                world=job.world,
                progress=progress,
                on_epoch=finished_epoch,
            )


def _measure(
    model: nn.Module, batches: Batches | CachedBatches, job: Job, watch: Progress | None = None
) -> Metrics:
    """Metrics over all examples, each scored once, by whichever process has it."""
    world, dtype = job.world, job.recipe.dtype
    if world.size > 1 and isinstance(batches, Batches):
        batches = shard(batches, world)
        scores = evaluate(model, batches, dtype=dtype) if len(batches) else None
    elif world.first:
        scores = evaluate(model, batches, dtype=dtype, progress=watch)
    else:
        scores = None
    return summarise(gather(scores, world))


def _prepare(settings: TrainSettings, recipe: Recipe, device: torch.device, world: World) -> Job:
    if settings.norm != "batch" and settings.sync_bn:
        raise ConfigurationError(f"--sync-bn is for --norm batch, got --norm {settings.norm}")
    image_mode = (
        "L" if settings.input_size and settings.input_size.replace("x", ",").startswith("1,") else "RGB"
    )
    splits = open_splits(
        settings.data,
        data_root=settings.data_root,
        val_fraction=settings.val_fraction,
        val_data=settings.val_data,
        split_seed=settings.split_seed,
        download=settings.download,
        class_map=settings.class_map,
        image_mode=image_mode,
        input_key=settings.input_key,
        target_key=settings.target_key,
        train_split=settings.train_split,
        split=settings.split,
    )
    examples = splits.train.limit(settings.limit, settings.seed)
    num_classes = max(
        len(examples.classes), *(int(p.targets.max()) + 1 for p in (examples, splits.validation))
    )
    torch.manual_seed(settings.seed)  # of newly made weights
    started, notes = _build(settings, num_classes)
    model = started.source.model
    preprocessing = _preprocessing(settings, started)
    seen = probe(model, preprocessing.input_size, torch.device("cpu"))
    if seen.num_classes != num_classes:
        raise ConfigurationError(
            f"the data has {num_classes} classes, the model {seen.num_classes} outputs",
            "let its factory take num_classes",
        )
    workers = whole_number(settings.workers, "--workers", 0)
    sampling = Sampling(settings.batch_size, settings.seed, settings.classes_per_batch, settings.batch_order)
    batches = TrainingBatches(
        examples,
        preprocessing,
        _augmentation(settings, preprocessing),
        sampling,
        device,
        automatic_workers() if workers is None else workers,
        rank=world.rank,
        world_size=world.size,
    )
    norm = _norm(settings, recipe.epochs * batches.steps_per_epoch)
    notes += _convert(model, norm, settings, world)
    require_device(model, device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    held_out = _evaluation_batches(splits.validation, preprocessing, settings, device)
    validation: Batches | CachedBatches = held_out
    if settings.cache == "device":
        batches = batches.cached()
        validation = CachedBatches(DeviceCache.of(held_out), preprocessing, held_out.batch_size)
    return Job(
        settings, recipe, started, norm, preprocessing, splits, batches, validation, world,
        tuple(dict.fromkeys((*notes, *splits.train.warnings, *splits.validation.warnings))),
    )  # fmt: skip


def _build(settings: TrainSettings, num_classes: int) -> tuple[Started, list[str]]:
    if is_bundle(settings.model):
        raise ConfigurationError(
            f"{settings.model} is a folder that alphatune wrote",
            f"fine-tune its weights: ARCHITECTURE --checkpoint {settings.model}/model.safetensors",
        )
    checkpoint = None
    if settings.checkpoint:
        checkpoint = read_checkpoint(settings.checkpoint, unsafe_pickle=settings.unsafe_pickle)
    started = build_for_classes(
        settings.model,
        num_classes,
        pretrained=settings.pretrained,
        checkpoint=checkpoint,
        model_kwargs=parse_model_kwargs(settings.model_kwargs),
    )
    notes = []
    if checkpoint and checkpoint.unsafe_pickle:
        notes.append(f"{settings.checkpoint} was unpickled without restriction (--unsafe-pickle)")
    return started, notes


def _preprocessing(settings: TrainSettings, started: Started) -> Preprocessing:
    """The model's own, if it was trained before; else the dataset's, else the architecture's."""
    base = started.source.preprocessing or Preprocessing()
    if not (settings.pretrained or settings.checkpoint):
        base = SMALL_IMAGES.get(settings.data.lower(), base)
    return override_preprocessing(base, settings)


def _augmentation(settings: TrainSettings, preprocessing: Preprocessing) -> Augmentation:
    if settings.augment == "auto" and settings.data.lower() == "svhn":
        return "crop"  # a mirrored digit is another sign
    return resolve_augmentation(settings.augment, preprocessing)


def _norm(settings: TrainSettings, steps: int) -> Norm:
    """The normalisation asked for; Batch Renormalisation's schedule keeps its share of the run.

    Ioffe (2017) starts at 5 000 of 160 000 steps, and ends at 40 000 (r) and 25 000 (d).
    """
    return Norm(
        kind=settings.norm,
        ghost_batch_size=settings.ghost_size,
        num_groups=settings.groups,
        examples_per_group=settings.examples_per_group,
        renorm=(steps // 32, steps // 4, 5 * steps // 32),
    )


def _convert(model: nn.Module, norm: Norm, settings: TrainSettings, world: World) -> list[str]:
    """Change the norm layers before the optimiser sees them; what is worth remarking."""
    if settings.sync_bn:
        if not torch.cuda.is_available():
            raise ConfigurationError(
                "--sync-bn needs CUDA devices", "--norm ghost keeps statistics per process"
            )
        if world.size == 1:
            return ["--sync-bn changes nothing with one process"]
        timm.layers.convert_sync_batchnorm(model)
        return []
    if norm.kind == "batch":
        return []
    convert_(model, norm)
    notes = []
    if norm.kind in ("batch-group", "group"):
        channels = [n for layer in survey(model) if (n := layer.num_features)]
        fewer = [n for n in channels if groups_for(n, norm.num_groups) < norm.num_groups]
        if fewer:
            notes.append(
                f"{len(fewer)} norm layer(s) have fewer than {norm.num_groups} groups, e.g. "
                f"{groups_for(fewer[0], norm.num_groups)} for {fewer[0]} channels"
            )
    share = settings.batch_size // world.size
    if norm.kind == "ghost" and norm.ghost_batch_size >= share:
        notes.append(
            f"--ghost-size {norm.ghost_batch_size} is no smaller than the batch of {share}: this is BatchNorm"
        )
    elif norm.kind == "ghost" and share % norm.ghost_batch_size:
        notes.append(f"the last ghost batch of each {share} has {share % norm.ghost_batch_size} examples")
    return notes


def _evaluation_batches(
    examples: Examples, preprocessing: Preprocessing, settings: TrainSettings, device: torch.device
) -> Batches:
    workers = whole_number(settings.workers, "--workers", 0)
    return Batches(
        examples,
        preprocessing,
        whole_number(settings.eval_batch_size, "--eval-batch-size", 1)
        or automatic_batch_size(preprocessing, device),
        device,
        automatic_workers() if workers is None else workers,
    )


def _recipe(settings: TrainSettings) -> Recipe:
    if settings.dtype not in DTYPES:
        raise ConfigurationError(f"unknown dtype {settings.dtype!r}", f"one of: {', '.join(DTYPES)}")
    try:
        milestones = tuple(float(part) for part in settings.milestones.split(",") if part)
    except ValueError:
        raise ConfigurationError(
            f"--milestones takes fractions separated by commas, got {settings.milestones!r}"
        ) from None
    return Recipe(
        epochs=settings.epochs,
        optimizer=settings.optimizer,
        learning_rate={"sgd": 0.1, "adamw": 1e-3}[settings.optimizer] if settings.lr is None else settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        bias_decay=settings.bias_decay,
        decay_norm=settings.decay_norm,
        gamma_target=int(settings.gamma_target),  # type: ignore[arg-type]
        schedule=settings.schedule,
        warmup_epochs=settings.warmup_epochs,
        milestones=milestones,
        label_smoothing=settings.label_smoothing,
        ema_decay=settings.ema,
        clip_grad=settings.clip_grad,
        accumulate=settings.accumulate,
        dtype=DTYPES[settings.dtype],
        channels_last=settings.channels_last,
        compile=settings.compile,
        eval_every=settings.eval_every,
        seed=settings.seed,
    )


def _check_folder(output: Path, settings: TrainSettings) -> None:
    """Refuse an output that is somebody else's, or that this run would change unasked."""
    ours = output.is_dir() and not output.is_symlink() and (output / RUN).is_file()
    if settings.resume and settings.overwrite:
        raise ConfigurationError("--resume continues a run and --overwrite starts anew", "give one")
    if ours and settings.resume:
        _check_same(output / RUN, settings)
    elif ours and not settings.overwrite:
        unfinished = "" if is_bundle(output) else " and holds an unfinished run"
        raise ConfigurationError(
            f"the output {output} exists{unfinished}", "--resume continues it, --overwrite starts anew"
        )
    elif not ours:
        check_output(output, overwrite=settings.overwrite, keep=input_paths(settings))
    elif kept := [p for p in input_paths(settings) if Path(p).resolve().is_relative_to(output.resolve())]:
        raise ConfigurationError(f"the output {output} holds the input {kept[0]}", "write somewhere else")


def _check_same(file: Path, settings: TrainSettings) -> None:
    """A run goes on as it began."""
    try:
        before = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot resume: {file} cannot be read: {error}") from None
    now = tomllib.loads(to_toml(resolved_paths(settings)))
    for name in sorted(before.keys() | now.keys()):
        if name not in _FREE and before.get(name) != now.get(name):
            raise ConfigurationError(
                f"the run in {file.parent} has {name} = {before.get(name)!r}, now it is {now.get(name)!r}",
                f"--config {file} repeats its settings; --overwrite starts anew",
            )


def _open_folder(output: Path, settings: TrainSettings) -> None:
    if settings.overwrite:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)


def _finished(output: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
        return document
    except (OSError, ValueError) as error:
        raise InputError(f"the run in {output} is finished, but its result cannot be read: {error}") from None


def _publish(job: Job, state: TrainingState, output: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Put the finished model and its reports beside the checkpoint, the manifest last."""
    model = state.evaluated
    source = job.started.source
    with published(output) as stage:
        write_model(model, stage, source=source, preprocessing=job.preprocessing)
        return write_training_reports(stage, document)


def _describe(job: Job) -> dict[str, Any]:
    """Model, data, environment and warnings as they appear in a result."""
    source, settings, batches = job.started.source, job.settings, job.batches
    groups = parameter_groups(job.model, job.recipe)
    return {
        "model": {
            "source": source.spec,
            "kind": source.kind,
            "model_kwargs": source.model_kwargs,
            "checkpoint": settings.checkpoint or source.weights,
            "new_weights": list(job.started.new_weights),
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


def _recipe_document(recipe: Recipe, settings: TrainSettings) -> dict[str, Any]:
    values = asdict(recipe) | {"dtype": settings.dtype, "milestones": list(recipe.milestones)}
    return values | {
        name: getattr(settings, name) for name in ("batch_size", "classes_per_batch", "batch_order")
    }
