"""Read a file of weights, safely."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from alphatune.errors import CheckpointError, UntrustedError, one_line
from alphatune.hashing import sha256
from alphatune.models.checkpoint_containers import NAMES, Container, container_at, find_containers
from alphatune.suggestions import did_you_mean_path

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".tar", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A file's state dicts, and what was chosen among them by hand."""

    path: str
    sha256: str
    containers: tuple[Container, ...]  # in the order in which they are tried
    unsafe_pickle: bool = False
    prefix: str | None = None  # of the weights' keys; None: it is found


def read_checkpoint(
    path: str | Path, *, unsafe_pickle: bool = False, key: str | None = None, prefix: str | None = None
) -> Checkpoint:
    """Read the state dicts from .safetensors or from torch.save's formats.

    Unpickling is restricted to tensors and plain containers; a file that needs
    more is refused, unless ``unsafe_pickle`` allows the code in it to run.

    Args:
        key: the path of keys to the state dict to take, ``""`` for the top of the file.
        prefix: what the keys of the weights begin with.

    Raises:
        UntrustedError: reading the file would run code; its globals are named.
        CheckpointError: missing, corrupt, or without a state dict.
        ConfigurationError: there is none under ``key``.
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
    containers = find_containers(content) if key is None else [container_at(content, key)]
    if not containers:
        raise _without_weights(content, path)
    return Checkpoint(str(path), sha256(path), tuple(containers), unsafe, prefix)


def _without_weights(content: Any, path: Path) -> CheckpointError:
    if not isinstance(content, Mapping):
        return CheckpointError(f"expected a state dict in {path}, got {type(content).__name__}")
    keys = ", ".join(repr(str(k)) for k in list(content)[:8])
    return CheckpointError(
        f"no state dict in {path}: its keys are {keys or 'none'}",
        f"looked for tensors at the top and under {', '.join(NAMES[:-1])} and any other key",
    )


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
