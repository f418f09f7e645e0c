"""The folder of a training run: whose it is, and whether it can be gone on with."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

from alphatune.errors import ConfigurationError, InputError
from alphatune.jobs.opening import resolved_paths
from alphatune.jobs.settings import TrainSettings, input_paths, to_toml
from alphatune.models.output import check_output, is_bundle
from alphatune.training.state import replace_file

CHECKPOINT, RUN, LOG = "checkpoint.pt", "run.toml", "log.csv"
#: settings that may differ between a run and its continuation
_FREE = (
    "output", "resume", "overwrite", "device", "workers", "eval_batch_size", "checkpoint_minutes", "download",
)  # fmt: skip


def check_run_folder(output: Path, settings: TrainSettings) -> None:
    """Refuse an output that is somebody else's, or that this run would change unasked."""
    ours = output.is_dir() and not output.is_symlink() and (output / RUN).is_file()
    if settings.resume and settings.overwrite:
        raise ConfigurationError("--resume continues a run and --overwrite starts anew", "give one")
    if ours and settings.resume:
        _check_same(output / RUN, settings)
    elif ours and not settings.overwrite:
        unfinished = "" if is_bundle(output) else " and holds an unfinished run"
        raise ConfigurationError(
            f"the output {output} exists{unfinished}", "--resume continues it, --overwrite starts anew"
        )
    elif not ours:
        check_output(output, overwrite=settings.overwrite, keep=input_paths(settings))
    elif kept := [p for p in input_paths(settings) if Path(p).resolve().is_relative_to(output.resolve())]:
        raise ConfigurationError(f"the output {output} holds the input {kept[0]}", "write somewhere else")


def _check_same(file: Path, settings: TrainSettings) -> None:
    """A run goes on as it began."""
    try:
        before = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot resume: {file} cannot be read: {error}") from None
    now = tomllib.loads(to_toml(resolved_paths(settings)))
    for name in sorted(before.keys() | now.keys()):
        if name not in _FREE and before.get(name) != now.get(name):
            raise ConfigurationError(
                f"the run in {file.parent} has {name} = {before.get(name)!r}, now it is {now.get(name)!r}",
                f"--config {file} repeats its settings; --overwrite starts anew",
            )


def open_run_folder(output: Path, settings: TrainSettings) -> None:
    """Begin a new run."""
    if settings.overwrite:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)


def write_run_settings(output: Path, settings: TrainSettings) -> None:
    """Write run.toml, which marks the folder as that of a run."""
    text = to_toml(resolved_paths(settings))
    replace_file(output / RUN, lambda path: path.write_text(text, encoding="utf-8"))


def finished_result(output: Path) -> dict[str, Any]:
    """What a finished run found."""
    try:
        document: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
        return document
    except (OSError, ValueError) as error:
        raise InputError(f"the run in {output} is finished, but its result cannot be read: {error}") from None
