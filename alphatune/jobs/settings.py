"""The settings of each job: what the command line parses into and run.toml holds.

Fields are named like the options, and hold what a user would type.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tomli_w

from alphatune.errors import ConfigurationError

#: of an image that is read: where PIL begins to refuse
MOST_PIXELS = 178_956_970


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and how its images are prepared."""

    model: str
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    checkpoint_prefix: str | None = None
    model_kwargs: tuple[str, ...] = ()
    pretrained: bool = True
    unsafe_pickle: bool = False
    trust_code: bool = False
    logits: str | None = None
    mean: str | None = None
    std: str | None = None
    input_size: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class InspectSettings(ModelSettings):
    """Which images to measure the norm layers' inputs on, if any."""

    data: str | None = None
    split: str | None = None
    split_seed: int = 0
    data_root: str | None = None
    input_key: str | None = None
    target_key: str | None = None
    limit: int | None = None
    decoder: str = "pil"
    max_pixels: int = MOST_PIXELS
    batch_size: str = "auto"
    workers: str = "auto"
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class BenchSettings(ModelSettings):
    """What to time, and for how long."""

    alpha: float | None = None
    exclude: tuple[str, ...] = ()
    skip_unknown: bool = False
    batch_size: str = "1,32"
    dtype: str = "float32"
    channels_last: bool = False
    compile: bool = False
    threads: int | None = None
    seconds: float = 10.0
    seed: int = 0
    output: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ModelSettings):
    """What to write from a tuned folder, ``model``, and what to check it on."""

    format: Literal["onnx", "pt2", "safetensors", "hf"]
    output: str | None = None
    overwrite: bool = False
    fixed_size: bool = False
    opset: int | None = None
    input_name: str | None = None
    output_name: str | None = None
    license: str | None = None
    repo: str | None = None
    data: str | None = None
    split: str | None = None
    split_seed: int = 0
    data_root: str | None = None
    input_key: str | None = None
    target_key: str | None = None
    decoder: str = "pil"
    max_pixels: int = MOST_PIXELS
    check_images: int = 12
    tolerance: float = 1e-3
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ModelSettings):
    """Which data, and how to run over them."""

    data: str
    split: str | None = None
    val_fraction: float | None = None
    split_seed: int = 0
    data_root: str | None = None
    input_key: str | None = None
    target_key: str | None = None
    class_map: str | None = None
    labels: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    classes_only_present: bool = False
    limit: int | None = None
    dtype: str = "float32"
    batch_size: str = "auto"
    workers: str = "auto"
    cache: str = "auto"
    decoder: str = "pil"
    max_pixels: int = MOST_PIXELS
    on_bad_image: Literal["fail", "skip"] = "fail"
    seed: int = 0
    kernel: Literal["auto", "eager", "compiled", "triton"] = "auto"
    channels_last: bool = False
    compile: bool = False
    alpha: float | None = None
    skip_unknown: bool = False


