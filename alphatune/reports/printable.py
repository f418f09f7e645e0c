"""Text of a user's that cannot spoil what it is printed in."""

from __future__ import annotations

import re

#: control characters, which XML forbids; halves of a surrogate pair, which UTF-8 forbids (a file may
#: have a name that is no Unicode); and marks that turn the direction of the letters after them
_SPOILING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def printable(text: object) -> str:
    """The text with a replacement character for each that could not be written, or would mislead."""
    return _SPOILING.sub("\ufffd", str(text))
