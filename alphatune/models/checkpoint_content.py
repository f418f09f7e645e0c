"""What a checkpoint file holds, whatever its ending says and however it is packed.

Nothing in the file is run. What a file is, its first bytes tell: safetensors,
the formats of torch.save, a bare pickle, TorchScript, NumPy's .npz, an archive
or a compressed file around one of them, or a folder or an index of several
files. Anything else is refused by its name.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from alphatune.core.errors import (
    AlphatuneError,
    CheckpointError,
    ResourceError,
    UntrustedError,
    one_line,
    raise_if_machine_failed,
)
from alphatune.models.checkpoint_files import files_of_checkpoint, listed, shards_of
from alphatune.models.file_kind import Kind, kind_of
from alphatune.pickles.numpy_values import read_npy
from alphatune.pickles.pickle_records import shortened
from alphatune.pickles.torch_file import (
    ZipParts,
    is_torchscript,
    read_stream,
    read_zip,
    unpacked_limit,
    weights_root,
)

ASK = "ask for a .safetensors file; `unsafe_pickle` runs the code if you trust its author"
TORCHSCRIPT = "TorchScript archive"
_OF_TORCHSCRIPT = ("__torch__.", "torch.jit._pickle.")  # names that its archives always have
_HEAD = 4096
_PACKED = 3  # archives within archives
_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open,
}  # fmt: skip
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
    file, *shards = files_of_checkpoint(path)
    if shards:
        return _read_sharded(file, unsafe_pickle)
    return _read_file(file, str(file), unsafe_pickle, _PACKED)


def _read_sharded(index: Path, unsafe_pickle: bool) -> Content:
    """All weights that an index names, from the files that it says."""
    shards = shards_of(index)
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
    if head[:1] in (b"\x80", b"(", b"c", b"}", b"]"):  # without the first, old protocols: they look like text
        if unsafe_pickle and head[:1] == b"\x80":
            return _run(path, name)
        try:
            value, passed_over = read_stream(file, size)
        except (ValueError, LookupError, TypeError, RecursionError):
            if head[:1] == b"\x80":
                raise
        else:
            if unsafe_pickle:
                return _run(path, name)
            return Content(value, "PyTorch file or pickle", tuple(passed_over))
    raise _refused(name, kind_of(head, size))


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
        raise _refused(name, Kind(f"a zip archive of {len(names)} files: {listed(names)}", _UNPACK))
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
            raise _refused(name, Kind(f"a tar archive of {len(members)} files: {listed(names)}", _UNPACK))
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


def _corrupt(name: str, error: Exception) -> CheckpointError:
    reason = one_line(error) or type(error).__name__
    return CheckpointError(f"corrupt checkpoint {name}: {reason}", "download or copy it again")


def _refused(name: str, kind: Kind) -> CheckpointError:
    return CheckpointError(f"{name} is no checkpoint: it is {kind.name}", kind.hint)
