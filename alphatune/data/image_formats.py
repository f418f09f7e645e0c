"""Which files are images: by the endings PIL knows, or by their first bytes where the ending says nothing."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO

from PIL import Image

#: formats that PIL only names, or draws with another program
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MCIDAS", "MPEG", "WMF"}
#: formats whose first bytes are too common to know them by
_NO_SIGNATURE = {"DIB", "PCX"}
#: how many bytes of a file PIL looks at first
HEAD = 16


@cache
def image_endings() -> frozenset[str]:
    """The endings, in lower case and with the dot, of the formats that PIL decodes."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(e for e, name in known if name in Image.OPEN and name not in _NOT_DECODED)


@cache
def _signatures() -> tuple[tuple[str, Callable[[bytes], Any]], ...]:
    Image.init()
    passed_over = _NOT_DECODED | _NO_SIGNATURE
    return tuple((name, test) for name, (_, test) in Image.OPEN.items() if test and name not in passed_over)


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, with the dot."""
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""


def looks_like_image(head: bytes, whole: Callable[[], BinaryIO]) -> bool:
    """Whether PIL opens a file whose ending says nothing.

    Args:
        head: its first ``HEAD`` bytes.
        whole: opens it, once the first bytes are those of an image.

    Raises:
        OSError: ``whole`` does.
    """
    formats = [name for name, test in _signatures() if _accepts(test, head)]
    if not formats:
        return False
    with whole() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(file, formats=formats).close()
        except Image.DecompressionBombError:
            return True  # an image, whose size is refused by its name when it is read
        except Exception:  # plugins have errors of their own for what is no image
            return False
    return True


def _accepts(test: Callable[[bytes], Any], head: bytes) -> bool:
    try:
        found = test(head)
    except (IndexError, TypeError, ValueError, SyntaxError, struct.error):  # of a file that is too short
        return False
    return bool(found) and not isinstance(found, str)  # a text says what PIL was built without
