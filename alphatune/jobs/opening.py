"""Open what the settings name: the model on its device, the data, and check that they fit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from alphatune.core.distributed import local_device
from alphatune.core.errors import ConfigurationError, one_line, raise_if_machine_failed
from alphatune.core.progress import Meter
from alphatune.data.cache import with_cache
from alphatune.data.class_map import only_present
from alphatune.data.conditions import check_names
from alphatune.data.datasets import open_data, opens_by_name
from alphatune.data.examples import Examples, Unreadable
from alphatune.data.inventory import files_not_read
from alphatune.data.loading import Batches, automatic_batch_size
from alphatune.data.preprocessing import Preprocessing, parse_numbers
from alphatune.data.readable import skipped_warning, without_unreadable
from alphatune.data.shards import absolute_pattern, is_pattern
from alphatune.data.shifts import Shift, parse_shifts
from alphatune.data.splits import open_splits
from alphatune.data.workers import affordable_workers, automatic_workers
from alphatune.evaluation.predictor import Predictor
from alphatune.jobs.preparation import Preparation, preparation
from alphatune.kernels.dispatch import resolve_kernel
from alphatune.models.bundle import WEIGHTS, build_bundled, read_bundle, restore_
from alphatune.models.checkpoint_loading import Loaded, load_weights_
from alphatune.models.checkpoints import Checkpoint, read_checkpoint
from alphatune.models.foreign import materialise_
from alphatune.models.output import is_bundle
from alphatune.models.outputs import EXAMPLES, check_outputs_
from alphatune.models.probe import Probe, probe
from alphatune.models.sources import Source, build, parse_model_kwargs
from alphatune.settings import EvaluateSettings, ModelSettings, TuneSettings
from alphatune.settings.conditions import CLEAN, parse_named

S = TypeVar("S", bound=EvaluateSettings)
P = TypeVar("P", bound=ModelSettings)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class OpenedModel:
    """A model with its weights, on its device, in eval mode."""

    module: nn.Module
    source: Source
    checkpoint: Loaded | None
    preparation: Preparation
    device: torch.device
    warnings: tuple[str, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        return self.preparation.preprocessing


@dataclass(frozen=True)
class Prepared:
    """Everything checked and ready to run."""

    opened: OpenedModel
    batches: Batches
    probe: Probe
    warnings: tuple[str, ...]
    skipped: tuple[Unreadable, ...] = ()  # images that cannot be read, left out
    announcement: tuple[str, ...] = ()  # how images are prepared, to be said before the work begins


def open_model(settings: ModelSettings) -> OpenedModel:
    """Build the model that MODEL and its options name, with weights, on its device."""
    device = local_device(resolve_device(settings.device))
    checkpoint: Loaded | None = None
    notes: list[str] = []
    check_choices(settings)
    if is_bundle(settings.model):
        if settings.checkpoint:
            raise ConfigurationError(
                f"{settings.model} is a tuned folder with weights of its own", "leave out `checkpoint`"
            )
        if settings.model_kwargs:
            raise ConfigurationError(
                f"{settings.model} is a tuned folder with an architecture of its own",
                "leave out `model_kwargs`",
            )
        bundle = read_bundle(settings.model)
        source = build_bundled(bundle, trust_code=settings.trust_code)
        restore_(source.model, bundle)
        checkpoint = Loaded(str(bundle.folder / WEIGHTS), bundle.weights_sha256)
    else:
        kwargs = parse_model_kwargs(settings.model_kwargs)
        wants_pretrained = settings.pretrained and settings.checkpoint is None
        source = build(settings.model, pretrained=wants_pretrained, model_kwargs=kwargs)
        notes += source.notes
        named = settings.checkpoint or source.checkpoint
        size = override_preprocessing(source.preprocessing or Preprocessing(), settings).input_size
        materialise_(source.model, size, weights_follow=named is not None, spec=settings.model)
        if named:
            checkpoint = load_weights_(source.model, read_named_checkpoint(settings, named))
            notes += checkpoint.notes
        elif source.kind == "factory":
            notes.append(f"no `checkpoint` was given: the weights are those that {settings.model} made")
        elif not source.weights:
            notes.append("the model has random weights (`pretrained=False`)")
    preprocessing = override_preprocessing(source.preprocessing or Preprocessing(), settings)
    prepared = preparation(settings, source, preprocessing)
    require_device(source.model, device)
    source.model.eval()
    return OpenedModel(source.model, source, checkpoint, prepared, device, tuple(notes))


def check_choices(settings: ModelSettings) -> None:
    """Refuse a choice among the weights of a file where there is no file; raises ConfigurationError."""
    if settings.checkpoint is None and not (settings.checkpoint_key is settings.checkpoint_prefix is None):
        option = "`checkpoint_key`" if settings.checkpoint_key is not None else "`checkpoint_prefix`"
        raise ConfigurationError(
            f"{option} chooses among the weights of a file, and none was given", "`checkpoint`"
        )


def read_named_checkpoint(settings: ModelSettings, path: str | Path) -> Checkpoint:
    """Read a file, and what the settings choose in it."""
    return read_checkpoint(
        path,
        unsafe_pickle=settings.unsafe_pickle,
        key=settings.checkpoint_key,
        prefix=settings.checkpoint_prefix,
    )


def require_device(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device; raises ConfigurationError if that cannot be."""
    try:
        model.to(device)
    except Exception as error:  # somebody's own ``to`` may raise anything
        raise_if_machine_failed(error)
        raise ConfigurationError(f"cannot move the model to {device}: {one_line(error)}") from None


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA if there is one, else Apple's MPS, else the CPU."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigurationError(f"unknown device {name!r}", "auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigurationError(f"no device {name}: {torch.cuda.device_count()} CUDA devices are visible")
    if device.type == "mps" and not mps:
        raise ConfigurationError("no device mps on this machine")
    return device


