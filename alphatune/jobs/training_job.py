"""Everything of a training run, opened and checked before it starts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError
from alphatune.core.progress import Meter
from alphatune.data.augmentation import Augmentation, resolve_augmentation
from alphatune.data.datasets import opens_by_name
from alphatune.data.examples import Examples
from alphatune.data.inventory import files_not_read
from alphatune.data.loading import Batches, automatic_batch_size
from alphatune.data.preprocessing import SMALL_IMAGES, Preprocessing, parse_numbers
from alphatune.data.sampling import Sampling
from alphatune.data.splits import Splits, open_splits
from alphatune.data.training_batches import DeviceBatches, DeviceCache, TrainingBatches
from alphatune.jobs.opening import (
    DTYPES,
    check_choices,
    choose_workers,
    override_preprocessing,
    read_named_checkpoint,
    require_device,
    whole_number,
)
from alphatune.jobs.preparation import Preparation, preparation, prepared_by
from alphatune.jobs.training_norm import convert_for_training_, norm_of
from alphatune.models.finetuning import Started, build_for_classes
from alphatune.models.output import is_bundle
from alphatune.models.outputs import check_outputs_
from alphatune.models.probe import probe
from alphatune.models.sources import Source, parse_model_kwargs
from alphatune.models.weights import weights_of
from alphatune.norms.conversion import Norm
from alphatune.settings import TrainSettings
from alphatune.settings.option import IMAGES, check_applies
from alphatune.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingJob:
    """Everything of a training run, checked and ready."""

    settings: TrainSettings
    recipe: Recipe
    started: Started
    norm: Norm
    preprocessing: Preprocessing
    splits: Splits
    batches: TrainingBatches
    validation: Batches | DeviceBatches
    world: World
    warnings: tuple[str, ...]
    announcement: tuple[str, ...]  # how images are prepared, to be said before the work begins

    @property
    def model(self) -> nn.Module:
        return self.started.source.model

    def cached(self, meter: Meter) -> TrainingJob:
        """The same job with all images decoded, on the device."""
        validation = self.validation
        meter.begin("reading the data", len(self.batches.examples) + len(validation), "images read")
        if isinstance(validation, Batches):
            cache = DeviceCache.of(validation, meter)
            validation = DeviceBatches(cache, self.preprocessing, validation.batch_size)
        return replace(self, batches=self.batches.cached(meter), validation=validation)

    @property
    def fingerprint(self) -> str:
        """Which examples are trained on, in which order."""
        examples = self.batches.examples
        return hashlib.sha256(examples.indices.tobytes() + examples.targets.tobytes()).hexdigest()


def prepare_training(settings: TrainSettings, device: torch.device, world: World) -> TrainingJob:
    """Open the data, build and convert the model, and check that they fit each other."""
    recipe = recipe_of(settings)
    check_applies(settings, frozenset({settings.norm, *IMAGES}), f"`norm={settings.norm}`")
    image_mode = (
        "L" if settings.input_size and settings.input_size.replace("x", ",").startswith("1,") else "RGB"
    )
    if settings.download and not world.first:
        world.wait()  # one process fetches, and all read
    splits = open_splits(
        settings.data,
        data_root=settings.data_root,
        val_fraction=settings.val_fraction,
        val_data=settings.val_data,
        split_seed=settings.split_seed,
        download=settings.download,
        class_map=settings.class_map,
        labels=settings.labels,
        path_column=settings.path_column,
        label_column=settings.label_column,
        image_mode=image_mode,
        input_key=settings.input_key,
        target_key=settings.target_key,
        train_split=settings.train_split,
        split=settings.split,
    )
    if settings.download and world.first:
        world.wait()
    splits = splits.at_most(settings.max_pixels)
    examples = splits.train.limit(settings.limit, settings.seed)
    num_classes = max(
        len(examples.classes), *(int(p.targets.max()) + 1 for p in (examples, splits.validation))
    )
    torch.manual_seed(settings.seed)  # of newly made weights
    started, notes = _build(settings, num_classes)
    model = started.source.model
    weights_of(model)  # what cannot be written is refused before the work
    prepared = _preparation(settings, started.source)
    announcement = prepared.check(examples, splits.validation)
    notes += prepared.warnings()
    preprocessing = prepared.preprocessing
    require_device(model, torch.device("cpu"))
    seen = probe(
        model, preprocessing.input_size, torch.device("cpu"), widths=(num_classes,), wanted=settings.logits
    )
    noise = torch.randn(4, *preprocessing.input_size, generator=torch.Generator().manual_seed(settings.seed))
    notes += (*seen.warnings, *check_outputs_(model, noise))
    if seen.num_classes != num_classes:
        raise ConfigurationError(
            f"the data has {num_classes} classes, the model {seen.num_classes} outputs",
            "; ".join(filter(None, [files_not_read(examples.warnings), "let its factory take num_classes"])),
        )
    sampling = Sampling(settings.batch_size, settings.seed, settings.classes_per_batch, settings.batch_order)
    workers, fewer = choose_workers(settings.workers, settings.batch_size, preprocessing)
    notes += fewer
    batches = TrainingBatches(
        examples,
        preprocessing,
        _augmentation(settings, preprocessing),
        sampling,
        device,
        workers,
        rank=world.rank,
        world_size=world.size,
    )
    norm = norm_of(settings, recipe.epochs * batches.steps_per_epoch)
    unseen = num_classes - len(np.unique(splits.train.targets))
    if unseen:
        notes.append(f"{unseen} of {num_classes} outputs have no training example")
    notes += convert_for_training_(model, norm, settings, world, seen)
    require_device(model, device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    if settings.cache == "none":
        batches.check()
    validation = evaluation_batches(splits.validation, preprocessing, settings, device)
    return TrainingJob(
        settings, recipe, started, norm, preprocessing, splits, batches, validation, world,
        tuple(dict.fromkeys((*notes, *splits.train.warnings, *splits.validation.warnings))), announcement,
    )  # fmt: skip


def _build(settings: TrainSettings, num_classes: int) -> tuple[Started, list[str]]:
    if is_bundle(settings.model):
        raise ConfigurationError(
            f"{settings.model} is a folder that alphatune wrote",
            f"fine-tune its weights: ARCHITECTURE `checkpoint={settings.model}/model.safetensors`",
        )
    check_choices(settings)
    checkpoint = read_named_checkpoint(settings, settings.checkpoint) if settings.checkpoint else None
    started = build_for_classes(
        settings.model,
        num_classes,
        pretrained=settings.pretrained,
        checkpoint=checkpoint,
        model_kwargs=parse_model_kwargs(settings.model_kwargs),
        input_size=override_preprocessing(Preprocessing(), settings).input_size
        if settings.input_size
        else None,
    )
    notes = [*started.source.notes]
    if checkpoint is None or started.loaded is None:
        return started, notes
    key = started.loaded.weights_key
    taken = [f"weights taken from {key!r} in {settings.checkpoint}"] if key else []
    return started, [*notes, *taken, *started.loaded.notes]


def _dataset_name(settings: TrainSettings) -> str:
    """The name of a dataset by name, else ""."""
    return settings.data.lower() if opens_by_name(settings.data, settings.data_root) else ""


def _preparation(settings: TrainSettings, source: Source) -> Preparation:
    """The model's own, if it was trained before; else the dataset's, else the architecture's."""
    usual = None if settings.pretrained or settings.checkpoint else SMALL_IMAGES.get(_dataset_name(settings))
    if usual is not None:
        of_data = replace(source, preprocessing=usual, undeclared=(), weights="")
        return prepared_by(settings, of_data, override_preprocessing(usual, settings), settings.data)
    return preparation(
        settings, source, override_preprocessing(source.preprocessing or Preprocessing(), settings)
    )


def _augmentation(settings: TrainSettings, preprocessing: Preprocessing) -> Augmentation:
    if settings.augment == "auto" and _dataset_name(settings) == "svhn":
        return "crop"  # a mirrored digit is another sign
    return resolve_augmentation(settings.augment, preprocessing)


def evaluation_batches(
    examples: Examples, preprocessing: Preprocessing, settings: TrainSettings, device: torch.device
) -> Batches:
    """Examples as the evaluation of a run reads them."""
    batch_size = whole_number(settings.eval_batch_size, "`eval_batch_size`", 1)
    batch_size = batch_size or automatic_batch_size(preprocessing, device)
    workers, _ = choose_workers(settings.workers, batch_size, preprocessing)
    return Batches(examples, preprocessing, batch_size, device, workers)


def recipe_of(settings: TrainSettings) -> Recipe:
    """The hyperparameters that the options give."""
    if settings.dtype not in DTYPES:
        raise ConfigurationError(f"unknown dtype {settings.dtype!r}", f"one of: {', '.join(DTYPES)}")
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
        milestones=parse_numbers(settings.milestones, "`milestones`"),
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
