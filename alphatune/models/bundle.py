"""The tuned folder: written atomically, read back as a ready module.

    model.safetensors   weights under the architecture's own keys; stock code
                        that loads them gets the model at α = 0
    moments.safetensors moments of layers that keep no moving averages, where they
                        were calibrated (moments_file.py)
    config.json         timm's hub layout, where the architecture is timm's
    alphatune.json      architecture, α per layer, temperature, layers that are
                        batch-group or GroupNorm, preprocessing, provenance

A model trained with Ghost BatchNorm or batch renormalisation infers as
BatchNorm does and is written, and read back, as the stock architecture. So
does a batch-group model in stock code, as its moving averages are written as
they are pooled at inference; GroupNorm layers do not, there they
normalise by their moving averages.

Reports join them there (reports/). Reading a folder runs no code that it
names, unless ``trust_code`` allows it; alphatune's own architectures excepted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from alphatune.core.errors import (
    CheckpointError,
    ConfigurationError,
    InputError,
    ResourceError,
    UnsupportedModelError,
    UntrustedError,
    one_line,
)
from alphatune.core.hashing import sha256
from alphatune.core.version import VERSION
from alphatune.data.preprocessing import Preprocessing
from alphatune.evaluation.reading import (
    Reading,
    keep_reading_,
    kept_reading,
    reading_from_dict,
    reading_to_dict,
)
from alphatune.kernels.moments import average_over_groups
from alphatune.models.architecture import find_source
from alphatune.models.checkpoint_loading import load_weights_
from alphatune.models.checkpoints import read_checkpoint
from alphatune.models.foreign import materialise_, unwrapped
from alphatune.models.model_kwargs import Kwargs
from alphatune.models.moments_file import MOMENTS, restore_moments_, write_moments
from alphatune.models.output import MANIFEST, is_bundle, staged
from alphatune.models.sources import TRUSTED_FACTORIES, Source, build, format_model_kwargs, parse_model_kwargs
from alphatune.models.temperature import get_temperature, set_temperature_
from alphatune.models.timm_config import write_timm_config
from alphatune.models.transformers_folder import write_config
from alphatune.models.weights import weights_of
from alphatune.norms.conversion import apply_layer_settings_, layer_settings
from alphatune.norms.patching import Alpha, all_but, get_alpha, patch_, unpatch_
from alphatune.norms.survey import survey
from alphatune.results.document import SCHEMA

WEIGHTS, TIMM_CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Bundle:
    """What ``alphatune.json`` says."""

    folder: Path
    spec: str
    kind: str  # timm | torchvision | factory | module
    model_kwargs: Kwargs
    alpha: dict[str, Alpha]
    norm: dict[str, dict[str, Any]]  # layers that are no BatchNorm: kind and settings by name
    weights_sha256: str
    preprocessing: Preprocessing | None
    temperature: float = 1.0
    moments_sha256: str = ""  # "" where no layer is calibrated
    reading: Reading | None = None  # which output are the logits; None where nothing was run


def load(
    folder: str | os.PathLike[str], *, model: nn.Module | None = None, trust_code: bool = False
) -> nn.Module:
    """Read a tuned folder: the model in eval mode, patched, with its α.

    Args:
        folder: what ``alphatune tune`` or ``save`` wrote.
        model: an instance of the architecture, where the folder does not know
            how to build it (``save`` of a model of your own).
        trust_code: allow importing the module that the folder names.

    Raises:
        InputError: not a tuned folder, or a damaged one.
        UntrustedError: the architecture is code of somebody's own.
    """
    bundle = read_bundle(folder)
    if model is None:
        model = build_bundled(bundle, trust_code=trust_code).model
    restore_(model, bundle)
    return model


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    source: Source | None = None,
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model, with the α it is patched with, as a tuned folder.

    Args:
        source: how it was built; of a model of timm, torchvision or transformers that is found out.
        preprocessing: of its images; of timm's models that is found out.

    Raises:
        ConfigurationError: the folder exists, or is no place to write to.
        ResourceError: the disk refused.
    """
    model, _ = unwrapped(model)
    source = source or find_source(model)
    preprocessing = preprocessing or (source.preprocessing if source else None)
    with staged(folder, overwrite=overwrite) as stage:
        write_model(model, stage, source=source, preprocessing=preprocessing)
    return Path(folder)


def write_model(
    model: nn.Module, folder: Path, *, source: Source | None, preprocessing: Preprocessing | None
) -> None:
    """Write weights, configuration and manifest into an existing folder, and verify them."""
    state = _pooled(state_to_write(model), layer_settings(model))
    # Not save_file: it makes a file that only its owner can read, whatever the umask.
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))
    if source is not None and source.kind == "timm":
        write_timm_config(model, folder / TIMM_CONFIG, source.model_kwargs, preprocessing)
    if source is not None and source.kind == "transformers":
        write_config(model, folder)
    manifest = {
        "schema": SCHEMA,
        "alphatune": VERSION,
        "source": {
            "spec": source.spec if source else "",
            "kind": source.kind if source else "module",
            "model_kwargs": format_model_kwargs(source.model_kwargs) if source else [],
        },
        "alpha": get_alpha(model),
        "norm": layer_settings(model),
        "temperature": get_temperature(model),
        "output": reading_to_dict(kept_reading(model)),
        "preprocessing": preprocessing.to_dict() if preprocessing else None,
        "weights_sha256": sha256(folder / WEIGHTS),
        "moments_sha256": write_moments(model, folder),
    }
    try:
        text = json.dumps(manifest, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"model arguments cannot be written as JSON: {error}") from None
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    _verify(folder, state)


