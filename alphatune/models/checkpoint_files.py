"""The files that make up a checkpoint: one, or several that an index names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from alphatune.core.errors import CheckpointError, one_line
from alphatune.core.suggestions import did_you_mean_path
from alphatune.models.file_kind import text_of
from alphatune.pickles.pickle_records import shortened

_HEAD = 4096
_LARGEST_INDEX = 100_000_000
#: of the libraries that write folders, in the order in which they are looked for
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")


def files_of_checkpoint(path: str | Path) -> list[Path]:
    """The files that a path stands for: one, or an index and what it names.

    Raises:
        CheckpointError: a URL, there is none, or one of them is missing.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise CheckpointError(
            f"{path} is a URL, and a checkpoint is a file here",
            "download it first; a model of the Hugging Face hub is given as MODEL: hf-hub:USER/NAME",
        )
    path = Path(path)
    try:
        if path.is_dir():
            path = _file_in(path)
        if not path.is_file():
            if path.exists():
                raise CheckpointError(f"{path} is no regular file", "give the file that holds the weights")
            hub = (
                re.fullmatch(r"[\w-]+/[\w.-]+", str(path))
                and "of the Hugging Face hub? MODEL hf-hub:USER/NAME"
            )
            raise CheckpointError(f"no such checkpoint file: {path}", did_you_mean_path(path, hub or ""))
        shards = shards_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or one_line(error)}") from None
    return [path, *dict.fromkeys(shards.values())]


def _file_in(folder: Path) -> Path:
    """The index, or the one file of weights, in a folder."""
    found = sorted(folder.glob("*.index.json"), key=lambda file: ("safetensors" not in file.name, file.name))
    found += [folder / name for name in _IN_FOLDERS if (folder / name).is_file()]
    if found:
        return found[0]
    names = sorted(entry.name for entry in folder.iterdir())
    if "data.pkl" in names and "data" in names:
        hint = "it is a PyTorch file that was unpacked: pack it again as a zip file without compression"
    elif ".metadata" in names and any(name.endswith(".distcp") for name in names):
        hint = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE makes it a file"
    elif "saved_model.pb" in names:
        hint = "it is a SavedModel of TensorFlow: save the weights as a PyTorch state dict"
    else:
        hint = f"name the file in it that holds the weights; it has: {listed(names)}"
    raise CheckpointError(f"{folder} is a folder without an index of weights", hint)


def shards_of(path: Path) -> dict[str, Path]:
    """By the names of the weights the files that an index names; none for what is no index."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if (text_of(head) or "").lstrip()[:1] != "{" or path.stat().st_size > _LARGEST_INDEX:
            return {}
        try:
            content = json.loads(head + file.read())
        except (ValueError, RecursionError):
            return {}
    names = content.get("weight_map")
    if not isinstance(names, dict):
        return {}
    shards: dict[str, Path] = {}
    for key, name in names.items():
        if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0:]", name):
            raise CheckpointError(
                f"the index {path} names {shortened(str(name))!r}, and the files have to be beside it",
                "download the folder again",
            )
        shards[key] = path.parent / name
    missing = [file.name for file in dict.fromkeys(shards.values()) if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of the files that {path} names are missing: {listed(missing)}",
            "download them to its folder",
        )
    if not shards:
        raise CheckpointError(f"the index {path} names no files", "download it again")
    return shards


def listed(names: Sequence[str], most: int = 4) -> str:
    """Some of the names of files, fit for a message."""
    found = ", ".join(shortened(name) for name in names[:most])
    return f"{found}, …" if len(names) > most else found or "nothing"
