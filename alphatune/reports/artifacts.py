"""result.json, and what it says of the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphatune.hashing import sha256
from alphatune.reports.serialisation import to_json


def write_result(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Write result.json beside the files it names.

    Returns:
        The document with ``artifacts``: every other file of the folder with its
        hash. It is what result.json holds.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    document = {**document, "artifacts": [{"path": f.name, "sha256": sha256(f)} for f in files]}
    (folder / "result.json").write_text(to_json(document) + "\n", encoding="utf-8")
    return document
