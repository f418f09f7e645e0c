"""The two formats of torch.save, and bare pickles, read by our own rules."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from alphatune.pickles.pickle_records import Global, MalformedError, Record
from alphatune.pickles.pickled_values import BUILDERS, STORAGES, VALUES, Storage
from alphatune.pickles.safe_pickle import Builder, SafeUnpickler, Source

_MAGIC = 0x1950A86A20F9469CFC6C
_CHUNK = 1 << 20
_BIG_ENDIAN = "it was written by a big-endian machine; load and save it again with torch"
#: how much larger than a file its content may be once it is unpacked; weights hardly shrink
MOST_UNPACKED, FREE_UNPACKED = 100, 2**26


class ZipParts:
    """The parts of a zip file, each read at most once and checked against its checksum.

    Raises:
        MalformedError, zipfile.BadZipFile: not a zip file that torch.save or NumPy would write.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._archive = zipfile.ZipFile(file)
        parts = self._archive.infolist()
        self.parts = {part.filename: part for part in parts}
        if len(self.parts) != len(parts):
            raise MalformedError("two of its parts have the same name")
        if sum(part.compress_size for part in parts) > size:
            raise MalformedError("its parts overlap")
        if sum(part.file_size for part in parts) > MOST_UNPACKED * size + FREE_UNPACKED:
            raise MalformedError("it would grow far beyond its size")
        for part in parts:
            if part.compress_type == zipfile.ZIP_STORED and part.file_size != part.compress_size:
                raise MalformedError("one of its parts has two sizes")

    def open(self, name: str) -> BinaryIO:
        """One part as a stream; its end has to be read for the checksum to be compared."""
        part = self.parts[name]
        if getattr(part, "CRC", None) == 0:  # torch.save may be told to leave them out
            del part.CRC
        return io.BufferedReader(self._archive.open(part))  # type: ignore[type-var]

    def read(self, name: str, most: int) -> bytes:
        """A small part."""
        if self.parts[name].file_size > most:
            raise MalformedError(f"its part {name.rpartition('/')[2]!r} is too large")
        with self.open(name) as file:
            return file.read()


def read_saved(file: BinaryIO, size: int) -> tuple[Any, dict[str, None]]:
    """What ``torch.save`` wrote, in any of its formats but the oldest; and the names in it that were passed over.

    Raises:
        MalformedError, or anything else on corrupt bytes.
    """
    head = file.read(4)
    file.seek(0)
    if not head.startswith(b"PK"):
        return read_stream(file, size)
    parts = ZipParts(file, size)
    root = weights_root(parts)
    if root is None:
        raise MalformedError("it is a zip file that torch.save did not write")
    return read_zip(parts, root)


def write_saved(value: Any, path: Path) -> None:
    """What ``torch.save`` makes of a value, or an OSError: a full disk is none to torch 2.4 in a file that it opens."""
    with path.open("wb") as file:
        torch.save(value, file)


def read_zip(parts: ZipParts, root: str) -> tuple[Any, dict[str, None]]:
    """What the pickle at ``root + "data.pkl"`` holds, and the names in it that were passed over."""
    if root + "byteorder" in parts.parts and parts.read(root + "byteorder", 16) != b"little":
        raise MalformedError(_BIG_ENDIAN)
    storages: dict[str, torch.Tensor] = {}

    def persistent(unpickler: SafeUnpickler, saved: Any) -> Any:
        kind, key, _, count, *_ = _storage_id(saved)
        dtype = STORAGES.get(kind)
        if dtype is None:
            unpickler.pass_over(kind)
            return Record(kind.replace(" ", "."))
        if key not in storages:
            storages[key] = _read_storage(parts, f"{root}data/{key}")
        if count * dtype.itemsize != storages[key].numel():
            raise MalformedError("a storage in it has another size than its data")
        return Storage(storages[key], dtype)

    name = root + "data.pkl"
    with parts.open(name) as file:
        unpickler = SafeUnpickler(Source(file, parts.parts[name].file_size), BUILDERS, VALUES, persistent)
        value = unpickler.load()
        while file.read(_CHUNK):  # to its end, for the checksum
            pass
    return value, unpickler.passed_over


def _read_storage(parts: ZipParts, name: str) -> torch.Tensor:
    if name not in parts.parts:
        raise MalformedError("a storage in it has no data")
    data = torch.empty(parts.parts[name].file_size, dtype=torch.uint8)
    with parts.open(name) as file:
        _fill(data, file)
        file.read(1)  # the end, for the checksum
    return data


