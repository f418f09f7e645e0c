"""Read weights safely and fit them to an architecture."""

from __future__ import annotations

import argparse
import math
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.models import clean_state_dict
from torch import Tensor, nn

from alphatune.errors import CheckpointError, NumericError, UntrustedError, one_line, raise_if_machine_failed
from alphatune.hashing import sha256
from alphatune.models.weights import left_out
from alphatune.suggestions import did_you_mean_path

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".tar", ".ckpt")
#: where training programs put the weights; moving averages of them come first,
#: in timm's order. Which one was taken is always reported.
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
)
#: wrappers that put a prefix before every key, beside those timm removes
PREFIXES = ("model.", "net.", "network.", "module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """Weights and where in the file they were."""

    path: str
    sha256: str
    weights_key: str  # container key, "" when the file is the state dict itself
    state_dict: dict[str, Tensor]
    unsafe_pickle: bool = False


def read_checkpoint(path: str | Path, *, unsafe_pickle: bool = False) -> Checkpoint:
    """Read a state dict from .safetensors or from torch.save's formats.

    Unpickling is restricted to tensors and plain containers; a file that needs
    more is refused, unless ``unsafe_pickle`` allows the code in it to run.

    Raises:
        UntrustedError: reading the file would run code; its globals are named.
        CheckpointError: missing, corrupt, or without a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint file: {path}", did_you_mean_path(path))
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"expected a checkpoint ending in {', '.join(SUFFIXES)}, got {path.name}",
        )
    content, unsafe = _read(path, unsafe_pickle)
    _check_sums(path)
    state_dict, key = _find_state_dict(content, path)
    return Checkpoint(str(path), sha256(path), key, state_dict, unsafe)


def load_weights_(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint strictly: every key must match, in name and shape.

    Raises:
        CheckpointError: keys or shapes of another architecture.
        NumericError: a weight that is NaN or infinite.
    """
    state = model.state_dict()
    expected = {key: value for key, value in state.items() if torch.is_tensor(value)}
    unsaved = left_out(model, state)  # in files that are our own; others may do without
    weights = dict(_match_prefix(checkpoint.state_dict, expected))
    beside = {key: weights.pop(key) for key in unsaved if key in weights}
    _check_keys(weights, expected, checkpoint.path)
    _check_keys(beside, {key: unsaved[key] for key in beside}, checkpoint.path)
    # Parameters only: a buffer may be a mask of -inf, and health.py looks at moving averages.
    for name, _ in model.named_parameters(remove_duplicate=False):
        if (weight := weights.get(name, beside.get(name))) is not None and not _is_finite(weight):
            raise NumericError(f"{name} in {checkpoint.path} holds NaN or infinity")
    # A counter that inference never reads, and that old checkpoints lack.
    counters = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    complete = OrderedDict((k, v) for k, v in {**counters, **weights}.items() if k in expected)
    complete.update(
        (key, value) for key, value in state.items() if key not in expected
    )  # extra state, as it is
    # The layers' format versions, which files of tensors do not keep and torchvision's MNASNet insists on.
    complete._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    try:
        model.load_state_dict(complete, strict=True)
        with torch.no_grad():
            for key, tensor in beside.items():
                unsaved[key].copy_(tensor)
    except Exception as error:  # of an override, anything
        raise_if_machine_failed(error)
        raise CheckpointError(f"cannot load {checkpoint.path}: {one_line(error)}") from None


def _is_finite(weight: Tensor) -> bool:
    """Whether no value is NaN or infinite; without the copies that torch.isfinite makes of a large tensor."""
    floats = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    if weight.numel() == 0 or weight.dtype not in floats:
        return bool(torch.isfinite(weight).all())
    extremes = torch.aminmax(weight.detach())  # NaN goes through both
    return all(math.isfinite(extreme.item()) for extreme in extremes)


def load_body_(model: nn.Module, checkpoint: Checkpoint, num_classes: int) -> tuple[str, ...]:
    """Load a checkpoint into a model whose head has another number of classes.

    Weights of the head, told by a first dimension of ``num_classes`` where the
    checkpoint has another, stay as they are: newly made. All others must match.

    Returns:
        The names of the weights that were not loaded.

    Raises:
        CheckpointError, NumericError: as ``load_weights_`` does.
    """
    expected = {key: value for key, value in model.state_dict().items() if torch.is_tensor(value)}
    weights = _match_prefix(checkpoint.state_dict, expected)
    head = [
        name
        for name, tensor in weights.items()
        if name in expected
        and tensor.shape != expected[name].shape
        and tensor.shape[1:] == expected[name].shape[1:]
        and expected[name].shape[0] == num_classes
    ]
    weights |= {name: expected[name] for name in head}
    load_weights_(model, replace(checkpoint, state_dict=weights))
    return tuple(head)


def _read(path: Path, unsafe_pickle: bool) -> tuple[Any, bool]:
    """The file's content, and whether it took unrestricted unpickling to get it."""
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path), False
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"corrupt safetensors file {path}: {error}") from None
    try:
        return _torch_load(path, weights_only=True), False
    except pickle.UnpicklingError as error:
        names = _unsafe_globals(path) or re.findall(r"GLOBAL (\S+)", str(error))
        if not names and "Unsupported" not in str(error) and "WeightsUnpickler" not in str(error):
            raise CheckpointError(f"corrupt checkpoint {path}: {one_line(error)}") from None
        if not unsafe_pickle:
            needs = f"the globals {', '.join(names)}" if names else "more than plain tensors"
            raise UntrustedError(
                f"reading {path} would run code from the file: it needs {needs}",
                "ask for a .safetensors file; --unsafe-pickle runs the code if you trust its author",
            ) from None
    except Exception as error:  # on corrupt bytes torch's unpickler raises struct.error, KeyError, ...
        raise CheckpointError(f"corrupt checkpoint {path}: {one_line(error)}") from None
    try:
        return _torch_load(path, weights_only=False), True
    except Exception as error:  # arbitrary code from the file may raise anything
        raise CheckpointError(f"cannot unpickle {path}: {type(error).__name__}: {one_line(error)}") from None


