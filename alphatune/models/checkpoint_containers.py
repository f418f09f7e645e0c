"""Where in a checkpoint file the weights may be.

Training programs put the state dict at the top, under a key of their own, or
several of them under several keys. All that could be meant are listed, in the
order in which they are tried: moving averages, then the usual names, then the
top of the file itself, then any other mapping that holds tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alphatune.core.errors import ConfigurationError
from alphatune.core.suggestions import did_you_mean
from alphatune.models.pickled_module import state_dict_of
from alphatune.pickles.pickle_records import Record

#: moving averages of the weights, in timm's order where timm has one
AVERAGES = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "ema_params",
    "model_ema_state_dict",
    "swa_state_dict",
    "shadow",
    "shadow_params",
)
#: other names in use
USUAL = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "teacher",
    "student",
    "module",
)
NAMES = (*AVERAGES, *USUAL)
DEPTH = 3  # containers within containers
#: state of an optimizer goes by the names of the weights, too, and is none
_NO_WEIGHTS = re.compile(r"optim|^grads?$|gradient|exp_avg|momentum_buffer|scheduler|scaler", re.IGNORECASE)


@dataclass(frozen=True)
class Container:
    """A state dict in a file: its tensors, and what stands among them that is none."""

    key: str  # the path to it, "" for the top of the file
    tensors: dict[str, Any]  # by name; a module's ``_extra_state`` may be anything
    other: tuple[str, ...] = ()  # names of values that are no tensors
    metadata: Mapping[str, Any] = field(default_factory=dict)  # torch's, by module: format versions

    @property
    def usual(self) -> bool:
        """Whether its name, or its place at the top, says that it holds the weights."""
        return not self.key or _rank(self.key) < len(NAMES)


def find_containers(content: Any) -> list[Container]:
    """All state dicts in a file's content, in the order in which they are to be tried."""
    found = list(_walk(content, (), DEPTH))
    usual = [pair for pair in found if not _NO_WEIGHTS.search(".".join(pair[0]))]
    order = sorted(usual, key=lambda pair: (_rank(".".join(pair[0])), len(pair[0])))
    return [container for _, container in order]


def container_at(content: Any, key: str) -> Container:
    """The state dict under a path of keys that was chosen by hand.

    Raises:
        ConfigurationError: there is none; those that there are are listed.
    """
    found = {container.key: container for _, container in _walk(content, (), 2 * DEPTH)}
    if key in found:
        return found[key]
    keys = ", ".join(repr(k) for k in list(found)[:12])
    raise ConfigurationError(
        f"the checkpoint has no weights under {key!r}; it has them under {keys or 'no key'}",
        did_you_mean(key, found) or "'' is the top of the file",
    )


def as_tensor(value: Any) -> Tensor | None:
    """A tensor, or a NumPy array as one; None for what is neither."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value.copy())
        except (TypeError, ValueError):  # dates, texts, foreign byte order
            return None
    return None


def _walk(value: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Container]]:
    module = state_dict_of(value)
    mapping: Any = value if module is None else module
    if module is None and isinstance(value, Record):  # a mapping of another class, or an object's attributes
        mapping = value.attributes
    if isinstance(mapping, (list, tuple)) and len(mapping) <= 16:
        mapping = {str(i): item for i, item in enumerate(mapping) if not isinstance(item, Tensor)}
    if not isinstance(mapping, Mapping):
        return
    if container := _container(mapping, ".".join(path)):
        yield path, container
    if depth and module is None:
        for key, inner in mapping.items():
            if isinstance(key, (str, int)) and not isinstance(inner, (Tensor, str)):
                yield from _walk(inner, (*path, str(key)), depth - 1)


def _container(mapping: Mapping[Any, Any], key: str) -> Container | None:
    tensors: dict[str, Any] = {}
    other = []
    for name, value in mapping.items():
        tensor = as_tensor(value)
        if tensor is not None and isinstance(name, str):
            tensors[name] = tensor
        elif isinstance(name, str) and name.endswith("_extra_state"):
            tensors[name] = value
        else:
            other.append(str(name))
    if not any(isinstance(value, Tensor) for value in tensors.values()):
        return None
    metadata = getattr(mapping, "_metadata", None)
    return Container(key, tensors, tuple(other), metadata if isinstance(metadata, Mapping) else {})


def _rank(key: str) -> int:
    """The place of a path in the order: by the first of the usual names that stands in it."""
    places = [NAMES.index(part) for part in key.lower().split(".") if part in NAMES]
    if places:
        return min(places)
    return len(NAMES) + bool(key)  # the top, then all others