def prepare(settings: EvaluateSettings, meter: Meter | None = None) -> Prepared:
    """Open model and data, and check that classes and input size fit each other."""
    if settings.dtype not in DTYPES:
        raise ConfigurationError(f"unknown dtype {settings.dtype!r}", f"one of: {', '.join(DTYPES)}")
    named_conditions(settings)
    opened = open_model(settings)
    if settings.channels_last:
        opened.module.to(memory_format=torch.channels_last)
    if settings.kernel != "auto":
        resolve_kernel(settings.kernel, opened.device)  # one that cannot run is an error before anything runs
    examples = open_examples(settings, settings.data, opened.preprocessing.image_mode)
    announcement = opened.preparation.check(examples)
    seen = probe(
        opened.module,
        opened.preprocessing.input_size,
        opened.device,
        widths=(len(examples.classes),) if examples.classes else (),
        wanted=settings.logits,
    )
    check_classes(examples, seen.num_classes)
    if settings.classes_only_present:
        examples = only_present(examples)
    notes = [*opened.warnings, *opened.preparation.warnings(), *examples.warnings]
    batch_size = whole_number(settings.batch_size, "`batch_size`", 1)
    batch_size = batch_size or automatic_batch_size(opened.preprocessing, opened.device)
    workers, fewer = choose_workers(settings.workers, batch_size, opened.preprocessing)
    batches = Batches(
        examples.limit(settings.limit, settings.seed),
        opened.preprocessing,
        batch_size=batch_size,
        device=opened.device,
        workers=workers,
    )
    total = len(batches)
    batches, skipped = without_unreadable(batches, settings.on_bad_image, meter)
    notes += [*fewer, *skipped_warning(settings.data, skipped, total), *seen.warnings]
    notes += check_outputs_(opened.module, _first_images(batches))
    cached = with_cache(batches, cache_for(settings))
    return Prepared(opened, cached, seen, tuple(notes), skipped, announcement)