def _pooled(state: dict[str, torch.Tensor], norm: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Weights whose moving averages are pooled where layers pool them at inference: stock code that loads them
    infers in the same way."""
    for name, settings in norm.items():
        keys = [f"{name}.{buffer}".lstrip(".") for buffer in ("running_mean", "running_var")]
        if all(key in state for key in keys):
            mean, variance = keys
            pooled = average_over_groups(state[mean], state[variance], settings["num_groups"])
            state |= {mean: pooled[0].contiguous(), variance: pooled[1].contiguous()}
    return state


def state_to_write(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of each weight: safetensors refuses shared and strided storage, and with
    every key present stock code can load strictly."""
    return {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in weights_of(model).items()
    }


def read_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read ``alphatune.json``; raises InputError if it is not what ``save`` writes."""
    path = Path(folder)
    if not is_bundle(path):
        raise InputError(f"{path} is not a folder that alphatune wrote: it has no {MANIFEST}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise InputError(
                f"{path / MANIFEST} has schema {manifest['schema']!r}, this version reads {SCHEMA}",
                "pip install --upgrade alphatune",
            )
        source, preprocessing = manifest["source"], manifest["preprocessing"]
        return Bundle(
            folder=path,
            spec=str(source["spec"]),
            kind=str(source["kind"]),
            model_kwargs=parse_model_kwargs([str(pair) for pair in source["model_kwargs"]]),
            alpha={str(name): _alpha(value) for name, value in manifest["alpha"].items()},
            norm={str(name): dict(values) for name, values in manifest.get("norm", {}).items()},
            weights_sha256=str(manifest["weights_sha256"]),
            preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            temperature=float(manifest.get("temperature", 1.0)),
            moments_sha256=str(manifest.get("moments_sha256", "")),
            reading=reading_from_dict(manifest.get("output")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigurationError) as error:
        raise InputError(f"damaged {path / MANIFEST}: {type(error).__name__}: {one_line(error)}") from None


def build_bundled(bundle: Bundle, *, trust_code: bool = False) -> Source:
    """Build the architecture a folder names, without weights."""
    if bundle.kind == "timm":
        built = build(f"local-dir:{bundle.folder}", pretrained=False, model_kwargs=bundle.model_kwargs)
        return Source(bundle.spec, "timm", built.model, bundle.model_kwargs, bundle.preprocessing)
    if bundle.kind == "transformers":
        built = build(f"local-dir:{bundle.folder}", pretrained=False, model_kwargs=bundle.model_kwargs)
        return Source(bundle.spec, "transformers", built.model, bundle.model_kwargs, bundle.preprocessing)
    if bundle.kind == "module":
        raise ConfigurationError(
            f"{bundle.folder} holds the weights of a model of your own",
            "alphatune.load(folder, model=YourModel()) rebuilds it",
        )
    if bundle.kind == "torchvision" and not bundle.spec.startswith("torchvision:"):
        raise InputError(f"damaged {bundle.folder / MANIFEST}: {bundle.spec!r} is no torchvision model")
    if bundle.kind != "torchvision" and bundle.spec not in TRUSTED_FACTORIES and not trust_code:
        raise UntrustedError(
            f"{bundle.folder} names code of its own as the architecture: {bundle.spec}",
            "`trust_code` imports it",
        )
    built = build(bundle.spec, pretrained=False, model_kwargs=bundle.model_kwargs)
    return Source(bundle.spec, built.kind, built.model, bundle.model_kwargs, bundle.preprocessing)


def restore_(model: nn.Module, bundle: Bundle) -> None:
    """Load a folder's weights into a model and patch it with the folder's α."""
    checkpoint = read_checkpoint(bundle.folder / WEIGHTS)
    if checkpoint.sha256 != bundle.weights_sha256:
        raise CheckpointError(f"{bundle.folder / WEIGHTS} has changed since {MANIFEST} was written")
    size = (bundle.preprocessing or Preprocessing()).input_size
    materialise_(model, size, weights_follow=True, spec=bundle.spec or "the model")
    load_weights_(model, checkpoint)
    model.eval()
    unpatch_(model)
    keep_reading_(model, bundle.reading)
    try:
        apply_layer_settings_(model, bundle.norm)
        set_temperature_(model, bundle.temperature)
    except (ConfigurationError, UnsupportedModelError) as error:
        raise InputError(f"{bundle.folder / MANIFEST} does not fit the model: {error.message}") from None
    restore_moments_(model, bundle.folder / MOMENTS, bundle.moments_sha256)
    if bundle.alpha:
        names = [layer.name for layer in survey(model)]
        if missing := [name for name in bundle.alpha if name not in names]:
            raise InputError(
                f"{bundle.folder / MANIFEST} names the layer {missing[0]!r}, which the model lacks"
            )
        patch_(model, bundle.alpha, exclude=all_but(model, bundle.alpha))


def _verify(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    written = safetensors.torch.load_file(folder / WEIGHTS)
    if written.keys() != state.keys() or not all(torch.equal(written[k], state[k]) for k in state):
        raise ResourceError(f"{folder / WEIGHTS} does not read back as it was written")


def _alpha(value: Any) -> Alpha:
    return torch.tensor(value, dtype=torch.float32) if isinstance(value, list) else float(value)
