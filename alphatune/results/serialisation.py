"""A result as JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from alphatune.core.errors import NumericError
from alphatune.results.document import Part


def to_json(document: Part, *, for_pipe: bool = False) -> str:
    """Serialise, for a pipe on one line of ASCII; NaN, which is not JSON, raises NumericError."""
    plain = msgspec.to_builtins(document)
    try:
        return json.dumps(plain, indent=None if for_pipe else 2, allow_nan=False, ensure_ascii=for_pipe)
    except ValueError:
        raise NumericError(f"the result holds NaN or infinity at {_first_nan(plain)}") from None


def _first_nan(value: Any, path: str = "") -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return path or "the top"
    items: Any = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, inner in items:
        if found := _first_nan(inner, f"{path}.{key}" if path else str(key)):
            return found
    return ""
