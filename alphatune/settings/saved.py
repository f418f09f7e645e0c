"""Settings as a command line, and as the run.toml that ``--config`` reads."""

from __future__ import annotations

import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tomli_w

from alphatune.core.errors import ConfigurationError
from alphatune.settings.conditions import split_name
from alphatune.settings.evaluate import EvaluateSettings
from alphatune.settings.model import ModelSettings
from alphatune.settings.option import declared, without_effect
from alphatune.settings.train import TrainSettings
from alphatune.settings.tune import TuneSettings


def check_minutes(minutes: float) -> None:
    """Reject a negative or NaN checkpoint interval.

    Raises:
        ConfigurationError: it is one.
    """
    if not minutes >= 0:
        raise ConfigurationError(f"`checkpoint_minutes` takes a number from 0, got {minutes:g}")


def input_paths(settings: EvaluateSettings | TrainSettings) -> list[str]:
    """Whatever among the settings names a file or folder that must not be written to."""
    data: list[str | None] = [settings.data]
    if isinstance(settings, EvaluateSettings):
        data += [split_name(text)[1] for text in settings.conditions]
    if isinstance(settings, TuneSettings):
        data += [settings.calibrate, settings.recalibrate]
    named = [
        settings.checkpoint,
        settings.class_map,
        settings.labels,
        settings.data_root,
        settings.model,
        *data,
    ]
    if isinstance(settings, TrainSettings):
        named.append(settings.val_data)
    named += [source.partition("/")[2] for source in data if source]  # hfds/FOLDER, wds/FOLDER
    named.append(settings.model.partition(":")[2])  # local-dir:FOLDER
    named.append(settings.model.rpartition(":")[0])  # file.py:factory
    if isinstance(settings, TuneSettings) and settings.score is not None:
        named += [settings.data.rpartition(":")[0], settings.score.rpartition(":")[0]]
    return [path for path in named if path and Path(path).exists()]


def decisive(settings: ModelSettings) -> dict[str, Any]:
    """The settings that may change a result, for keys."""
    free = without_effect(type(settings))
    return {name: value for name, value in asdict(settings).items() if name not in free}


def to_command(command: str, settings: ModelSettings) -> str:
    """The command line that gives these settings: what differs from the defaults, quoted for a shell."""
    words = ["alphatune", command, settings.model]
    shared = {each.name: each.option.given_by for each in declared(type(settings))}
    for field in fields(settings):
        value = getattr(settings, field.name)
        option = "--" + (shared.get(field.name) or field.name).replace("_", "-")
        if value == field.default or field.name == "model":
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [option, str(one)]
    return shlex.join(words)


def to_rerun(folder: str, output: str, command_line: str, **changes: object) -> str:
    """The command line that tunes once more as a folder's run.toml says, but for some settings.

    Args:
        folder: the tuned folder.
        output: the folder to write.
        command_line: of the earlier run; consent that was given then is not saved, and is repeated.
        changes: settings by name.
    """
    words = ["alphatune", "tune", "--config", str(Path(folder) / "run.toml")]
    given = shlex.split(command_line)
    words += [option for option in ("--unsafe-pickle", "--trust-code") if option in given]
    for name, value in changes.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join([*words, "--output", output])


def to_toml(settings: ModelSettings) -> str:
    """The resolved settings, in the form ``--config`` reads.

    Consent, to replace or to go on with a folder or to run code that comes with a
    model, is given anew each time: the file may be a stranger's.
    """
    saved = [each.name for each in declared(type(settings)) if each.option.saved]
    return values_to_toml({name: getattr(settings, name) for name in saved})


def values_to_toml(values: dict[str, Any]) -> str:
    """TOML of what is given; it has no word for nothing."""
    return tomli_w.dumps({k: v for k, v in values.items() if v is not None and v not in ([], ())})