def _fill(data: torch.Tensor, file: BinaryIO) -> None:
    view = memoryview(data.numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise MalformedError("it ends too early")
        done += count


def _storage_id(saved: Any) -> tuple[str, str, str, int, Any]:
    """The parts of a persistent id: class, key, place, number of elements, and what part of another it is."""
    if type(saved) is not tuple or len(saved) not in (5, 6) or saved[0] not in ("storage", b"storage"):
        raise MalformedError("it refers to data outside of itself")
    _, kind, key, place, count, *view = saved
    key = str(key) if type(key) is int else key
    if type(kind) is not Global or type(key) is not str or type(count) is not int or not 0 <= count < 2**63:
        raise MalformedError("a storage in it makes no sense")
    if not re.fullmatch(r"[\w-]{1,64}", key):
        raise MalformedError("a storage in it has an impossible name")
    return kind.name, key, place, count, view[0] if view else None


def read_stream(
    file: BinaryIO, size: int, builders: Mapping[str, Builder] = BUILDERS
) -> tuple[Any, dict[str, None]]:
    """What a bare pickle holds, or a file of torch.save before 1.6; and the names that were passed over."""
    source = Source(file, size)
    unpickler = SafeUnpickler(source, builders, VALUES)
    value = unpickler.load()
    if type(value) is not int or value != _MAGIC:
        return value, unpickler.passed_over
    if unpickler.load() != 1001:
        raise MalformedError("its version of torch's format is not known")
    system = unpickler.load()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise MalformedError(_BIG_ENDIAN)
    storages = _LegacyStorages(size)
    unpickler.persistent = storages.find
    value = unpickler.load()
    unpickler.persistent = None
    storages.read(unpickler.load(), source)
    return value, unpickler.passed_over


class _LegacyStorages:
    """Storages whose data come after the pickle that refers to them."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._storages: dict[str, Storage] = {}

    def find(self, _unpickler: SafeUnpickler, saved: Any) -> Any:
        """The storage of a persistent id; its memory is filled later."""
        if type(saved) is tuple and len(saved) == 4 and saved[0] == "module":
            return saved[1]  # a class, with its source, which is nobody's business
        kind, key, _, count, view = _storage_id(saved)
        if kind not in STORAGES:
            raise MalformedError(f"a storage in it is of the unknown kind {kind.rpartition(' ')[2][:40]!r}")
        dtype = STORAGES[kind]
        if key not in self._storages:
            self._left -= count * dtype.itemsize
            if self._left < 0:
                raise MalformedError("it ends too early")
            self._storages[key] = Storage(torch.empty(count * dtype.itemsize, dtype=torch.uint8), dtype)
        whole = self._storages[key]
        if whole.dtype is not dtype or whole.data.numel() != count * dtype.itemsize:
            raise MalformedError("a storage in it has two sizes")
        if view is None:
            return whole
        _, offset, length = view
        if type(offset) is not int or type(length) is not int or not 0 <= offset <= offset + length <= count:
            raise MalformedError("a part of a storage in it lies outside")
        return Storage(whole.data[offset * dtype.itemsize : (offset + length) * dtype.itemsize], dtype)

    def read(self, keys: Any, source: Source) -> None:
        """Fill all of them, in the order that the file has them in."""
        keys = [str(key) for key in keys if type(key) in (str, int)] if type(keys) is list else []
        if sorted(keys) != sorted(self._storages):
            raise MalformedError("it has other storages than it refers to")
        for key in keys:
            storage = self._storages[key]
            count = int.from_bytes(source.read(8), "little", signed=True)
            if count * storage.dtype.itemsize != storage.data.numel():
                raise MalformedError("a storage in it has another size than its data")
            if source.size - source.position < storage.data.numel():
                raise MalformedError("it ends too early")
            _fill(storage.data, source.file)
            source.position += storage.data.numel()


def weights_root(parts: ZipParts) -> str | None:
    """What the names of torch's parts begin with in a zip file; None where there are none of torch."""
    roots = [name[: -len("data.pkl")] for name in parts.parts if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    return roots[0] if len(roots) == 1 else None


def is_torchscript(parts: ZipParts, root: str) -> bool:
    """Whether a zip file of torch holds a program, too."""
    return root + "constants.pkl" in parts.parts or any(n.startswith(root + "code/") for n in parts.parts)


def unpacked_limit(size: int) -> int:
    """How large the content of a compressed file may be, in bytes."""
    return math.ceil(MOST_UNPACKED * size + FREE_UNPACKED)
