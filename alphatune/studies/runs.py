"""Trained networks as lines of a file, which can be committed and continued."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec

from alphatune.core.errors import InputError, ResourceError, one_line
from alphatune.results.study import StudyRun
from alphatune.results.values import Open

#: what tells a run from all others
Key = tuple[str, str, int]


def key_of(scale: str, experiment: Open, seed: int) -> Key:
    """What tells a run from all others."""
    return scale, json.dumps(experiment, sort_keys=True), seed


def read_runs(file: Path) -> dict[Key, StudyRun]:
    """The finished runs of a file; a last line that was not finished is left out.

    Raises:
        InputError: a line is no run.
    """
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    runs = {}
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            run = msgspec.json.decode(line, type=StudyRun)
        except msgspec.DecodeError as error:
            raise InputError(f"line {number} of {file} is no run of a study: {one_line(error)}") from None
        runs[key_of(run.scale, run.experiment, run.seed)] = run
    return runs


def keep_whole_lines(file: Path) -> None:
    """Cut off a line that a process wrote only in part before it was killed."""
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        file.write_bytes(content[: content.rfind(b"\n") + 1])


def append_run(file: Path, run: StudyRun) -> None:
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