def _check_sums(path: Path) -> None:
    """Compare the parts of a zip file with their checksums, which torch.load does not look at.

    The legacy format and safetensors have none.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC == 0:  # torch.save may be told to leave them out
                    continue
                with archive.open(part) as file:
                    while file.read(1 << 20):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise CheckpointError(f"corrupt checkpoint {path}: {one_line(error)}") from None


def _torch_load(path: Path, weights_only: bool) -> Any:
    # timm's training script stores its arguments beside the weights: a plain record.
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=weights_only)


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # legacy formats and corrupt files; the caller has its own message
        return []


def _find_state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    if isinstance(content, nn.Module):  # a whole pickled model, allowed by --unsafe-pickle
        return content.state_dict(), "(pickled module)"
    if isinstance(content, Mapping):
        for key in CONTAINERS:
            inner = content.get(key)
            if isinstance(inner, nn.Module):
                return inner.state_dict(), key
            if isinstance(inner, Mapping) and _is_state_dict(inner):
                return dict(inner), key
        if _is_state_dict(content):
            return dict(content), ""
        keys = ", ".join(repr(str(k)) for k in list(content)[:8])
        raise CheckpointError(
            f"no state dict in {path}: its keys are {keys or 'none'}",
            f"looked for tensors at the top and under: {', '.join(CONTAINERS)}",
        )
    raise CheckpointError(f"expected a state dict in {path}, got {type(content).__name__}")


def _is_state_dict(mapping: Mapping[Any, Any]) -> bool:
    return bool(mapping) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in mapping.items())


def _match_prefix(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove a wrapper's prefix (DDP, torch.compile, Lightning) if the keys do not fit as they are."""
    if weights.keys() & expected.keys():
        return weights
    weights = clean_state_dict(weights)
    if weights.keys() & expected.keys():
        return weights
    for prefix in PREFIXES:
        stripped = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        if stripped.keys() & expected.keys():
            return stripped
    return weights


def _check_keys(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str) -> None:
    missing = [k for k in expected if k not in weights and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in weights if k not in expected and not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of {len(expected)} keys are missing, e.g. {missing[0]!r}")
        if unexpected:
            parts.append(f"{len(unexpected)} are unknown to the model, e.g. {unexpected[0]!r}")
        raise CheckpointError(
            f"{path} is a checkpoint of another architecture: {'; '.join(parts)}",
            "name the architecture it was trained with as MODEL",
        )
    for key, tensor in expected.items():
        if key in weights and weights[key].shape != tensor.shape:
            hint = "name the architecture it was trained with as MODEL"
            if tensor.ndim <= 2 and weights[key].shape[1:] == tensor.shape[1:]:
                hint = f"another number of classes? try --model-kwargs num_classes={weights[key].shape[0]}"
            raise CheckpointError(
                f"{path} does not fit the model: {key} has shape {tuple(weights[key].shape)}, "
                f"the model expects {tuple(tensor.shape)}",
                hint,
            )
