"""Compressed archives: decompressed once, because images are read from a tar in any order."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import tempfile
import weakref
import zlib
from pathlib import Path
from typing import Any

from alphatune.core.errors import DataError, ResourceError, one_line

_OPENERS: dict[str, Any] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}


def compression(path: Path) -> str:
    """The ending by which a compressed tar is known, or nothing."""
    return next((ending for ending in _OPENERS if path.name.lower().endswith(ending)), "")


class DecompressedTar:
    """The tar inside a ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz``, in a temporary file while this object lives.

    The file goes when the object or the process that made it goes; worker
    processes read it by its path and never remove it.

    Raises:
        DataError: the archive is corrupt or cut short.
        ResourceError: no room for it in the temporary folder.
    """

    def __init__(self, archive: Path) -> None:
        folder = tempfile.mkdtemp(prefix="alphatune-")
        remove = weakref.finalize(self, _remove, folder, os.getpid())
        self.path = Path(folder) / "archive.tar"
        try:
            with _OPENERS[compression(archive)](archive) as packed, self.path.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            remove()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"no room to decompress {archive} into {Path(folder).parent}",
                    "TMPDIR names another folder; or decompress it yourself and name the .tar",
                ) from None
            raise DataError(f"cannot read {archive}: {one_line(error)}") from None


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker drops its copy of the object, too
        shutil.rmtree(folder, ignore_errors=True)
