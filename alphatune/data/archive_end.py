"""Does an archive go on where its reader stopped?

Python's tarfile takes a header that it cannot read for the end of the archive,
so that one flipped bit would leave out every image behind it without a word.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path

from alphatune.errors import DataError

_BLOCK = tarfile.BLOCKSIZE


def check_end(path: Path, members: Iterable[tarfile.TarInfo], shown: str) -> tuple[str, ...]:
    """Read on behind the last member that was found.

    Args:
        members: of the archive itself, at least one.
        shown: what the archive is called in messages.

    Returns:
        Warnings: none, or that the archive has no mark at its end.

    Raises:
        DataError: it was cut short, or what follows is no header.
    """
    last = max(members, key=lambda member: member.offset_data)
    end, size = _end(last.offset_data, last.size), path.stat().st_size
    with path.open("rb") as file:
        while True:
            if last.offset_data + last.size > size:
                raise DataError(f"{shown} is cut short: {last.name} is not all there")
            file.seek(end)
            block = file.read(_BLOCK)
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
