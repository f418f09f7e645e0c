"""What an export needs, opened and checked: the tuned model, what it gives for some images, and what is known of it."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alphatune.core.errors import (
    ConfigurationError,
    InputError,
    NumericError,
    UnsupportedModelError,
    one_line,
    raise_if_machine_failed,
)
from alphatune.core.versions import EXPORTED_PROGRAM, require_torch
from alphatune.data.preprocessing import Preprocessing
from alphatune.evaluation.predictor import evaluation_mode, input_dtype
from alphatune.evaluation.reading import kept_reading
from alphatune.export.agreement import BATCH_SIZES, Expected, expect
from alphatune.export.onnx import DEFAULT_OPSET, check_opset, require_onnx
from alphatune.export.output_file import check_output_file
from alphatune.export.program import WITHOUT_A_GRAPH
from alphatune.export.record import architecture_of, export_record
from alphatune.jobs.check_images import CheckImages, open_check_images, random_images
from alphatune.jobs.opening import OpenedModel, open_model, override_preprocessing
from alphatune.jobs.preparation import Say, announce, preparation
from alphatune.models.bundle import WEIGHTS, Bundle, read_bundle, restore_
from alphatune.models.checkpoint_loading import Loaded
from alphatune.models.output import check_output
from alphatune.models.outputs import EXAMPLES, check_outputs_, choose_output_
from alphatune.models.running_stats_check import require_health
from alphatune.models.sources import Source
from alphatune.models.temperature import fold_temperature_, get_temperature
from alphatune.results.stored import read_tuned
from alphatune.results.tune import Tuned
from alphatune.settings import ExportSettings
from alphatune.settings.option import IMAGES, check_applies

#: of ONNX, where no option names them
INPUT, OUTPUT = "images", "logits"
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors", "hf": "-hf"}
#: options that say how ``data`` is read
_OF_DATA = ("split", "data_root", "input_key", "target_key")


@dataclass(frozen=True)
class ExportJob:
    """A tuned model, ready to be written.

    ``opened.module`` has its α; the temperature is in the weights of the layer
    ``head``, or, where that is "", still a hook.
    """

    settings: ExportSettings
    output: Path
    bundle: Bundle
    opened: OpenedModel
    result: Tuned | None  # None where there is none that can be read
    images: CheckImages
    expected: tuple[Expected, ...]  # of the tuned model, for each batch size
    elsewhere: Expected | None  # at another image size; None where the model does not take one
    head: str
    warnings: tuple[str, ...]

    @property
    def architecture(self) -> str:
        config = getattr(self.opened.module, "pretrained_cfg", {})
        return architecture_of(self.bundle, str(config.get("architecture", "")))

    @property
    def num_classes(self) -> int:
        logits = self.expected[0].logits[0]
        return logits.shape[1] if logits.ndim > 1 else 1

    def record(self, unfolded: str) -> dict[str, str]:
        """What the file says about itself; ``unfolded``: where the temperature is if not in the head's weights."""
        place = f"in the weights of {self.head}" if self.head else unfolded
        return export_record(
            self.opened.module,
            self.bundle,
            architecture=self.architecture,
            preprocessing=self.opened.preprocessing,
            num_classes=self.num_classes,
            checkpoint_sha256=self.result.model.checkpoint_sha256 if self.result else "",
            temperature_place="" if self.bundle.temperature == 1 else place,
        )


def open_export(
    settings: ExportSettings, model: nn.Module | None = None, say: Say | None = None
) -> ExportJob:
    """Check the settings, open the folder, run the model on the images to check with, fold its temperature.

    Raises:
        AlphatuneError: in one of its kinds.
    """
    _check_settings(settings)
    folder = Path(settings.model)
    bundle = read_bundle(folder)
    suffix = SUFFIXES[settings.format]
    output = Path(settings.output or folder.resolve().name + suffix)
    if settings.format == "hf":
        check_output(output, overwrite=settings.overwrite, keep=[folder])
        if bundle.kind != "timm":
            raise UnsupportedModelError(
                f"`format=hf` is for timm's architectures, {folder} holds {bundle.spec or 'a model of your own'}",
                "`format=safetensors` keeps the weights and what alphatune found for any model",
            )
    else:
        check_output_file(output, suffix, overwrite=settings.overwrite, keep=[folder])
    if settings.format == "onnx":
        check_opset(settings.opset or DEFAULT_OPSET)
        require_onnx()
    if settings.format == "pt2":
        require_torch(EXPORTED_PROGRAM, WITHOUT_A_GRAPH)
    opened = open_model(settings) if model is None else _given(settings, bundle, model)
    require_health(opened.module)
    images = (
        CheckImages(random_images(settings, opened.preprocessing), "random")
        if settings.format == "safetensors"
        else open_check_images(settings, opened.preparation)
    )
    checked = _check_outputs(opened.module, images.images, settings.logits)
    announce(images.announcement, say)
    expected = tuple(_expect(opened.module, images.images, size) for size in BATCH_SIZES)
    elsewhere = None if settings.fixed_size else _elsewhere(opened.module, images.images)
    head = _fold_temperature(opened.module, images.images)
    notes = [*opened.warnings, *checked, *([images.remark] if images.remark else [])]
    notes += opened.preparation.warnings()
    result = None
    with contextlib.suppress(InputError):
        result = read_tuned(folder)
    return ExportJob(
        settings, output, bundle, opened, result, images, expected, elsewhere, head, tuple(notes)
    )


