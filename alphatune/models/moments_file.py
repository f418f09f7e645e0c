"""The moments of calibrated layers, in a file beside the weights, whose keys stay the architecture's own.

    moments.safetensors   LAYER.running_mean and LAYER.running_var (C,), float32

``alphatune.json`` names its hash (bundle.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from alphatune.core.errors import CheckpointError, InputError, ResourceError
from alphatune.core.hashing import sha256
from alphatune.models.calibration import uncalibrate_
from alphatune.models.checkpoints import read_checkpoint
from alphatune.models.measurement import device_of
from alphatune.norms.calibrated import Calibrated
from alphatune.norms.surgery import become_calibrated_
from alphatune.norms.survey import survey

MOMENTS = "moments.safetensors"
_BUFFERS = ("running_mean", "running_var")


def write_moments(model: nn.Module, folder: Path) -> str:
    """Write the moments of all calibrated layers and verify them.

    Returns:
        The file's hash; "", and no file is written, where no layer is calibrated.

    Raises:
        ResourceError: what was written does not read back.
    """
    tensors = moments_of(model)
    if not tensors:
        return ""
    path = folder / MOMENTS
    path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    written = safetensors.torch.load_file(path)
    if written.keys() != tensors.keys() or not all(torch.equal(written[k], tensors[k]) for k in tensors):
        raise ResourceError(f"{path} does not read back as it was written")
    return sha256(path)


def moments_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the moments of all calibrated layers, by their keys in the file."""
    return {
        _key(name, buffer): getattr(module, buffer).detach().to("cpu", copy=True).contiguous()
        for name, module in model.named_modules()
        if isinstance(module, Calibrated)
        for buffer in _BUFFERS
    }


def restore_moments_(model: nn.Module, path: Path, expected_sha256: str) -> None:
    """Give a model that is not patched the moments in a file, and no others.

    Args:
        expected_sha256: the file's hash; "" for a model without calibrated layers.

    Raises:
        CheckpointError: the file is missing, corrupt or has changed.
        InputError: it does not fit the model.
    """
    uncalibrate_(model)
    if not expected_sha256:
        return
    checkpoint = read_checkpoint(path)
    if checkpoint.sha256 != expected_sha256:
        raise CheckpointError(f"{path} has changed since the folder was written")
    tensors = dict(checkpoint.containers[0].tensors)
    modules = dict(model.named_modules())
    given: list[tuple[nn.Module, Tensor, Tensor]] = []
    for layer in survey(model):
        if layer.status != "calibratable" or _key(layer.name, _BUFFERS[0]) not in tensors:
            continue
        mean, variance = (tensors.pop(_key(layer.name, buffer), None) for buffer in _BUFFERS)
        module: Any = modules[layer.name]
        channels = None if module.weight is None else module.weight.shape[0]
        if mean is None or variance is None or not _fits(mean, channels) or variance.shape != mean.shape:
            raise InputError(f"{path} has no moments that fit layer {layer.name or '(root)'}")
        given.append((module, mean, variance))
    if tensors:
        raise InputError(f"{path} has {next(iter(tensors))!r}, and the model no such layer to calibrate")
    for module, mean, variance in given:
        device = device_of(module, model)
        become_calibrated_(module, mean.to(device), variance.to(device))


def _fits(mean: Tensor, channels: int | None) -> bool:
    return mean.ndim == 1 and channels in (None, mean.shape[0])


def _key(layer: str, buffer: str) -> str:
    return f"{layer}.{buffer}" if layer else buffer
