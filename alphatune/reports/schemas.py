"""JSON Schemas of what the commands print, Draft 2020-12, one a file in ``schema/``.

The files refer to each other by relative references, ``common.json#/$defs/metrics``,
as tools that are given a file resolve them. ``read_schema`` gives one object that
stands alone: what it needs of other files is among its own ``$defs``, as
``FILE.NAME``.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from alphatune.errors import ConfigurationError

COMMON = "common"


def schema_names() -> tuple[str, ...]:
    """The ``command`` of each object that there is a schema for, and ``error`` for a failure."""
    files = (entry.name for entry in _folder().iterdir())
    names = (name.removesuffix(".json") for name in files if name.endswith(".json"))
    return tuple(sorted(name for name in names if name != COMMON))


def read_schema(name: str) -> dict[str, Any]:
    """The schema of the object that a command prints, complete in itself.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in schema_names():
        raise ConfigurationError(f"there is no schema of {name!r}", f"one of: {', '.join(schema_names())}")
    root = _read(name)
    own = root.pop("$defs", {})
    definitions: dict[str, Any] = {}
    schema: dict[str, Any] = _resolved(root, name, name, definitions)
    for key, value in own.items():
        definitions[key] = _resolved(value, name, name, definitions)
    return {**schema, "$defs": dict(sorted(definitions.items()))} if definitions else schema


def _resolved(value: Any, file: str, root: str, definitions: dict[str, Any]) -> Any:
    """A part of ``file`` with references inside of the root, whose definitions gain what is referred to."""
    if isinstance(value, list):
        return [_resolved(item, file, root, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _reference(item, file, root, definitions)
        if key == "$ref"
        else _resolved(item, file, root, definitions)
        for key, item in value.items()
    }


def _reference(reference: str, file: str, root: str, definitions: dict[str, Any]) -> str:
    target, _, pointer = reference.partition("#/$defs/")
    target = target.removesuffix(".json") or file
    if target == root and pointer:
        return f"#/$defs/{pointer}"
    name = f"{target}.{pointer}" if pointer else target
    if name not in definitions:
        definitions[name] = {}  # which ends a definition that refers to itself
        other = _read(target)
        part = other["$defs"][pointer] if pointer else {k: v for k, v in other.items() if k[0] != "$"}
        definitions[name] = _resolved(part, target, root, definitions)
    return f"#/$defs/{name}"


def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return document


def _folder() -> Any:
    return resources.files("alphatune") / "reports" / "schema"