def _check_settings(settings: ExportSettings) -> None:
    if settings.format not in SUFFIXES:
        raise ConfigurationError(
            f"unknown format {settings.format!r}",
            f"one of: {', '.join(SUFFIXES)}; `stdout` chooses what is printed",
        )
    check_applies(settings, frozenset({settings.format, *IMAGES}), f"`format={settings.format}`")
    for name in _OF_DATA:
        if getattr(settings, name) is not None and settings.data is None:
            raise ConfigurationError(f"`{name}` needs `data=DATA`")
    if settings.check_images < max(BATCH_SIZES):
        raise ConfigurationError(
            f"`check_images` must be at least {max(BATCH_SIZES)}, the largest batch that is tried, "
            f"got {settings.check_images}"
        )
    if not (0 <= settings.tolerance < math.inf):
        raise ConfigurationError(f"`tolerance` must be a number from 0, got {settings.tolerance:g}")
    if not (0 <= settings.seconds < math.inf):
        raise ConfigurationError(f"`seconds` must be a number from 0, got {settings.seconds:g}")
    names = (settings.input_name or INPUT, settings.output_name or OUTPUT)
    if "" in (settings.input_name, settings.output_name) or names[0] == names[1]:
        raise ConfigurationError("`input_name` and `output_name` must be two different names")
    if settings.repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", settings.repo, re.ASCII):
        raise ConfigurationError(f"`repo` takes USER/REPO, got {settings.repo!r}")
    if settings.device != "cpu":
        raise ConfigurationError(f"export runs on the CPU, got the device {settings.device!r}")


def _given(settings: ExportSettings, bundle: Bundle, model: nn.Module) -> OpenedModel:
    """A model of the caller's own with the folder's weights and α."""
    restore_(model.to("cpu"), bundle)
    preprocessing = override_preprocessing(bundle.preprocessing or Preprocessing(), settings)
    source = Source(bundle.spec, bundle.kind, model, bundle.model_kwargs, bundle.preprocessing)
    checkpoint = Loaded(str(bundle.folder / WEIGHTS), bundle.weights_sha256)
    prepared = preparation(settings, source, preprocessing)
    return OpenedModel(model, source, checkpoint, prepared, torch.device("cpu"), ())


def _check_outputs(model: nn.Module, images: Tensor, wanted: str | None) -> tuple[str, ...]:
    """Decide which output is exported, and see that it is the same each time; what is worth saying of it."""
    images = images[:EXAMPLES].to(input_dtype(model))
    with evaluation_mode(model):
        try:
            output = model(images)
        except RuntimeError as error:
            raise _refused(images, error) from None
    _, notes = choose_output_(model, output, len(images), wanted=wanted)
    said = check_outputs_(model, images)
    if (reading := kept_reading(model)) and reading.probabilities:
        said = ("the model gives probabilities, not logits, and so does the export", *said[1:])
    return notes + said


def _refused(images: Tensor, error: RuntimeError) -> ConfigurationError:
    raise_if_machine_failed(error)
    return ConfigurationError(
        f"the model does not take images of size {'x'.join(map(str, images.shape[1:]))}: {one_line(error)}",
        "see `input_size`",
    )


def _expect(model: nn.Module, images: Tensor, batch_size: int) -> Expected:
    try:
        return expect(model, images, batch_size)
    except RuntimeError as error:
        raise _refused(images, error) from None


def _elsewhere(model: nn.Module, images: Tensor) -> Expected | None:
    """What the model gives for the images at another size, neither square nor a multiple of the first."""
    height, width = (side // 32 * 32 + more for side, more in zip(images.shape[2:], (32, 64), strict=True))
    resized = F.interpolate(images[: max(BATCH_SIZES)], (height, width), mode="bilinear", antialias=True)
    try:
        return expect(model, resized, len(resized))
    except (
        RuntimeError,
        AssertionError,
        ValueError,
        NumericError,
    ):  # a model for one size says so in many ways
        return None


def _fold_temperature(model: nn.Module, images: Tensor) -> str:
    """Put the temperature into the head's weights; "" where there is none, or no linear head."""
    if get_temperature(model) == 1:
        return ""
    try:
        return fold_temperature_(model, images)
    except UnsupportedModelError:
        return ""