def cache_for(settings: EvaluateSettings) -> str:
    """Where decoded images are kept: an evaluation sees each once, unless shifts are made of it, and keeps nothing."""
    once = not isinstance(settings, TuneSettings) and not settings.shift
    return "none" if settings.cache == "auto" and once else settings.cache


def named_conditions(settings: EvaluateSettings) -> tuple[tuple[Shift, ...], tuple[tuple[str, str], ...]]:
    """The shifts to make, and names and data of further images.

    Raises:
        ConfigurationError: text that names neither, or two conditions of one name.
    """
    shifts = parse_shifts(settings.shift)
    named = tuple(map(parse_named, settings.conditions))
    check_names([CLEAN, *(shift.name for shift in shifts), *(name for name, _ in named)])
    return shifts, named


def _first_images(batches: Batches) -> Tensor:
    """A few images from everywhere in the data, or the first of a stream."""
    count = min(EXAMPLES, len(batches))
    last = len(batches) - 1 if batches.examples.load is not None else count - 1
    positions = np.linspace(0, last, count).astype(np.int64)
    few = replace(batches.take(positions), batch_size=count, workers=0)
    return next(iter(few)).inputs


def predictor_of(settings: EvaluateSettings, prepared: Prepared) -> Predictor:
    """How the settings want the model run."""
    return Predictor(
        prepared.opened.module,
        DTYPES[settings.dtype],
        settings.channels_last,
        settings.compile,
        outputs=prepared.batches.examples.outputs,
    )


def resolved(settings: S, prepared: Prepared) -> S:
    """The settings with what was chosen automatically, and paths that hold from any folder."""
    return replace(
        resolved_paths(settings),
        device=str(prepared.opened.device),
        batch_size=str(prepared.batches.batch_size),
        workers=str(prepared.batches.workers),
    )


def resolved_paths(settings: P) -> P:
    """The settings with paths that hold from any folder."""
    absolute: dict[str, Any] = {
        name: _absolute(path)
        for name in ("checkpoint", "class_map", "labels", "data_root")
        if (path := getattr(settings, name, None))
    }
    root = getattr(settings, "data_root", None)
    for name in ("data", "val_data", "calibrate", "recalibrate"):
        if data := getattr(settings, name, None):
            absolute[name] = _absolute_data(data, root)
    if isinstance(settings, EvaluateSettings):
        named = map(parse_named, settings.conditions)
        absolute["conditions"] = tuple(f"{name}={_absolute_data(data, root)}" for name, data in named)
    for name in ("model", "data", "score"):  # file.py:function
        location, colon, function = (getattr(settings, name, None) or "").rpartition(":")
        if location.endswith(".py"):
            absolute[name] = f"{Path(location).absolute()}{colon}{function}"
    if is_bundle(settings.model) or (Path(settings.model) / "config.json").is_file():
        absolute["model"] = _absolute(settings.model)
    elif settings.model.startswith("local-dir:"):
        absolute["model"] = _absolute(settings.model, "local-dir:")
    return replace(settings, **absolute)


def _absolute_data(data: str, root: str | None) -> str:
    """DATA as it holds from any folder; a name of a dataset below ``data_root`` stays as it is."""
    return (
        data
        if opens_by_name(data, root)
        else _absolute(data, *(() if root else ("wds/",)), "hfds/", "hfids/")
    )


def _absolute(path: str, *schemes: str) -> str:
    """A path as it holds from any folder, after its scheme if it has one; what is none stays as it is."""
    if Path(path).exists():
        return str(Path(path).absolute())
    scheme = next((path[: len(s)] for s in schemes if path.lower().startswith(s)), "")
    rest = path[len(scheme) :]
    if scheme.lower() == "wds/" and is_pattern(rest):
        return scheme + absolute_pattern(rest)
    return f"{scheme}{Path(rest).absolute()}" if scheme and Path(rest).exists() else path


