"""What somebody who mistyped a name may have meant."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

#: characters that look alike
_ALIKE = str.maketrans("oli", "011")


def closest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like one that is not known, the likeliest first.

    Upper and lower case count alike, and so do O and 0, l and 1, - and _ and
    nothing: a name that differs in nothing else is the only one.
    """
    spelled = {_folded(other): other for other in known}
    if exact := spelled.get(_folded(name)):
        return [exact]
    return [spelled[match] for match in difflib.get_close_matches(_folded(name), list(spelled), count)]


def _folded(name: str) -> str:
    return re.sub(r"(?<=\w)[-_](?=\w)", "", name.lower().translate(_ALIKE))


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """``did you mean resnet50 or resnet51q?``, or another hint where nothing is like it."""
    return one_of(closest(name, known), otherwise)


def one_of(meant: Sequence[str], otherwise: str = "") -> str:
    """``did you mean A, B or C?``, or another hint where there is nothing to suggest."""
    if not meant:
        return otherwise
    return f"did you mean {' or '.join(filter(None, (', '.join(meant[:-1]), meant[-1])))}?"


def did_you_mean_path(path: str | os.PathLike[str], otherwise: str = "") -> str:
    """The same for a path that is not there: the first part of it that is missing, among its neighbours."""
    wanted = Path(path)
    while wanted.name and not wanted.parent.is_dir():
        wanted = wanted.parent
    try:
        names = [entry.name for entry in os.scandir(wanted.parent) if not entry.name.startswith(".")]
    except OSError:  # a folder that may not be read
        return otherwise
    found = [str(wanted.parent / name) for name in closest(wanted.name, names)]
    return did_you_mean(str(wanted), found, otherwise) if found else otherwise
