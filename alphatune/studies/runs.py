"""Networks that were trained or measured, as lines of a file, which can be committed and continued."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from alphatune.core.errors import InputError, ResourceError, one_line
from alphatune.results.study import NetworkRun, StudyRun
from alphatune.results.values import Open

#: what tells a run from all others
Key = tuple[str, str, int]
R = TypeVar("R", StudyRun, NetworkRun)


def key_of(scale: str, experiment: Open, seed: int) -> Key:
    """What tells a run from all others."""
    return scale, json.dumps(experiment, sort_keys=True), seed


def read_runs(file: Path) -> dict[Key, StudyRun]:
    """The networks that were trained; raises InputError where a line is none."""
    return {key_of(run.scale, run.experiment, run.seed): run for run in _read(file, StudyRun)}


def read_networks(file: Path) -> list[NetworkRun]:
    """The checkpoints that were measured; raises InputError where a line is none."""
    return _read(file, NetworkRun)


def _read(file: Path, kind: type[R]) -> list[R]:
    """The lines of a file; a last one that was not finished is left out."""
    if not file.exists():
        return []
    runs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            runs.append(msgspec.json.decode(line, type=kind))
        except msgspec.DecodeError as error:
            raise InputError(f"line {number} of {file} is no run of a study: {one_line(error)}") from None
    return runs


def keep_whole_lines(file: Path) -> None:
    """Cut off a line that a process wrote only in part before it was killed."""
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        file.write_bytes(content[: content.rfind(b"\n") + 1])


def append_run(file: Path, run: StudyRun | NetworkRun) -> None:
    """Add a run as a line.

    Raises:
        ResourceError: the disk refused.
    """
    try:
        with file.open("ab") as out:
            out.write(msgspec.json.encode(run) + b"\n")
    except OSError as error:
        raise ResourceError(f"cannot write {file}: {error}", "is the disk full or read-only?") from None


def of_experiment(
    runs: dict[Key, StudyRun], scale: str, experiment: Open, seeds: Iterable[int]
) -> list[StudyRun]:
    """The finished runs of an experiment, by seed."""
    keys = (key_of(scale, experiment, seed) for seed in seeds)
    return [runs[key] for key in keys if key in runs]
