"""What makes two jobs the same: a hash of everything that a result depends on.

The weights in memory, the images and labels, the settings, the code
(alphatune's own, and what of the user's is loaded) and the versions of the
libraries. Not the number of threads or of worker processes, which change
nothing but the last bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

import alphatune
from alphatune.core.hashing import file_state, files_sha256
from alphatune.data.examples import Examples
from alphatune.data.fingerprint import files_of, fingerprint, tensors_sha256
from alphatune.data.inventory import walk
from alphatune.data.loading import Batches
from alphatune.jobs.module_attributes import plain_values
from alphatune.jobs.opening import DTYPES, Prepared, resolved
from alphatune.jobs.result_cache import NOTES, CachedResult, results_folder, timed_on
from alphatune.models.checkpoint_files import files_of_checkpoint
from alphatune.models.neighbours import files_of_neighbours
from alphatune.models.output import is_bundle
from alphatune.reports.result import environment
from alphatune.settings import TuneSettings
from alphatune.settings.conditions import parse_named
from alphatune.settings.saved import decisive

_OF_THE_MACHINE = ("platform", "threads")
#: packages that ``environment`` or ``_own_code`` tells apart
_VERSIONED = {"torch", "torchvision", "timm", "alphatune"}


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
        images = [b.examples for b in (prepared.batches, *others)]
        states = [file_state(file) for examples in images for file in files_of(examples) or ()]
        data = [fingerprint(examples, root / NOTES) for examples in images]
        if None in data:
            return None
        code = _code(settings, prepared)
        key = _key(settings, prepared, [*data, timed_on(settings)], files_sha256(code, root / NOTES))
        inputs = _inputs(settings, prepared, others)
    except (OSError, RuntimeError):  # a file that went away, a tensor that has no bytes
        return None
    named = None if inputs is None else (*inputs, *code)
    return CachedResult(root / key, key, named, tuple(states), frozenset(files_of_neighbours()))


def quick_key(settings: TuneSettings, prepared: Prepared, others: tuple[Batches, ...]) -> str:
    """A key that no image is read for: files of data count by name, size and time. Of a stream nothing is known."""
    try:
        data = [_state(b.examples) for b in (prepared.batches, *others)]
        return _key(settings, prepared, data, files_sha256(_code(settings, prepared)))
    except (OSError, RuntimeError):
        return ""


def _state(examples: Examples) -> str | None:
    """``fingerprint`` by the states of files in place of their content."""
    if (files := files_of(examples)) is None:
        return fingerprint(examples)
    # Not by inode: the data may have been unpacked anew on the machine that goes on.
    states = [file_state(file)[:3] for file in files]
    numbers = (examples.indices.tolist(), examples.targets.tolist(), getattr(examples.load, "part", ""))
    return hashlib.sha256(
        repr((states, numbers, examples.classes, examples.outputs, examples.decoder)).encode()
    ).hexdigest()


def _key(settings: TuneSettings, prepared: Prepared, data: Sequence[str | None], code: str) -> str:
    """What ``data`` and ``code`` stand for, and all else that a result depends on."""
    module = prepared.opened.module
    tensors = [*module.named_parameters(), *module.named_buffers()]
    env = environment(prepared.opened.device, DTYPES[settings.dtype])
    parts = {
        "settings": decisive(resolved(settings, prepared)),
        "data": data,
        "preprocessing": prepared.opened.preprocessing.to_dict(),  # of the weights, where no option says
        "weights": tensors_sha256(sorted(tensors, key=lambda pair: pair[0])),
        "module": repr(module),
        "values": plain_values(module),
        "code": code,
        "environment": {k: v for k, v in env.items() if k not in _OF_THE_MACHINE},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _code(settings: TuneSettings, prepared: Prepared) -> list[str]:
    return sorted({*_own_code(), *code_of(prepared.opened.module, settings.model)})


def _inputs(settings: TuneSettings, prepared: Prepared, others: tuple[Batches, ...]) -> list[str] | None:
    """The files and folders that model and data were read from; None unless all of them are known."""
    found = []
    source = prepared.opened.source
    scheme, _, rest = settings.model.partition(":")
    folder = Path(rest if scheme == "local-dir" else settings.model)
    if source.kind == "factory" and not source.spec.startswith("alphatune."):
        return None  # code of one's own may have read any file or variable
    if settings.on_bad_image == "skip":
        return None  # images that were left out are among nobody's files, and may be repaired
    if is_bundle(folder) or (folder / "config.json").is_file():
        found += [str(folder), *(str(file) for file in folder.iterdir() if file.is_file())]
    elif settings.checkpoint is None or scheme.startswith("hf"):
        return None  # weights, or an architecture, that a hub or a library came up with
    if settings.checkpoint:
        found += dict.fromkeys([settings.checkpoint, *map(str, files_of_checkpoint(settings.checkpoint))])
    found += [file for file in (settings.class_map, settings.labels) if file]
    if settings.labels:
        found.append(str(Path(settings.labels).parent))  # where the meaning of its numbers may lie
    further = [parse_named(text)[1] for text in settings.conditions]
    sources = (settings.data, settings.calibrate, settings.recalibrate, *further)
    for data, batches in zip([s for s in sources if s], (prepared.batches, *others), strict=True):
        examples = batches.examples
        files = files_of(examples) if Path(data).exists() else None
        if files is None:
            return None
        found += [data, *files]
        if Path(examples.root).is_dir():
            # A file that is added changes its folder, and any folder may become a split.
            found += [f"{examples.root}/{walked}" for walked, _ in walk(examples.root)]
            found += [str(entry) for entry in Path(data).iterdir() if entry.is_dir()]
    return [str(Path(path).absolute()) for path in found]


def code_of(model: nn.Module, name: str) -> Iterator[str]:
    """What is loaded of the packages of the model's layers and factory whose versions the key does not hold."""
    modules = {type(module).__module__ for module in model.modules()} | {name.rpartition(":")[0] or name}
    packages = {module.partition(".")[0] for module in modules} - _VERSIONED
    for loaded, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and loaded.partition(".")[0] in packages and Path(file).is_file():
            yield str(Path(file).absolute())


def _own_code() -> Iterator[str]:
    """The files of alphatune, and of every loaded module that no package manager installed."""
    own = Path(alphatune.__file__).parent
    yield from (str(path) for path in own.rglob("*") if path.suffix in (".py", ".cpp", ".j2"))
    installed = [sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages(), str(own)]
    roots = tuple(f"{os.path.abspath(folder)}{os.sep}" for folder in installed)
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    for name in loaded | files_of_neighbours():
        # Thousands of modules: text is compared, as paths take a quarter of a second.
        file = os.path.abspath(name or os.sep)
        if not file.startswith(roots) and Path(file).is_file():
            yield file
