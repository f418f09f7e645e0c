"""result.json, and what it says of the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphatune.hashing import sha256
from alphatune.reports.serialisation import to_json

RESULT = "result.json"


def write_result(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Write result.json beside the files it names.

    Returns:
        The document with ``artifacts``: every other file of the folder and its
        subfolders with its hash. It is what result.json holds.
    """
    document = {**document, "artifacts": list_artifacts(folder)}
    (folder / RESULT).write_text(to_json(document) + "\n", encoding="utf-8")
    return document


def list_artifacts(folder: Path) -> list[dict[str, str]]:
    """Path and hash of every file but result.json, in the order of their paths."""
    paths = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return [{"path": path, "sha256": sha256(file)} for path, file in sorted(paths.items()) if path != RESULT]
