"""What a checkpoint file holds, whatever its ending says and however it is packed.

Nothing in the file is run. What a file is, its first bytes tell: safetensors,
the formats of torch.save, a bare pickle, TorchScript, NumPy's .npz, an archive
or a compressed file around one of them, or a folder or an index of several
files. Anything else is refused by its name.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import json
import lzma
import re
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from alphatune.errors import (
    AlphatuneError,
    CheckpointError,
    ResourceError,
    UntrustedError,
    one_line,
    raise_if_machine_failed,
)
from alphatune.models.file_kind import Kind, kind_of, text_of
from alphatune.models.numpy_values import read_npy
from alphatune.models.safe_pickle import shortened
from alphatune.models.torch_file import (
    ZipParts,
    is_torchscript,
    read_stream,
    read_zip,
    unpacked_limit,
    weights_root,
)
from alphatune.suggestions import did_you_mean_path

ASK = "ask for a .safetensors file; --unsafe-pickle runs the code if you trust its author"
TORCHSCRIPT = "TorchScript archive"
_OF_TORCHSCRIPT = ("__torch__.", "torch.jit._pickle.")  # names that its archives always have
_HEAD = 4096
_PACKED = 3  # archives within archives
_LARGEST_INDEX = 100_000_000
_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open,
}  # fmt: skip
#: of the libraries that write folders, in the order in which they are looked for
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
_UNPACK = "unpack it, and give the file in it that holds the weights"
_OLD_TAR = {"pickle", "storages", "tensors"}


@dataclass(frozen=True)
class Content:
    """What a file holds, as plain data."""

    value: Any
    kind: str  # of file
    passed_over: tuple[str, ...] = ()  # names of objects that were kept as records, in order
    unsafe: bool = False  # whether code from the file was free to run


def read_content(path: str | Path, *, unsafe_pickle: bool = False) -> Content:
    """Read a file, a folder or an index of weights.

    Args:
        unsafe_pickle: unpickle with torch, and run whatever the file wants to run.

    Raises:
        CheckpointError: missing, corrupt, or no file of weights; the message says what it is.
        ResourceError: no room to unpack it.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise CheckpointError(
            f"{path} is a URL, and a checkpoint is a file here",
            "download it first; a model of the Hugging Face hub is given as MODEL: hf-hub:USER/NAME",
        )
    file, *shards = files_of_checkpoint(path)
    if shards:
        return _read_sharded(file, unsafe_pickle)
    return _read_file(file, str(file), unsafe_pickle, _PACKED)


def files_of_checkpoint(path: str | Path) -> list[Path]:
    """The files that a path stands for: one, or an index and what it names.

    Raises:
        CheckpointError: there is none, or one of them is missing.
    """
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
        shards = _shards(path)
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
        hint = f"name the file in it that holds the weights; it has: {_listed(names)}"
    raise CheckpointError(f"{folder} is a folder without an index of weights", hint)


def _shards(path: Path) -> dict[str, Path]:
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
            f"{len(missing)} of the files that {path} names are missing: {_listed(missing)}",
            "download them to its folder",
        )
    if not shards:
        raise CheckpointError(f"the index {path} names no files", "download it again")
    return shards


def _read_sharded(index: Path, unsafe_pickle: bool) -> Content:
    """All weights that an index names, from the files that it says."""
    shards = _shards(index)
    weights: dict[str, Any] = {}
    passed_over: dict[str, None] = {}
    unsafe = False
    for file in dict.fromkeys(shards.values()):
        content = _read_file(file, str(file), unsafe_pickle, 0)
        if not isinstance(content.value, dict):
            raise CheckpointError(f"{file} holds no weights by their names", "download it again")
        for key in (key for key, named in shards.items() if named == file):
            if key not in content.value:
                raise CheckpointError(f"{file} lacks {shortened(key)!r}, which {index.name} says is in it")
            weights[key] = content.value[key]
        passed_over |= dict.fromkeys(content.passed_over)
        unsafe |= content.unsafe
    return Content(weights, "index of several files", tuple(passed_over), unsafe)


def _read_file(path: Path, name: str, unsafe_pickle: bool, packed: int) -> Content:
    """One file; ``name`` is what messages call it, ``packed`` how many archives may lie around the weights."""
    try:
        with path.open("rb") as file:
            return _read_open(file, path, name, unsafe_pickle, packed)
    except AlphatuneError:
        raise
    except OSError as error:
        if error.errno is None:  # of a damaged archive
            raise _corrupt(name, error) from None
        raise CheckpointError(f"cannot read {name}: {error.strerror or one_line(error)}") from None
    except Exception as error:  # corrupt bytes raise struct.error, KeyError, zlib.error, ...
        raise_if_machine_failed(error)
        raise _corrupt(name, error) from None


def _read_open(file: BinaryIO, path: Path, name: str, unsafe_pickle: bool, packed: int) -> Content:
    size = path.stat().st_size
    head = file.read(_HEAD)
    file.seek(0)
    if head.startswith(b"PK\3\4"):
        return _read_zip(file, path, name, unsafe_pickle, packed)
    for magic, decompress in _COMPRESSED.items():
        if head.startswith(magic):
            with decompress(file) as stream:
                return _read_unpacked(stream, name, size, unsafe_pickle, packed)
    if head[257:262] == b"ustar":
        return _read_tar(file, path, name, unsafe_pickle, packed)
    if head[4:9] == b"\0\0\0\0{":  # after the length of the header, in eight bytes
        return Content(safetensors.torch.load_file(path), "safetensors")
    if head.startswith(b"\x93NUMPY"):
        raise _refused(
            name, Kind("one NumPy array", "weights by their names are an .npz file, or a state dict")
        )
    if head.startswith(b"\x80"):
        return _read_pickle(file, path, name, unsafe_pickle)
    if head[:1] in (b"(", b"c", b"}", b"]"):  # a pickle in one of the protocols that look like text
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            return _read_pickle(file, path, name, unsafe_pickle)
    raise _refused(name, kind_of(head, size))


