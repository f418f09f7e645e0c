"""A result read back from its JSON, whichever version wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from alphatune.core.errors import InputError, one_line
from alphatune.core.metrics import SCORE
from alphatune.results.document import SCHEMA, VersionedDocument
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.training import TrainDocument
from alphatune.results.tune import ScoreTuneDocument, Tuned, TuneDocument

RESULT = "result.json"
Measured = Tuned | EvaluateDocument

_Kinds = Sequence[type[VersionedDocument]]
_UPGRADE = "pip install --upgrade alphatune"


class _Head(msgspec.Struct):
    """What tells one result from another."""

    schema: Any = None
    command: Any = None
    alphatune: Any = None
    metric: Any = None
    error: Any = None


def read_tuned(folder: Path) -> Tuned:
    """What ``alphatune tune`` wrote into a folder.

    Raises:
        InputError: no folder of a tune, or a damaged one.
    """
    found: Tuned = _read(
        folder, (TuneDocument, ScoreTuneDocument), "expected a folder that alphatune tune wrote"
    )
    return found


def read_trained(folder: Path) -> TrainDocument:
    """What ``alphatune train`` wrote into a folder.

    Raises:
        InputError: no folder of a training run, or a damaged one.
    """
    found: TrainDocument = _read(folder, (TrainDocument,), "expected a folder that alphatune train wrote")
    return found


def decode_measured(content: bytes, name: Path) -> Measured:
    """The result of a tune or of an evaluation from its JSON.

    Args:
        name: what held it, for messages.

    Raises:
        InputError: another thing, or a damaged one.
    """
    found: Measured = _decode(content, name, (TuneDocument, ScoreTuneDocument, EvaluateDocument))
    return found


def command_of(path: Path) -> str | None:
    """The command that wrote a file; None where it is no result of alphatune."""
    try:
        head = msgspec.json.decode(path.read_bytes(), type=_Head)
    except (OSError, msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return head.command if isinstance(head.command, str) else None


def _read(folder: Path, kinds: _Kinds, expected: str) -> Any:
    path = folder / RESULT
    if not path.is_file():
        missing = f"{folder} holds no {RESULT}" if folder.is_dir() else f"there is no folder {folder}"
        raise InputError(missing, expected)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from None
    return _decode(content, path, kinds)


def _decode(content: bytes, name: Path, kinds: _Kinds) -> Any:
    try:
        head = msgspec.json.decode(content, type=_Head)
    except msgspec.ValidationError:
        head = _Head()
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read {name}: {one_line(error)}",
            "expected a tuned folder, a result of tune or evaluate as JSON, or a file of evaluate with `scores`",
        ) from None
    if isinstance(head.error, dict):
        raise InputError(f"{name} holds no result but an error: {one_line(head.error.get('message'))}")
    if head.schema is None:
        raise InputError(f"{name} is not a result of alphatune: expected a JSON object with a schema")
    if head.schema != SCHEMA:
        raise InputError(f"{name} has schema {head.schema!r}, this version reads {SCHEMA}", _UPGRADE)
    fitting = [kind for kind in kinds if _command(kind) == head.command]
    if not fitting:
        wanted = " or ".join(dict.fromkeys(map(_command, kinds)))
        raise InputError(f"{name} is the result of {head.command!r}: expected one of {wanted}")
    kind = fitting[-1] if head.metric == SCORE else fitting[0]
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(
            f"damaged {name}: {one_line(error)}", f"it says that alphatune {head.alphatune} wrote it"
        ) from None


def _command(kind: type[VersionedDocument]) -> str:
    (field,) = (field for field in msgspec.structs.fields(kind) if field.name == "command")
    return str(field.default)