@dataclass(frozen=True, kw_only=True)
class TuneSettings(EvaluateSettings):
    """What to try, how to decide, where to write."""

    alphas: str = "auto"
    curve: Literal["auto", "full"] = "auto"
    curve_tolerance: float = 0.002
    race_delta: float = 0.05
    metric: Literal["top1", "top5", "loss", "ece"] = "top1"
    accept: Literal["significant", "best"] = "significant"
    granularity: Literal["global", "stage", "layer", "channel"] = "global"
    temperature: bool = False
    score: str | None = None
    batch_stats: bool = False
    calibrate: str | None = None
    recalibrate: str | None = None
    recalibrate_order: Literal["one-pass", "layer-by-layer"] = "one-pass"
    recalibrate_augment: str = "none"
    calibrate_split: str | None = None
    calibrate_limit: int | None = None
    exclude: tuple[str, ...] = ()
    min_positions: int = 1
    min_gain: float | None = None
    max_regression: tuple[str, ...] = ()
    require_significant: bool = False
    max_latency_ratio: float | None = None
    thumbnails: int = 12
    no_cache: bool = False
    output: str = "alphatune-out"
    checkpoint_minutes: float = 1.0
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainSettings(ModelSettings):
    """What to train on, how, and where to write."""

    pretrained: bool = False
    data: str
    train_split: str | None = None
    split: str | None = None
    val_fraction: float | None = None
    val_data: str | None = None
    split_seed: int = 0
    data_root: str | None = None
    download: bool = False
    input_key: str | None = None
    target_key: str | None = None
    class_map: str | None = None
    labels: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    limit: int | None = None
    max_pixels: int = MOST_PIXELS
    augment: str = "auto"
    classes_per_batch: int | None = None
    batch_order: Literal["shuffled", "blocks"] = "shuffled"
    cache: Literal["none", "device"] = "none"
    norm: Literal["batch", "ghost", "batch-group", "group", "renorm"] = "batch"
    ghost_size: int = 32
    groups: int = 32
    examples_per_group: int = 2
    sync_bn: bool = False
    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: str = "0.5,0.75"
    weight_decay: float = 5e-4
    bias_decay: float = 0.0
    decay_norm: Literal["none", "gamma", "beta", "both"] = "none"
    gamma_target: Literal["0", "1"] = "0"
    label_smoothing: float = 0.0
    ema: float = 0.0
    clip_grad: float = 0.0
    dtype: str = "float32"
    channels_last: bool = False
    compile: bool = False
    eval_every: int = 1
    eval_batch_size: str = "auto"
    workers: str = "auto"
    seed: int = 0
    checkpoint_minutes: float = 15.0
    output: str = "alphatune-train"
    resume: bool = False
    overwrite: bool = False


def check_minutes(minutes: float) -> None:
    """Refuse a time between two times of saving that is none.

    Raises:
        ConfigurationError: it is negative or NaN.
    """
    if not minutes >= 0:
        raise ConfigurationError(f"--checkpoint-minutes takes a number from 0, got {minutes:g}")


#: settings that a saved configuration neither holds nor gives: consent comes with each command
ASKED_ANEW = ("overwrite", "resume", "no_cache", "unsafe_pickle", "trust_code")


def input_paths(settings: EvaluateSettings | TrainSettings) -> list[str]:
    """Whatever among the settings names a file or folder that must not be written to."""
    data: list[str | None] = [settings.data]
    if isinstance(settings, TuneSettings):
        data += [settings.calibrate, settings.recalibrate]
    named = [
        settings.checkpoint,
        settings.class_map,
        settings.labels,
        settings.data_root,
        settings.model,
        *data,
    ]
    if isinstance(settings, TrainSettings):
        named.append(settings.val_data)
    named += [source.partition("/")[2] for source in data if source]  # hfds/FOLDER, wds/FOLDER
    named.append(settings.model.partition(":")[2])  # local-dir:FOLDER
    named.append(settings.model.rpartition(":")[0])  # file.py:factory
    if isinstance(settings, TuneSettings) and settings.score is not None:
        named += [settings.data.rpartition(":")[0], settings.score.rpartition(":")[0]]
    return [path for path in named if path and Path(path).exists()]


def to_command(command: str, settings: ModelSettings) -> str:
    """The command line that gives these settings: what differs from the defaults, quoted for a shell."""
    words = ["alphatune", command, settings.model]
    for field in fields(settings):
        value, option = getattr(settings, field.name), "--" + field.name.replace("_", "-")
        if value == field.default or field.name == "model":
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [option, str(one)]
    return shlex.join(words)


def to_toml(settings: ModelSettings) -> str:
    """The resolved settings, in the form ``--config`` reads.

    Consent, to replace or to go on with a folder or to run code that comes with a
    model, is given anew each time: the file may be a stranger's.
    """
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}
    return values_to_toml({k: v for k, v in values.items() if k not in ASKED_ANEW})


def values_to_toml(values: dict[str, Any]) -> str:
    """TOML of what is given; it has no word for nothing."""
    return tomli_w.dumps({k: v for k, v in values.items() if v is not None and v != []})
