"""Results of earlier runs, by the content of what they depend on.

    $ALPHATUNE_CACHE, or results/ in the user's cache folder of alphatune
    ├── notes/    fingerprints of files that have not changed (data/fingerprint.py)
    └── KEY/      a tuned folder

KEY is a SHA-256 over the weights in memory, the images and labels, the
settings, the code (alphatune's own, and what of the user's is loaded) and the
versions of the libraries. A folder that does not hold what its result.json
says is no hit. ``ALPHATUNE_CACHE=off`` keeps nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import alphatune
from alphatune.cache_folder import cache_folder, private_folder
from alphatune.data.fingerprint import fingerprint, tensors_sha256
from alphatune.data.loading import Batches
from alphatune.errors import AlphatuneError
from alphatune.hashing import files_sha256, sha256
from alphatune.jobs.opening import DTYPES, Prepared, resolved
from alphatune.jobs.settings import TuneSettings
from alphatune.models.output import staged
from alphatune.reports.result import environment

VARIABLE, OFF = "ALPHATUNE_CACHE", "off"
#: all results together; those that nobody asked for the longest go first
MOST_BYTES = 2 * 2**30
#: settings that change nothing of what is measured and kept
_FREE = (
    "output", "overwrite", "resume", "no_cache", "workers", "cache",
    "min_gain", "max_regression", "require_significant", "max_latency_ratio",
)  # fmt: skip
#: nor do these, but for rounding
_OF_THE_MACHINE = ("platform", "threads")
#: what a folder has of the run that wrote it
OF_THE_RUN = ("run.toml", "result.json")


@dataclass(frozen=True)
class CachedResult:
    """Where the result of this job is, or is to be."""

    folder: Path
    key: str

    def read(self) -> dict[str, Any] | None:
        """The document, if the folder is there and whole."""
        try:
            document = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
            for artifact in document["artifacts"]:
                if sha256(self.folder / artifact["path"]) != artifact["sha256"]:
                    return None
            os.utime(self.folder)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return document if isinstance(document, dict) else None

    def measured(self) -> str:
        """When, as ISO 8601."""
        when = (self.folder / "result.json").stat().st_mtime
        return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")

    def copy_to(self, stage: Path) -> None:
        """Everything but what tells of the run."""
        shutil.copytree(self.folder, stage, ignore=shutil.ignore_patterns(*OF_THE_RUN), dirs_exist_ok=True)

    def keep(self, output: Path) -> None:
        """Copy a tuned folder here; a cache that cannot be written to costs time, nothing else."""
        with contextlib.suppress(OSError, AlphatuneError):
            if _size(output) <= MOST_BYTES:
                with staged(self.folder, overwrite=True) as stage:
                    shutil.copytree(output, stage, dirs_exist_ok=True)
                _make_room(self.folder.parent)


def find_result(
    settings: TuneSettings, prepared: Prepared, others: tuple[Batches, ...]
) -> CachedResult | None:
    """Where the result of a job is kept; None where nothing is, or nobody could tell what the data are.

    Args:
        others: further images that the result depends on.
    """
    root = results_folder()
    if root is None or settings.no_cache:
        return None
    try:
        data = [fingerprint(b.examples, root / "notes") for b in (prepared.batches, *others)]
        if None in data:
            return None
        module = prepared.opened.module
        env = environment(prepared.opened.device, DTYPES[settings.dtype])
        tensors = [*module.named_parameters(), *module.named_buffers()]
        parts = {
            "settings": {k: v for k, v in asdict(resolved(settings, prepared)).items() if k not in _FREE},
            "data": data,
            "weights": tensors_sha256(sorted(tensors, key=lambda pair: pair[0])),
            "module": repr(module),
            "code": files_sha256(sorted(_own_code()), root / "notes"),
            "environment": {k: v for k, v in env.items() if k not in _OF_THE_MACHINE},
        }
    except (OSError, RuntimeError):  # a file that went away, a tensor that has no bytes
        return None
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return CachedResult(root / key, key)


def results_folder() -> Path | None:
    """The folder of all results, made if it is not there; None where nothing is to be kept."""
    named = os.environ.get(VARIABLE)
    if named:
        return None if named == OFF else private_folder(Path(named))
    folder = cache_folder()
    return private_folder(folder / "results") if folder else None


def _own_code() -> Iterator[str]:
    """The files of alphatune, and of every loaded module that no package manager installed."""
    own = Path(alphatune.__file__).parent
    yield from (str(path) for path in own.rglob("*") if path.suffix in (".py", ".cpp", ".j2"))
    installed = [sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages(), str(own)]
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_file() and not any(Path(file).is_relative_to(p) for p in installed):
            yield str(file)


def _make_room(root: Path) -> None:
    entries = sorted((p for p in root.iterdir() if len(p.name) == 64), key=lambda p: p.stat().st_mtime)
    sizes = {entry: _size(entry) for entry in entries}
    while entries and sum(sizes[e] for e in entries) > MOST_BYTES:
        shutil.rmtree(entries.pop(0), ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
