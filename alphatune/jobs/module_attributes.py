"""The numbers and texts that a model keeps beside its weights, for the key of a result.

A factory may have read them from anywhere, and neither ``state_dict`` nor ``repr`` need show them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

#: how far objects are followed: settings within settings, not the whole program
_DEPTH = 4


def plain_values(model: nn.Module) -> str:
    """The attributes of all modules that are numbers, texts, or containers or objects of them, as text."""
    return repr([(name, _plain(vars(module), _DEPTH)) for name, module in model.named_modules()])


def _plain(value: Any, depth: int) -> Any:
    """What is left of a value without all that has no text that lasts; None where that is nothing."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if depth == 0 or callable(value) or isinstance(value, (Tensor, nn.Module)):
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    items = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return sorted((repr(k), _plain(v, depth - 1)) for k, v in items.items() if isinstance(k, (str, int)))
