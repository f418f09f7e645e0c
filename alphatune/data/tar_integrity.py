"""Does an archive go on where its reader stopped?

Python's tarfile takes a header that it cannot read for the end of the archive,
so that one flipped bit would leave out every image behind it without a word.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from alphatune.core.errors import DataError

_BLOCK = tarfile.BLOCKSIZE


def check_end(path: Path, last: tarfile.TarInfo, shown: str, size: int | None = None) -> tuple[str, ...]:
    """Read on behind the last file that was found.

    Args:
        last: the last file in the archive, by its place in ``path``.
        shown: what the archive is called in messages.
        size: where the archive ends, if it lies in another one.

    Returns:
        Warnings: none, or that the archive has no mark at its end.

    Raises:
        DataError: it was cut short, or what follows is no header.
    """
    end = _end(last.offset_data, last.size)
    size = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while True:
            if last.offset_data + last.size > size:
                raise DataError(f"{shown} is cut short: {last.name} is not all there")
            file.seek(end)
            block = file.read(_BLOCK) if end < size else b""
            if not block:
                return (f"{shown} has no end-of-archive mark: it may have been cut short",)
            if not any(block):
                return ()
            try:
                last = tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
            except tarfile.HeaderError as error:
                raise DataError(f"{shown} is damaged behind {last.name} (byte {end}): {error}") from None
            last.offset_data = end + _BLOCK
            holds_data = (
                last.isreg() or last.type not in tarfile.SUPPORTED_TYPES or last.type in _DESCRIPTIONS
            )
            last.size = last.size if holds_data else 0
            end = _end(last.offset_data, last.size)


#: headers of further headers, whose text is their data
_DESCRIPTIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


def _end(start: int, size: int) -> int:
    """Where data of this size end, filled up to whole blocks."""
    return start + -(-size // _BLOCK) * _BLOCK
