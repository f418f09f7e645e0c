"""result.json, and what it says of the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from alphatune.core.hashing import sha256
from alphatune.results.document import Artifact
from alphatune.results.serialisation import to_json
from alphatune.results.stored import RESULT
from alphatune.results.training import TrainDocument
from alphatune.results.tune import ScoreTuneDocument, TuneDocument

_D = TypeVar("_D", TuneDocument, ScoreTuneDocument, TrainDocument)


def write_result(folder: Path, document: _D) -> _D:
    """Write result.json beside the files it names.

    Returns:
        The document with ``artifacts``: every other file of the folder and its
        subfolders with its hash. It is what result.json holds.
    """
    document = replace(document, artifacts=list_artifacts(folder))
    (folder / RESULT).write_text(to_json(document) + "\n", encoding="utf-8")
    return document


def list_artifacts(folder: Path) -> tuple[Artifact, ...]:
    """Path and hash of every file but result.json, in the order of their paths."""
    paths = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return tuple(
        Artifact(path=path, sha256=sha256(file)) for path, file in sorted(paths.items()) if path != RESULT
    )
