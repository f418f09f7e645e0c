"""The folder of a training run: whose it is, who works in it, and whether it can be gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from alphatune.core.errors import ConfigurationError, InputError
from alphatune.core.folder_lock import locked
from alphatune.core.toml import tomllib
from alphatune.jobs.opening import resolved_paths
from alphatune.jobs.trackers import FOLDER as TENSORBOARD
from alphatune.jobs.tracking import RUN_IDS
from alphatune.models.output import MANIFEST, check_name, check_output, disk_errors, is_bundle, remove
from alphatune.results.stored import read_trained
from alphatune.results.training import TrainDocument
from alphatune.settings import TrainSettings
from alphatune.settings.option import declared, without_effect
from alphatune.settings.saved import input_paths, to_toml
from alphatune.training.state import replace_file

CHECKPOINT, RUN, LOG = "checkpoint.pt", "run.toml", "log.csv"
#: what a run writes; nothing else is ever removed
_FILES = (
    CHECKPOINT, LOG, RUN_IDS, TENSORBOARD, "model.safetensors", "config.json", "curves.png", "result.json", MANIFEST,
    RUN,
)  # fmt: skip


def as_begun(settings: TrainSettings) -> TrainSettings:
    """The settings with which a run goes on: where an earlier version had no choice, what that did."""
    file = Path(settings.output) / RUN
    if not settings.resume or not _is_run(file.parent):
        return settings
    saved = tomllib.loads(file.read_text(encoding="utf-8"))
    return replace(
        settings,
        **{
            each.name: each.option.before
            for each in declared(TrainSettings)
            if each.option.before is not None
            and each.name not in saved
            and getattr(settings, each.name) == each.default
        },
    )


def check_run_folder(output: Path, settings: TrainSettings) -> None:
    """Refuse an output that is somebody else's, or that this run would change unasked."""
    if settings.resume and settings.overwrite:
        raise ConfigurationError("`resume` continues a run and `overwrite` starts anew", "give one")
    check_name(output)
    for path in filter(None, (settings.data, settings.val_data)):
        if Path(path).is_dir() and output.resolve().is_relative_to(Path(path).resolve()):
            raise ConfigurationError(
                f"the output {output} lies inside the data {path}", "write somewhere else"
            )
    if not output.exists() or output.is_symlink():
        check_output(output, overwrite=False)
        return
    if not _is_run(output):
        if not output.is_dir() or any(not _is_partial(entry) for entry in output.iterdir()):
            raise ConfigurationError(f"the output {output} exists, and alphatune train did not write it")
        return
    if kept := [p for p in input_paths(settings) if Path(p).resolve().is_relative_to(output.resolve())]:
        raise ConfigurationError(f"the output {output} holds the input {kept[0]}", "write somewhere else")
    finished = is_bundle(output)
    if not finished and not (output / CHECKPOINT).exists():
        return  # it broke off before there was anything to lose
    if settings.resume:
        _check_same(output / RUN, settings)
    elif not settings.overwrite:
        unfinished = "" if finished else " and holds an unfinished run"
        raise ConfigurationError(
            f"the output {output} exists{unfinished}", "`resume` continues it, `overwrite` starts anew"
        )


@contextmanager
def opened_run_folder(output: Path, settings: TrainSettings) -> Iterator[None]:
    """Hold the folder for this run alone, without what an earlier one is not to leave in it.

    Raises:
        ConfigurationError: another process trains into it.
        ResourceError: it cannot be made.
    """
    try:
        with disk_errors(output), ExitStack() as held:
            output.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(output, f"training into {output}", "give another `output`"))
            check_run_folder(output, settings)  # again, now that nobody else changes it
            # Of a run that was killed.
            leftovers = [entry for entry in output.iterdir() if _is_partial(entry)]
            if not settings.resume:
                leftovers += [output / name for name in _FILES if (output / name).exists()]
            for path in leftovers:
                remove(path)
            text = to_toml(resolved_paths(settings))
            replace_file(output / RUN, lambda path: path.write_text(text, encoding="utf-8"))
            let_go = held.pop_all()
        with let_go:
            yield
    finally:
        with suppress(OSError):
            output.rmdir()  # if nothing was written


def finished_result(output: Path) -> TrainDocument:
    """What a finished run found."""
    try:
        return read_trained(output)
    except InputError as error:
        raise InputError(
            f"the run in {output} is finished, but its result cannot be read: {error.message}"
        ) from None


def _is_run(output: Path) -> bool:
    """Whether a folder's run.toml is that of a training run; ``tune`` writes another."""
    try:
        return {"epochs", "norm"} <= tomllib.loads((output / RUN).read_text(encoding="utf-8")).keys()
    except (OSError, ValueError):
        return False


def _is_partial(entry: Path) -> bool:
    """Whether this is a file or folder that ``replace_file`` or ``published`` did not finish."""
    return entry.name.startswith(".") and entry.name.endswith(".partial")


def _check_same(file: Path, settings: TrainSettings) -> None:
    """A run goes on as it began, also one of an earlier version, which had fewer settings."""
    before = {each.name: each.option.before or each.default for each in declared(TrainSettings)
              if each.option.saved and each.default not in (None, ())}  # fmt: skip
    before |= tomllib.loads(file.read_text(encoding="utf-8"))
    now, free = tomllib.loads(to_toml(resolved_paths(settings))), without_effect(TrainSettings)
    for name in sorted(before.keys() | now.keys()):
        if name not in free and before.get(name) != now.get(name):
            raise ConfigurationError(
                f"the run in {file.parent} has {name} = {before.get(name)!r}, now it is {now.get(name)!r}",
                f"`config={file}` repeats its settings; `overwrite` starts anew",
            )
