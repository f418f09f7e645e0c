"""Results of earlier runs, by the content of what they depend on.

    $ALPHATUNE_CACHE, or results/ in the user's cache folder of alphatune
    ├── notes/    fingerprints of files (hashing.py), and jobs by their inputs (fast_lookup.py)
    └── KEY/      a tuned folder; job_key.py says what KEY stands for

A folder that does not hold what its result.json says is no hit.
``ALPHATUNE_CACHE=off`` keeps nothing. None of this waits for torch.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from alphatune.core.cache_folder import cache_folder, private_folder
from alphatune.core.errors import AlphatuneError, InputError
from alphatune.core.hashing import FileState, file_state, sha256
from alphatune.core.toml import tomllib
from alphatune.jobs.gates import Gate, judge
from alphatune.models.neighbours import files_of_neighbours
from alphatune.models.output import beside, remove, staged
from alphatune.reports.artifacts import write_result
from alphatune.results.stored import RESULT, read_tuned
from alphatune.results.tune import Cached, TuneDocument
from alphatune.settings import TuneSettings
from alphatune.settings.option import without_effect
from alphatune.settings.saved import input_paths, to_command, to_toml, values_to_toml

if TYPE_CHECKING:
    from alphatune.reports.scores import StoredScores

VARIABLE, OFF = "ALPHATUNE_CACHE", ("off", "no", "false", "0")
NOTES = "notes"
#: all results together; those that nobody asked for the longest go first
MOST_BYTES = 2 * 2**30
_RUN = "run.toml"


@dataclass(frozen=True)
class CachedResult:
    """Where the result of a job is, or is to be."""

    folder: Path
    key: str
    #: every file and folder that the job read; None where that cannot be told
    inputs: tuple[str, ...] | None = None
    #: the files of the images as they were when the key was found, before anything was measured
    images: tuple[FileState, ...] = ()
    #: the files of the user's own that were imported by then
    code: frozenset[str] = frozenset()

    def read(self) -> TuneDocument | None:
        """The document, if the folder is there and whole."""
        try:
            document = read_tuned(self.folder)
            for artifact in document.artifacts:
                if sha256(self.folder / artifact.path) != artifact.sha256:
                    return None
            os.utime(self.folder)
        except (OSError, ValueError, InputError):
            return None
        return document if isinstance(document, TuneDocument) else None

    def keep(self, output: Path) -> None:
        """Copy a tuned folder here, if the key is of all that was measured: images changed, or own code came, since.

        A cache that cannot be written to costs time, nothing else.
        """
        with contextlib.suppress(OSError, AlphatuneError):
            unchanged = all(file_state(before[0]) == before for before in self.images)
            if unchanged and files_of_neighbours() <= self.code and _size(output) <= MOST_BYTES:
                with staged(self.folder, overwrite=True) as stage:
                    shutil.copytree(output, stage, dirs_exist_ok=True)
                _make_room(self.folder.parent)


def results_folder() -> Path | None:
    """The folder of all results, made if it is not there; None where nothing is to be kept."""
    named = os.environ.get(VARIABLE)
    if named:
        if named.lower() in OFF:
            return None
        folder = private_folder(Path(named))
        if folder is None:
            _say_unused(named)
        return folder
    folder = cache_folder()
    return private_folder(folder / "results") if folder else None


@functools.cache  # once a process
def _say_unused(named: str) -> None:
    logging.getLogger("alphatune").warning(
        "warning: the cache %s is not used: only you may be able to write to it (chmod go-w %s)", named, named
    )


def write_again(
    settings: TuneSettings, known: CachedResult, earlier: TuneDocument, gates: tuple[Gate, ...]
) -> TuneDocument:
    """Write the tuned folder of an earlier run whose result this one has, too.

    Returns:
        What result.json holds.
    """
    when = datetime.fromtimestamp((known.folder / RESULT).stat().st_mtime, timezone.utc)
    document = replace(
        earlier,
        command_line=to_command("tune", settings),
        cache=Cached(key=known.key, measured=when.isoformat(timespec="seconds")),
        gates=judge(gates, earlier, _scores(known.folder, earlier, gates)),
    )
    with staged(Path(settings.output), overwrite=settings.overwrite, keep=input_paths(settings)) as stage:
        of_the_run = shutil.ignore_patterns(_RUN, RESULT)
        shutil.copytree(known.folder, stage, ignore=of_the_run, dirs_exist_ok=True)
        (stage / _RUN).write_text(_run_toml(settings, known.folder / _RUN), encoding="utf-8")
        # What an earlier run was to go on from is of no more use.
        shutil.rmtree(beside(Path(os.path.abspath(settings.output)), "resume"), ignore_errors=True)
        if document.gates != earlier.gates:  # the pages show them
            from alphatune.reports.folder import write_pages  # with SciPy, which few answers need
            from alphatune.reports.scores import read_scores

            write_pages(stage, document, read_scores(stage))
        return write_result(stage, document)


def _scores(folder: Path, document: TuneDocument, gates: tuple[Gate, ...]) -> StoredScores | None:
    """The scores of every example, where a gate needs them."""
    if not any(gate.needs_scores for gate in gates):
        return None
    from alphatune.reports.scores import read_own_scores  # with SciPy

    return read_own_scores(folder, document)


def _run_toml(settings: TuneSettings, earlier: Path) -> str:
    """What the earlier run resolved, and of this run what may differ."""
    values = tomllib.loads(earlier.read_text(encoding="utf-8"))
    given = tomllib.loads(to_toml(settings))
    resolved = {k: values[k] for k in ("workers",) if settings.workers == "auto" and k in values}
    free = without_effect(TuneSettings)
    changed = {k: v for k, v in given.items() if k in free} | resolved
    return values_to_toml({k: v for k, v in values.items() if k not in free} | changed)


def _make_room(root: Path) -> None:
    """Remove results, and notes, until the rest is small enough; the oldest first."""
    entries = [p for p in root.iterdir() if len(p.name) == 64] + [*(root / NOTES).glob("*")]
    entries.sort(key=lambda p: p.stat().st_mtime)
    sizes = {entry: _size(entry) for entry in entries}
    while entries and sum(sizes[e] for e in entries) > MOST_BYTES:
        remove(entries.pop(0))


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())


def timed_on(settings: TuneSettings) -> str:
    """The machine, for a job whose gate asks how long inference takes: another one's answer does not count."""
    return "" if settings.max_latency_ratio is None else platform.node()
