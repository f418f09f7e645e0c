"""Class folders in a tar or zip: the same inventory as of a folder, and images read by their place in the file."""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from alphatune.core.errors import DataError, one_line
from alphatune.data.image_formats import HEAD, ending_of, image_endings, looks_like_image
from alphatune.data.inventory import Inventory, is_hidden_file, is_hidden_folder
from alphatune.data.tar_integrity import check_end

_ZIP_HEADER = struct.Struct("<4s22xHH")  # signature; lengths of the name and of what follows it
_NO_CRC = -1
_LARGEST = 2**30  # bytes of one unpacked image
_LINKS = 40  # that may lead to each other


class Entry(NamedTuple):
    """A member of an archive: a folder, a link, or a file with the place of its bytes (of its header, in a zip)."""

    name: str
    folder: bool = False
    link: str | None = None  # the member it leads to
    start: int = 0
    size: int = 0  # as stored
    method: int = zipfile.ZIP_STORED
    crc: int = _NO_CRC  # only a zip has one

    @property
    def place(self) -> tuple[int, int, int, int]:
        return self.start, self.size, self.method, self.crc


class ArchiveLoad:
    """Read images by their place in an archive, through a file handle of this process only.

    A forked worker that shares an open file shares its position, and would
    read another worker's bytes. ``keep`` is what must outlive the images in
    the process that made it.
    """

    encoded = True

    def __init__(
        self, path: Path, source: str, entries: Iterable[tuple[str, Entry]], keep: Any = None
    ) -> None:
        names, places = zip(*((os.fsencode(name), entry.place) for name, entry in entries), strict=True)
        self._path, self._source, self._keep = path, source, keep
        self._names, self._places = np.array(names), np.array(places)  # blocks that forked workers share
        self._file: BinaryIO | None = None
        self._pid = -1

    def __call__(self, index: int) -> tuple[Any, str]:
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = self._path.open("rb"), os.getpid()
        place = self._places[index].tolist()
        return _read(self._file, *place), os.fsdecode(self._names[index])

    def files(self, _: np.ndarray) -> list[str]:
        """The file that holds the images."""
        return [self._source]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_keep": None, "_file": None}


def _read(file: BinaryIO, start: int, size: int, method: int, crc: int) -> bytes:
    file.seek(start)
    if crc != _NO_CRC:
        header = file.read(_ZIP_HEADER.size)
        if len(header) != _ZIP_HEADER.size or header[:4] != b"PK\3\4":
            raise OSError("the archive is damaged: a header is missing")
        _, name, extra = _ZIP_HEADER.unpack(header)
        file.seek(name + extra, os.SEEK_CUR)
    content = file.read(size)
    if len(content) != size:
        raise OSError("the archive is cut short")
    if crc == _NO_CRC:
        return content
    try:
        if method == zipfile.ZIP_DEFLATED:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
            content = unpacker.decompress(content, _LARGEST)
            if unpacker.unconsumed_tail:
                raise OSError("the file is larger than 1 GiB")
    except zlib.error as error:
        raise OSError(f"the archive is damaged: {error}") from None
    if zlib.crc32(content) != crc:
        raise OSError("the archive is damaged: its checksum differs")
    return content


def list_tar(path: Path, shown: str) -> tuple[Inventory, dict[str, Entry], tuple[str, ...]]:
    """The inventory of a tar, the place of each image, and warnings; a tar in it counts as a folder.

    Raises:
        DataError: it is damaged or cut short, or holds an image twice.
    """
    entries, notes = list_members(path, shown)
    try:
        with path.open("rb") as file:
            return *_inventory(entries, file, shown), notes
    except OSError as error:
        raise DataError(f"cannot read {shown}: {one_line(error)}") from None


def list_members(path: Path, shown: str) -> tuple[list[Entry], tuple[str, ...]]:
    """The members of a tar by their headers, those of tars in it among them, and warnings.

    Raises:
        DataError: it is damaged or cut short.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            return _tar_entries(archive, path, shown)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise DataError(f"cannot read {shown}: {one_line(error)}") from None


def list_zip(path: Path, shown: str) -> tuple[Inventory, dict[str, Entry], tuple[str, ...]]:
    """The same of a zip.

    Raises:
        DataError: it is damaged, encrypted or compressed in a rare way, or holds an image twice.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = [_zip_entry(archive, info, shown) for info in archive.infolist()]
            return *_inventory(entries, file, shown), ()
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {shown}: {one_line(error)}") from None


def clean_name(name: str) -> str:
    """A member's name as a path below the archive: not absolute, without ``.`` and ``..``."""
    if name[:1] not in "./" and "//" not in name and "/." not in name:
        return name.rstrip("/")  # as nearly all are
    return posixpath.normpath(f"/{name}").lstrip("/")


