"""The images that an export is checked on: real ones wherever they can be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphatune.core.errors import AlphatuneError, InputError
from alphatune.core.toml import tomllib
from alphatune.data.datasets import open_data, opens_by_name
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.jobs.preparation import Preparation
from alphatune.results.data import ScoredData
from alphatune.results.stored import read_tuned
from alphatune.settings import ExportSettings

#: where a run.toml says which images they are, and how they are read
_HOW = ("split", "split_seed", "data_root", "input_key", "target_key", "decoder", "max_pixels")


@dataclass(frozen=True)
class CheckImages:
    """Normalised images (N, C, H, W), and where they came from."""

    images: Tensor
    source: str  # "random" for noise
    remark: str = ""
    announcement: tuple[str, ...] = ()  # how they are prepared


def open_check_images(settings: ExportSettings, preparation: Preparation) -> CheckImages:
    """Images of ``data``; without it of what the folder was tuned on, if that is still there; else noise.

    Raises:
        AlphatuneError: ``data`` cannot be read, in the kind that says why.
    """
    if settings.data is not None:
        how = {name: getattr(settings, name) for name in _HOW}
        return _read(settings, settings.data, how, preparation)
    named = _tuned_on(Path(settings.model))
    data = named.get("data")
    if named.get("score") or not isinstance(data, str):
        reason = "the folder does not say which images it was tuned on"
    elif not _is_there(data, named.get("data_root")):
        reason = f"{data}, which the folder was tuned on, is not there"
    else:
        how = {name: named.get(name, getattr(settings, name)) for name in _HOW}
        try:
            return _read(settings, data, how, preparation)
        except AlphatuneError as error:
            reason = f"{data}, which the folder was tuned on, cannot be read ({error.message})"
    noise = random_images(settings, preparation.preprocessing)
    return CheckImages(noise, "random", f"checked on random images: {reason}; `data` names real ones")


def random_images(settings: ExportSettings, preprocessing: Preprocessing) -> Tensor:
    """Noise in the place of normalised images."""
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randn((settings.check_images, *preprocessing.input_size), generator=generator)


def _read(
    settings: ExportSettings, data: str, how: Mapping[str, Any], preparation: Preparation
) -> CheckImages:
    preprocessing = preparation.preprocessing
    examples = open_data(
        data,
        split=how["split"],
        data_root=how["data_root"],
        labelled=False,
        image_mode=preprocessing.image_mode,
        input_key=how["input_key"],
        target_key=how["target_key"],
        split_seed=how["split_seed"],
    )
    examples = (
        examples.decoded_by(how["decoder"])
        .at_most(how["max_pixels"])
        .limit(settings.check_images, settings.seed)
    )
    announcement = preparation.check(examples)
    batches = Batches(examples, preprocessing, batch_size=len(examples), device=torch.device("cpu"))
    images = torch.cat([batch.inputs for batch in batches])
    return CheckImages(images, data, announcement=announcement)


def _tuned_on(folder: Path) -> dict[str, Any]:
    """What run.toml, or else result.json, says about the images; empty where neither can be read."""
    try:
        return tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    try:
        data = read_tuned(folder).data
    except InputError:
        return {}
    return {} if isinstance(data, ScoredData) else {"data": data.source, "split": data.split or None}


def _is_there(data: str, root: Any) -> bool:
    """Whether data lie on this machine: nothing is fetched for a check."""
    if isinstance(root, str) and (opens_by_name(data, root) or data.partition("/")[0].lower() == "torch"):
        return Path(root).exists()
    return Path(data).exists() or Path(data.partition("/")[2] or data).exists()
