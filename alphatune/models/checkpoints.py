"""Read weights safely and fit them to an architecture."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from alphatune.errors import CheckpointError, NumericError, UntrustedError, one_line
from alphatune.hashing import sha256
from alphatune.models.checkpoint_content import ASK, TORCHSCRIPT, Content, read_content
from alphatune.models.checkpoint_files import files_of_checkpoint
from alphatune.models.pickle_records import grouped, shortened
from alphatune.models.pickled_module import state_dict_of

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
    warnings: tuple[str, ...] = ()  # what was passed over in the file, one line each


def read_checkpoint(path: str | Path, *, unsafe_pickle: bool = False) -> Checkpoint:
    """Read a state dict from a file of weights of any kind, or from a folder of several.

    No code in it runs. Objects that it would take code to make are kept as plain
    records. Only where no weights are found without, and ``unsafe_pickle`` allows it,
    the code in the file is run.

    Raises:
        UntrustedError: it takes code from the file to get at weights; its globals are named.
        CheckpointError: missing, corrupt, or without a state dict.
    """
    path = str(path)
    try:
        content = read_content(path)
        state_dict, key = _find_state_dict(content, path)
    except (CheckpointError, UntrustedError):
        if not unsafe_pickle:
            raise
        content = read_content(path, unsafe_pickle=True)
        state_dict, key = _find_state_dict(content, path)
    return Checkpoint(path, _sha256(path), key, state_dict, content.unsafe, _remarks(content, path))


def _sha256(path: str) -> str:
    """The hash of a file; of an index the hash of the hashes of all its files, in their order."""
    hashes = [sha256(file) for file in files_of_checkpoint(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _remarks(content: Content, path: str) -> tuple[str, ...]:
    lines = []
    if content.kind.startswith(TORCHSCRIPT):
        lines.append(f"{path} is a {content.kind}: its weights were read, its code was not run")
    if content.passed_over:
        lines.append(f"{path} names code that was not run: {grouped(content.passed_over)}")
    return tuple(lines)


def load_weights_(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint strictly: every key must match, in name and shape.

    Raises:
        CheckpointError: keys or shapes of another architecture.
        NumericError: a weight that is NaN or infinite.
    """
    expected = model.state_dict()
    weights = _match_prefix(checkpoint.state_dict, expected)
    _check_keys(weights, expected, checkpoint.path)
    # Parameters only: a buffer may be a mask of -inf, and health.py looks at moving averages.
    for name, _ in model.named_parameters(remove_duplicate=False):
        if not _is_finite(weights[name]):
            raise NumericError(f"{name} in {checkpoint.path} holds NaN or infinity")
    # A counter that inference never reads, and that old checkpoints lack.
    counters = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    complete = OrderedDict((k, v) for k, v in {**counters, **weights}.items() if k in expected)
    # The layers' format versions, which files of tensors do not keep and torchvision's MNASNet insists on.
    complete._metadata = expected._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(complete, strict=True)
    except (RuntimeError, ValueError) as error:
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
    expected = model.state_dict()
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


def _find_state_dict(content: Content, path: str) -> tuple[dict[str, Tensor], str]:
    value = content.value
    if (whole := state_dict_of(value)) is not None:
        if not whole:  # as torch.jit.freeze leaves it
            raise CheckpointError(
                f"the {content.kind} {path} has no weights by their names",
                "give the state dict of the model that it was made from",
            )
        return whole, "(pickled module)"
    if isinstance(value, Mapping):
        for key in CONTAINERS:
            inner = value.get(key)
            found = state_dict_of(inner)
            if found is None and isinstance(inner, Mapping) and _is_state_dict(inner):
                found = _tensors(inner)
            if found is not None:
                return found, key
        if _is_state_dict(value):
            return _tensors(value), ""
    if content.passed_over:
        raise UntrustedError(
            f"no weights in {path} can be had without running code from it: it needs {grouped(content.passed_over)}",
            ASK,
        )
    if isinstance(value, Mapping):
        keys = ", ".join(repr(shortened(str(k))) for k in list(value)[:8])
        raise CheckpointError(
            f"no state dict in {path}: its keys are {keys or 'none'}",
            f"looked for tensors at the top and under: {', '.join(CONTAINERS)}",
        )
    raise CheckpointError(f"expected a state dict in {path}, got {type(value).__name__}")


def _is_state_dict(mapping: Mapping[Any, Any]) -> bool:
    return any(isinstance(k, str) and isinstance(v, Tensor) for k, v in mapping.items())


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}


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
