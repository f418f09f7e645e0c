"""Which torch some things need that most of alphatune does without: the one place where versions are compared."""

from __future__ import annotations

import re
from importlib import metadata

from alphatune.core.errors import ConfigurationError

EXPORTED_PROGRAM = "exporting to .pt2"
ONNX = "exporting to ONNX"
COMPILED = "watching the layers of a compiled model"
#: the first torch that can do each
TORCH_FOR = {
    EXPORTED_PROGRAM: "2.7",  # torch.export leaves sizes open, and writes what it then has
    ONNX: "2.8",  # its exporter converts these programs
    COMPILED: "2.6",  # runs compiled code as plain Python for a while
}


def is_at_least(package: str, oldest: str) -> bool:
    """Whether an installed package is of this version or newer; what is built from source counts as its release."""
    return _release(metadata.version(package)) >= _release(oldest)


def torch_allows(what: str) -> bool:
    """Whether the installed torch is new enough for one of ``TORCH_FOR``."""
    return is_at_least("torch", TORCH_FOR[what])


def require_torch(what: str, hint: str) -> None:
    """Raise ConfigurationError where torch is too old for one of ``TORCH_FOR``."""
    if not torch_allows(what):
        installed = metadata.version("torch")
        raise ConfigurationError(f"{what} needs torch {TORCH_FOR[what]} or newer; this is {installed}", hint)


def _release(version: str) -> tuple[int, ...]:
    """``2.14.1+cpu`` -> (2, 14, 1)."""
    return tuple(int(n) for n in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]
