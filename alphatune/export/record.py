"""What an exported file says about itself: text by key, in ONNX's and safetensors' metadata and inside a .pt2."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from alphatune.core.version import VERSION
from alphatune.data.preprocessing import Preprocessing
from alphatune.export.output_file import MARK
from alphatune.models.bundle import Bundle
from alphatune.models.sources import format_model_kwargs
from alphatune.norms.patching import get_alpha


def export_record(
    model: nn.Module,
    bundle: Bundle,
    *,
    architecture: str,
    preprocessing: Preprocessing,
    num_classes: int | None,
    checkpoint_sha256: str,
    temperature_place: str,
) -> dict[str, str]:
    """The record of a model as it is written.

    Args:
        model: with its α.
        num_classes: None where nothing was run, and nobody knows.
        checkpoint_sha256: of the weights before alphatune, "" if that is not known.
        temperature_place: where the division by the temperature is; "" if there is none.
    """
    record = {
        MARK: VERSION,
        "torch_version": torch.__version__,
        "architecture": architecture,
        "model_kwargs": json.dumps(format_model_kwargs(bundle.model_kwargs)),
        "alpha": json.dumps(get_alpha(model)),
        "norm": json.dumps(bundle.norm),
        "temperature": f"{bundle.temperature!r}",
        "temperature_place": temperature_place,
        "preprocessing": json.dumps(preprocessing.to_dict()),
        "num_classes": "" if num_classes is None else str(num_classes),
        "tuned_weights_sha256": bundle.weights_sha256,
        "checkpoint_sha256": checkpoint_sha256,
    }
    return {key: value for key, value in record.items() if value}


def architecture_of(bundle: Bundle, timm_name: str = "") -> str:
    """The architecture by a name that means something elsewhere: no path of this machine."""
    if bundle.kind == "timm":
        return timm_name
    location, colon, name = bundle.spec.rpartition(":")
    return f"{Path(location).name}:{name}" if location.endswith(".py") else bundle.spec if colon else ""
