"""Read a file of weights, safely."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alphatune.core.errors import AlphatuneError, CheckpointError, UntrustedError
from alphatune.core.hashing import sha256
from alphatune.models.checkpoint_containers import NAMES, Container, container_at, find_containers
from alphatune.models.checkpoint_content import ASK, TORCHSCRIPT, Content, read_content
from alphatune.models.checkpoint_files import files_of_checkpoint
from alphatune.models.pickled_module import state_dict_of
from alphatune.pickles.pickle_records import grouped, shortened


@dataclass(frozen=True)
class Checkpoint:
    """A file's state dicts, and what was chosen among them by hand."""

    path: str
    sha256: str
    containers: tuple[Container, ...]  # in the order in which they are tried
    unsafe_pickle: bool = False
    prefix: str | None = None  # of the weights' keys; None: it is found
    warnings: tuple[str, ...] = ()  # what was passed over in the file, one line each


def read_checkpoint(
    path: str | Path, *, unsafe_pickle: bool = False, key: str | None = None, prefix: str | None = None
) -> Checkpoint:
    """Read the state dicts in a file of weights of any kind, or in a folder of several.

    No code in it runs. Objects that it would take code to make are kept as plain
    records. Only where no weights are found without, and ``unsafe_pickle`` allows it,
    the code in the file is run.

    Args:
        key: the path of keys to the state dict to take, ``""`` for the top of the file.
        prefix: what the keys of the weights begin with.

    Raises:
        UntrustedError: it takes code from the file to get at weights; its globals are named.
        CheckpointError: missing, corrupt, or without a state dict.
        ConfigurationError: there is none under ``key``.
    """
    path = str(path)
    try:
        content = read_content(path)
        containers = _containers(content, path, key)
    except AlphatuneError:
        if not unsafe_pickle:
            raise
        content = read_content(path, unsafe_pickle=True)
        containers = _containers(content, path, key)
    return Checkpoint(path, _sha256(path), tuple(containers), content.unsafe, prefix, _remarks(content, path))


def _containers(content: Content, path: str, key: str | None) -> list[Container]:
    """The state dicts that may be meant; raises what ``read_checkpoint`` does if there is none."""
    if state_dict_of(content.value) == {}:  # as torch.jit.freeze leaves it
        raise CheckpointError(
            f"the {content.kind} {path} has no weights by their names",
            "give the state dict of the model that it was made from",
        )
    if found := find_containers(content.value):
        return found if key is None else [container_at(content.value, key)]
    if content.passed_over:
        raise UntrustedError(
            f"no weights in {path} can be had without running code from it: it needs {grouped(content.passed_over)}",
            ASK,
        )
    if not isinstance(content.value, Mapping):
        raise CheckpointError(f"expected a state dict in {path}, got {type(content.value).__name__}")
    keys = ", ".join(repr(shortened(str(k))) for k in list(content.value)[:8])
    raise CheckpointError(
        f"no state dict in {path}: its keys are {keys or 'none'}",
        f"looked for tensors at the top and under {', '.join(NAMES[:-1])} and any other key",
    )


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
