"""A tuned folder read back: the result, and the scores that belong to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alphatune.errors import InputError, one_line
from alphatune.hashing import sha256
from alphatune.reports.artifacts import RESULT
from alphatune.reports.result import SCHEMA
from alphatune.reports.scores import FILE, StoredScores, read_scores


def read_result(folder: Path) -> dict[str, Any]:
    """What ``alphatune tune`` wrote into result.json.

    Raises:
        InputError: no folder of a tune, or a damaged one.
    """
    path = folder / RESULT
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {RESULT}" if folder.is_dir() else f"there is no folder {folder}",
            "expected a folder that alphatune tune wrote",
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from None
    if not isinstance(document, dict) or "schema" not in document:
        raise InputError(f"damaged {path}: expected a JSON object with a schema")
    if document["schema"] != SCHEMA:
        raise InputError(
            f"{path} has schema {document['schema']!r}, this version reads {SCHEMA}",
            "pip install --upgrade alphatune",
        )
    if (command := document.get("command")) != "tune":
        raise InputError(f"{path} is the result of {command!r}: expected that of a tune")
    return document


def read_own_scores(folder: Path, document: dict[str, Any]) -> StoredScores | None:
    """The scores beside a result; None where there are none.

    Raises:
        InputError: damaged, or of another run.
    """
    stored = read_scores(folder)
    if stored is None:
        return None
    listed = {a["path"]: a["sha256"] for a in document["artifacts"]}
    if listed.get(FILE) != sha256(folder / FILE):
        raise InputError(f"{folder / FILE} is not the one that {RESULT} speaks of")
    return stored