def _read_pickle(file: BinaryIO, path: Path, name: str, unsafe_pickle: bool) -> Content:
    if unsafe_pickle:
        return _run(path, name)
    value, passed_over = read_stream(file, path.stat().st_size)
    return Content(value, "PyTorch file or pickle", tuple(passed_over))


def _read_zip(file: BinaryIO, path: Path, name: str, unsafe_pickle: bool, packed: int) -> Content:
    try:
        parts = ZipParts(file, path.stat().st_size)
    except zipfile.BadZipFile as error:
        if "not a zip file" in str(error):
            raise CheckpointError(
                f"{name} is incomplete: the end of its zip archive is missing", "download or copy it again"
            ) from None
        raise
    if (root := weights_root(parts)) is not None:
        if unsafe_pickle:
            return _run(path, name)
        value, passed_over = read_zip(parts, root)
        if is_torchscript(parts, root):
            return Content(
                value, TORCHSCRIPT, tuple(n for n in passed_over if not n.startswith(_OF_TORCHSCRIPT))
            )
        return Content(value, "PyTorch file", tuple(passed_over))
    names = [part for part in parts.parts if _counts(part)]
    if names and all(part.endswith(".npy") for part in names):
        arrays = {}
        for part in names:
            with parts.open(part) as stream:
                arrays[part.removesuffix(".npy")] = read_npy(stream, parts.parts[part].file_size)
                stream.read(1)  # the end, for the checksum
        return Content(arrays, "NumPy .npz")
    if any(part.endswith(("serialized_exported_program.json", "archive_format")) for part in names):
        raise _refused(
            name, Kind("a program of torch.export", "torch.export.load(FILE).state_dict has its weights")
        )
    if len(names) != 1:
        raise _refused(name, Kind(f"a zip archive of {len(names)} files: {_listed(names)}", _UNPACK))
    with parts.open(names[0]) as stream:
        return _read_unpacked(
            stream, f"{shortened(names[0])} in {name}", path.stat().st_size, unsafe_pickle, packed
        )


def _read_tar(file: BinaryIO, path: Path, name: str, unsafe_pickle: bool, packed: int) -> Content:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        members = [m for m in archive if m.isfile() and _counts(m.name)]
        names = [member.name for member in members]
        if set(names) >= _OLD_TAR:
            if unsafe_pickle:
                return _run(path, name)
            raise UntrustedError(
                f"{name} is a tar archive in the format of torch before 0.2, which only runs as code",
                ASK,
            )
        if len(members) != 1:
            raise _refused(name, Kind(f"a tar archive of {len(members)} files: {_listed(names)}", _UNPACK))
        stream = archive.extractfile(members[0])
        return _read_unpacked(
            stream, f"{shortened(names[0])} in {name}", path.stat().st_size, unsafe_pickle, packed
        )


def _counts(name: str) -> bool:
    """Whether a file in an archive is more than what a system or an archiver leaves there."""
    *folders, last = name.split("/")
    return bool(last) and not last.startswith("._") and last != ".DS_Store" and "__MACOSX" not in folders


def _read_unpacked(stream: Any, name: str, size: int, unsafe_pickle: bool, packed: int) -> Content:
    """What lies in an archive of ``size`` bytes, by way of a file that is deleted again."""
    if not packed:
        raise _refused(name, Kind("an archive in an archive in an archive", _UNPACK))
    limit = unpacked_limit(size)
    with tempfile.TemporaryDirectory(prefix="alphatune-") as folder:
        path = Path(folder) / "unpacked"
        try:
            with path.open("wb") as file:
                while chunk := stream.read(1 << 20):
                    if file.tell() + len(chunk) > limit:
                        raise _refused(name, Kind("larger by far than the archive it is in", _UNPACK))
                    file.write(chunk)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"no room to unpack {name}: {error.strerror}", "free space, or set TMPDIR"
                ) from None
            raise
        content = _read_file(path, name, unsafe_pickle, packed - 1)
    return replace(content, kind=f"{content.kind} in an archive")


def _run(path: Path, name: str) -> Content:
    """Unpickle with torch, without restriction."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # arbitrary code from the file may raise anything
        raise CheckpointError(f"cannot unpickle {name}: {type(error).__name__}: {one_line(error)}") from None
    return Content(value, "pickle", unsafe=True)


def _listed(names: Sequence[str], most: int = 4) -> str:
    listed = ", ".join(shortened(name) for name in names[:most])
    return f"{listed}, …" if len(names) > most else listed or "nothing"


def _corrupt(name: str, error: Exception) -> CheckpointError:
    reason = one_line(error) or type(error).__name__
    return CheckpointError(f"corrupt checkpoint {name}: {reason}", "download or copy it again")


def _refused(name: str, kind: Kind) -> CheckpointError:
    return CheckpointError(f"{name} is no checkpoint: it is {kind.name}", kind.hint)