def _inventory(entries: list[Entry], file: BinaryIO, shown: str) -> tuple[Inventory, dict[str, Entry]]:
    inventory, known = Inventory(shown), image_endings()
    names = [clean_name(entry.name) for entry in entries]
    named = dict(zip(names, entries, strict=True))
    images: dict[str, Entry] = {}
    hidden: dict[str, None] = {}
    for name, entry in zip(names, entries, strict=True):
        parts = name.split("/") if name else []
        folders = parts if entry.folder else parts[:-1]
        junk = next((i for i, part in enumerate(folders) if is_hidden_folder(part)), None)
        folder = "/".join(folders[:junk])
        if folder and folder not in inventory.folders:
            inventory.folders |= {"/".join(folders[: i + 1]) for i in range(len(folders[:junk]))}
        if junk is not None:
            hidden["/".join(folders[: junk + 1])] = None
            continue
        if entry.folder or not parts:
            continue
        found = _followed(entry, named)
        if is_hidden_file(parts[-1]):
            inventory.hidden_files.append(name)
        elif found is None:
            inventory.add_unread(folder, "link")
        elif ending_of(parts[-1]) not in known and not _sniff(file, found, name, shown):
            inventory.add_unread(folder, ending_of(parts[-1]) or "no ending")
        elif name in images:
            raise DataError(f"{shown} holds {name} twice: every image must count once")
        else:
            images[name] = found
    inventory.images += images
    inventory.hidden_folders += hidden
    return inventory, images


def _followed(entry: Entry, named: dict[str, Entry]) -> Entry | None:
    """The file that an entry is or leads to."""
    for _ in range(_LINKS):
        if entry.link is None:
            return None if entry.folder else entry
        if (found := named.get(clean_name(entry.link))) is None:
            return None
        entry = found
    return None


def _sniff(file: BinaryIO, entry: Entry, name: str, shown: str) -> bool:
    def whole() -> BinaryIO:
        return io.BytesIO(_read(file, *entry.place))

    try:
        head = entry._replace(size=min(entry.size, HEAD)) if entry.crc == _NO_CRC else entry
        return looks_like_image(_read(file, *head.place)[:HEAD], whole)
    except OSError as error:
        raise DataError(f"cannot read {name} in {shown}: {error}") from None


def _tar_entries(
    archive: tarfile.TarFile, path: Path, shown: str, begin: int = 0, end: int | None = None
) -> tuple[list[Entry], tuple[str, ...]]:
    """The entries of a tar that lies between two places of a file, those of tars in it among them."""
    entries: list[Entry] = []
    last: tarfile.TarInfo | None = None
    for info in archive:
        start = begin + info.offset_data
        if info.issparse():
            raise DataError(f"{info.name} in {shown} is stored as a sparse file", "pack it without --sparse")
        if info.isreg():
            last = info
            if end is None and info.name.lower().endswith(".tar"):
                entries += _inner_entries(archive, info, path, shown)
            else:
                entries.append(Entry(info.name, start=start, size=info.size))
        elif info.issym():
            entries.append(Entry(info.name, link=posixpath.join(posixpath.dirname(info.name), info.linkname)))
        elif info.islnk():
            entries.append(Entry(info.name, link=info.linkname))
        elif info.isdir():
            entries.append(Entry(info.name, folder=True))
        else:
            entries.append(Entry(info.name, link=""))  # a device, which leads to no file
    if last is None:
        return entries, ()
    last.offset_data += begin
    return entries, check_end(path, last, shown, end)


def _inner_entries(archive: tarfile.TarFile, outer: tarfile.TarInfo, path: Path, shown: str) -> list[Entry]:
    folder = outer.name[: -len(".tar")]
    begin, end = outer.offset_data, outer.offset_data + outer.size
    try:
        with tarfile.open(fileobj=archive.extractfile(outer), mode="r:") as inner:
            entries, _ = _tar_entries(inner, path, f"{outer.name} in {shown}", begin, end)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise DataError(f"cannot read {outer.name} in {shown}: {one_line(error)}") from None
    return [
        e._replace(name=f"{folder}/{clean_name(e.name)}", link=e.link and f"{folder}/{clean_name(e.link)}")
        for e in entries
    ]


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, shown: str) -> Entry:
    name = info.filename
    if not info.flag_bits & 0x800:  # in no known encoding; some programs write UTF-8 and do not say so
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    if info.create_system == 0 and "/" not in name:  # of DOS and Windows
        name = name.replace("\\", "/")
    if info.is_dir() or name.endswith("/"):
        return Entry(name, folder=True)
    if info.flag_bits & 1:
        raise DataError(f"{shown} is encrypted", "unpack it")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{info.filename} in {shown} is compressed by method {info.compress_type}", "pack it by deflate"
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        target = archive.read(info).decode("utf-8", "surrogateescape")
        return Entry(name, link=posixpath.join(posixpath.dirname(name), target))
    return Entry(
        name, start=info.header_offset, size=info.compress_size, method=info.compress_type, crc=info.CRC
    )