def open_examples(settings: EvaluateSettings, data: str, image_mode: str) -> Examples:
    """The examples that DATA names; with ``val_fraction`` those that training holds out of them."""
    how: dict[str, Any] = {
        "data_root": settings.data_root,
        "input_key": settings.input_key,
        "target_key": settings.target_key,
        "class_map": settings.class_map,
        "labels": settings.labels,
        "path_column": settings.path_column,
        "label_column": settings.label_column,
        "image_mode": image_mode,
        "split_seed": settings.split_seed,
    }
    if settings.val_fraction is None:
        examples = open_data(data, split=settings.split, **how)
    else:
        fraction = settings.val_fraction
        examples = open_splits(data, train_split=settings.split, val_fraction=fraction, **how).validation
    return examples.decoded_by(settings.decoder).at_most(settings.max_pixels)


def check_classes(examples: Examples, outputs: int) -> None:
    """Refuse labels that cannot be those of a model's outputs; raises ConfigurationError."""
    if examples.class_map and len(examples.classes) != outputs:
        raise ConfigurationError(
            f"the class map {examples.class_map} names {len(examples.classes)} classes, the model has {outputs} outputs",
            "it needs a line for each output, in the model's order, a background class included",
        )
    lowest, highest = int(examples.targets.min()), int(examples.targets.max())
    if not examples.classes and lowest == 1 and highest == outputs:
        raise ConfigurationError(
            f"the labels run from 1 to {outputs}, the model's outputs from 0 to {outputs - 1}",
            "`class_map=FILE` that lists the labels, one a line in the order of the outputs, says which is which",
        )
    if highest >= outputs:
        raise ConfigurationError(
            f"the data has label {highest}, the model {outputs} outputs",
            "give `class_map`, or a model with a head for these classes",
        )
    if examples.classes and len(examples.classes) != outputs:
        hint = (
            "all images are in one folder: `labels=FILE` reads their classes from a file"
            if len(examples.classes) == 1 and not examples.labels
            else "`class_map=FILE` says which output each class is: one class name a line, in the model's order"
        )
        raise ConfigurationError(
            f"the data has {len(examples.classes)} classes, the model {outputs} outputs",
            "; ".join(filter(None, [files_not_read(examples.warnings), hint])),
        )


def choose_workers(text: str, batch_size: int, preprocessing: Preprocessing) -> tuple[int, list[str]]:
    """How many worker processes read images, and a remark if they are fewer than ``workers`` asks for."""
    asked = whole_number(text, "`workers`", 0)
    wanted = automatic_workers() if asked is None else asked
    used, _ = affordable_workers(wanted, batch_size * math.prod(preprocessing.input_size))
    if asked is None or used == asked:
        return used, []
    return used, [f"{used} workers read images, not {asked}: memory or /dev/shm has no room for more"]


def whole_number(text: str, option: str, least: int) -> int | None:
    """The number an option gives, None for ``auto``."""
    if text == "auto":
        return None
    number = digits(text)
    if number is None or number < least:
        raise ConfigurationError(
            f"{option} takes auto or a whole number from {least}, got {one_line(text, 80)!r}"
        )
    return number


def digits(text: str) -> int | None:
    """The number that ASCII digits spell, None for anything else; ``str.isdigit`` is also true of ``"²"``."""
    return int(text) if re.fullmatch("[0-9]{1,12}", text) else None


def override_preprocessing(base: Preprocessing, settings: ModelSettings) -> Preprocessing:
    """What the options say about preprocessing, and ``base`` where they are silent."""
    return base.override(
        mean=parse_numbers(settings.mean, "`mean`") if settings.mean else None,
        std=parse_numbers(settings.std, "`std`") if settings.std else None,
        input_size=parse_numbers(settings.input_size, "`input_size`") if settings.input_size else None,
        crop_pct=settings.crop_pct,
        crop_mode=settings.crop_mode,
        interpolation=settings.interpolation,
    )
