"""Images under several conditions, as people name them: ``NAME=DATA``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from alphatune.core.errors import ConfigurationError

#: the condition of the images that ``data`` names
CLEAN = "clean"


def split_name(text: str) -> tuple[str, str]:
    """``("nightcam", "DIR2")`` of ``nightcam=DIR2``; the name is "" where there is none.

    A name is made of letters, digits, - and _. A path that exists as a whole has none.
    """
    found = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", text, re.DOTALL)
    return (found[1], found[2]) if found and not Path(text).exists() else ("", text)


def parse_named(text: str) -> tuple[str, str]:
    """Name and data of ``nightcam=DIR2``; raises ConfigurationError if there is no name."""
    name, data = split_name(text)
    if not name:
        raise ConfigurationError(
            f"expected NAME=DATA, got {text!r}",
            "a name is made of letters, digits, - and _, as in nightcam=DIR",
        )
    return name, data


def split_clean(texts: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Which of several data are the clean ones, and the others as NAME=DATA: those called clean, or the first.

    Raises:
        ConfigurationError: others without a name.
    """
    names = [split_name(text)[0] for text in texts]
    first = names.index(CLEAN) if CLEAN in names else 0
    others = tuple(text for place, text in enumerate(texts) if place != first)
    for text in others:
        parse_named(text)
    return split_name(texts[first])[1], others
