"""A result as JSON."""

from __future__ import annotations

import json
import math
from typing import Any

from alphatune.errors import NumericError


def to_json(document: dict[str, Any], *, for_pipe: bool = False) -> str:
    """Serialise, for a pipe on one line of ASCII; NaN, which is not JSON, raises NumericError."""
    try:
        return json.dumps(document, indent=None if for_pipe else 2, allow_nan=False, ensure_ascii=for_pipe)
    except ValueError:
        raise NumericError(f"the result holds NaN or infinity at {_first_nan(document)}") from None


def _first_nan(value: Any, path: str = "") -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return path or "the top"
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in items:
        if found := _first_nan(inner, f"{path}.{key}" if path else str(key)):
            return found
    return ""
