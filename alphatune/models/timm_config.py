"""The config.json of timm's hub layout, for the weights as they are: whatever timm is installed, they load again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models._hub import save_config_for_hf  # the one piece of save_for_hf that writes no weights
from torch import nn

from alphatune.data.preprocessing import Preprocessing

#: of the weights that a model came with, and not of those that are written
_OF_THE_SOURCE = ("test_input_size", "test_crop_pct", "test_pool_size", "label_offset")


def write_timm_config(
    model: nn.Module, path: Path, model_kwargs: Mapping[str, Any], preprocessing: Preprocessing | None
) -> None:
    """Write the config.json of a timm model.

    Args:
        model_kwargs: arguments that timm.create_model was given beside the name.
    """
    data = None if preprocessing is None else preprocessing.to_dict()
    if "data_config" in inspect.signature(save_config_for_hf).parameters:  # from timm 1.0.31
        save_config_for_hf(model, str(path), data_config=data)
        return
    save_config_for_hf(model, path, model_args=dict(model_kwargs) or None)
    config = json.loads(path.read_text(encoding="utf-8"))
    weights = {k: v for k, v in config["pretrained_cfg"].items() if data is None or k not in _OF_THE_SOURCE}
    weights |= {**(data or {}), "num_classes": config["num_classes"], "custom_load": False}
    if model_kwargs.get("in_chans", 3) != 3:
        weights["first_conv"] = None  # timm would take its weights to be of colour images, and adapt them
    path.write_text(json.dumps(config | {"pretrained_cfg": weights}, indent=2), encoding="utf-8")
