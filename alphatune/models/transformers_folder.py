"""Image classifiers in the folder layout of Hugging Face's transformers: config.json beside the weights.

The architecture is built by transformers, which is optional; the weights are read by our own reader
(checkpoints.py), strictly, where ``from_pretrained`` would make up what is missing.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from alphatune.core.errors import (
    AlphatuneError,
    ConfigurationError,
    UnsupportedModelError,
    one_line,
    raise_if_machine_failed,
)
from alphatune.data.preprocessing import Preprocessing
from alphatune.models.model_kwargs import Kwargs

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
#: names of the weights, the safest first
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: PIL's numbers of interpolations
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def is_transformers(folder: Path) -> bool:
    """Whether a folder's config.json is one of transformers'; timm's names an ``architecture``."""
    config = _json(folder / CONFIG)
    return "model_type" in config and "architecture" not in config


def build_transformers(folder: Path, kwargs: Kwargs) -> nn.Module:
    """Build the image classifier that a folder describes, without its weights.

    Raises:
        ConfigurationError: transformers is not installed.
        UnsupportedModelError: no image classifier, or one whose code is not part of transformers.
    """
    named = ", ".join(map(str, _json(folder / CONFIG).get("architectures") or [])) or "unknown architecture"
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise ConfigurationError(
            f"{folder} holds a model of transformers ({named}), which cannot be imported: {one_line(error)}",
            "pip install transformers",
        ) from None
    try:
        if "num_classes" in kwargs:
            kwargs = {
                "num_labels": kwargs["num_classes"],
                **{k: v for k, v in kwargs.items() if k != "num_classes"},
            }
        config, unused = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, return_unused_kwargs=True, **kwargs
        )
        if unused:
            raise ConfigurationError(
                f"{named} of transformers has no setting {next(iter(unused))!r}", "see `model_kwargs`"
            )
        model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except AlphatuneError:
        raise
    except Exception as error:  # a library's many ways of saying no
        raise_if_machine_failed(error)
        raise UnsupportedModelError(
            f"{folder} holds {named}, of which transformers cannot build an image classifier: {one_line(error)}"
        ) from None
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"transformers built a {type(model).__name__} of {folder}, no network")
    return model.float()


def weights_file(folder: Path) -> Path:
    """The file with the weights.

    Raises:
        ConfigurationError: there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ConfigurationError(
        f"{folder} has no {' or '.join(WEIGHTS)}", "give the weights as `checkpoint=FILE`"
    )


def preprocessing_of_transformers(folder: Path) -> Preprocessing | None:
    """What preprocessor_config.json says, None where it says nothing that is known here."""
    values = _json(folder / PREPROCESSOR)
    with contextlib.suppress(KeyError, TypeError, ValueError, ConfigurationError):
        size = values["size"]
        if isinstance(size, int):
            size = {"shortest_edge": size}
        share, crop_mode = 1.0, "center"
        if "shortest_edge" in size:
            edge = int(size["shortest_edge"])
            crop = values.get("crop_size") if values.get("do_center_crop") else None
            crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
            wanted = (int(crop["height"]), int(crop["width"])) if crop else (edge, edge)
            if values.get("crop_pct"):  # of ConvNeXt: resized to edge / crop_pct, from 384 on squashed
                share, wanted = (float(values["crop_pct"]), (edge, edge))
                if edge >= 384:
                    share, crop_mode = 1.0, "squash"
            elif crop:
                share = min(wanted) / edge
        else:
            wanted, crop_mode = (int(size["height"]), int(size["width"])), "squash"
        mean, std = (tuple(map(float, values[key])) for key in ("image_mean", "image_std"))
        return Preprocessing(
            (len(mean), *wanted),
            mean,
            std,
            _RESAMPLE[int(values.get("resample", 2))],
            share,
            crop_mode,
        )
    return None


def write_config(model: nn.Module, folder: Path) -> None:
    """Write config.json, so that transformers reads the folder as well."""
    text = model.config.to_json_string()  # type: ignore[operator, union-attr]
    (folder / CONFIG).write_text(str(text), encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
