"""Answer a job that was done before without opening anything: not the model, not the data, not even torch.

After a job the state (size, times, inode) of every file and folder that it
read is noted under a hash of its settings and surroundings. If none has
changed since, its key (job_key.py) is what it was, and so is its result. Where
anything has, or was changed a moment before it was read, the key is computed
anew from contents. Compiler caches call this the direct mode.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import alphatune
from alphatune.core.hashing import file_state, settled, write_note
from alphatune.core.peers import place_of_process
from alphatune.jobs.gates import open_gates
from alphatune.jobs.result_cache import NOTES, CachedResult, results_folder, timed_on, write_again
from alphatune.jobs.tracking import check_trackers, tracked
from alphatune.models.output import check_output
from alphatune.results.tune import TuneDocument
from alphatune.settings import TuneSettings
from alphatune.settings.saved import decisive, input_paths

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "torchcodec")
#: what decides which modules and devices are found
_VARIABLES = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "HF_HOME", "TORCH_HOME")


def look_up_tune(settings: TuneSettings) -> TuneDocument | None:
    """Write the tuned folder of an earlier run of the same job; None if there is none, or nobody can tell.

    Raises:
        ConfigurationError: an output that may not be written, a gate that cannot be right.
        ResourceError: the disk refused.
    """
    check_trackers(settings.log_to)
    root = results_folder()
    several = place_of_process() is not None
    if root is None or settings.no_cache or settings.score is not None or several:
        return None
    try:
        noted = json.loads(_note(root, settings).read_text(encoding="utf-8"))
        if any(list(file_state(path)) != [path, *rest] for path, *rest in noted["inputs"]):
            return None
        known = CachedResult(root / noted["key"], noted["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    check_output(Path(settings.output), overwrite=settings.overwrite, keep=input_paths(settings))
    gates = open_gates(settings)
    earlier = known.read()
    if earlier is None:
        return None
    with tracked("tune", settings) as tracking:
        document = write_again(settings, known, earlier, gates)
        tracking.tuned(document)
        return document


def remember(settings: TuneSettings, known: CachedResult, started: int) -> None:
    """Note what a job depends on, unless something changed so late that a later change may not tell.

    Args:
        started: when the job was, in nanoseconds; nothing was read before.
    """
    if known.inputs is None:
        return
    with contextlib.suppress(OSError):
        states = [file_state(path) for path in dict.fromkeys(known.inputs)]
        if settled(states, started):
            note = json.dumps({"key": known.key, "inputs": states})
            write_note(_note(known.folder.parent, settings), note)


def _note(root: Path, settings: TuneSettings) -> Path:
    versions = []
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append((name, importlib.metadata.version(name)))
    surroundings = {
        "settings": decisive(settings),
        "folder": str(Path.cwd()),
        "python": [sys.version, sys.prefix, platform.machine()],
        "versions": versions,
        "alphatune": str(Path(alphatune.__file__).parent),
        "variables": {name: os.environ.get(name) for name in _VARIABLES},
        "timed_on": timed_on(settings),
        "cuda": Path("/dev/nvidiactl").exists(),
    }
    name = hashlib.sha256(json.dumps(surroundings, sort_keys=True).encode()).hexdigest()
    return root / NOTES / f"job-{name}.json"
