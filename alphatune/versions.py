"""Which torch some things need that most of alphatune does without: the one place where versions are compared."""

from __future__ import annotations

import re
from importlib import metadata

from alphatune.errors import ConfigurationError

#: the first torch whose torch.export leaves sizes open, and writes what it then has
EXPORTED_PROGRAM = "2.7"
#: the first torch whose ONNX exporter converts these programs
ONNX = "2.8"
#: the first torch that can run compiled code as plain Python for a while
UNCOMPILED = "2.6"


def is_at_least(package: str, oldest: str) -> bool:
    """Whether an installed package is of this version or newer; what is built from source counts as its release."""
    return _release(metadata.version(package)) >= _release(oldest)


def require_torch(oldest: str, what: str, hint: str) -> None:
    """Raise ConfigurationError where torch is older than what something needs."""
    if not is_at_least("torch", oldest):
        raise ConfigurationError(
            f"{what} needs torch {oldest} or newer; this is {metadata.version('torch')}", hint
        )


def _release(version: str) -> tuple[int, ...]:
    """``2.14.1+cpu`` -> (2, 14, 1)."""
    return tuple(int(n) for n in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]
