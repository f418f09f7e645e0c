"""What a setting is called: a name in backticks in the library's texts, an option on a command line."""

from __future__ import annotations

import re

from alphatune.settings import KINDS
from alphatune.settings.option import declared

#: whatever is an option of some command; the last ones are of the terminal, or not of a job with a model
_SETTINGS = {each.name for kind in KINDS.values() for each in declared(kind)} | {
    "checkpoints", "config", "dry_run", "paths", "plan", "processes", "scores", "seeds", "stdout",
}  # fmt: skip


def as_options(text: str) -> str:
    """Text of the library's, with every setting that it names as the option it is.

    The library writes `batch_size` or `batch_size=8`; here that is --batch-size and --batch-size 8.
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in _SETTINGS:
            return found[0]
        word = name.replace("_", "-")
        if value == "False":
            return f"--no-{word}"
        return f"--{word} {value}" if value else f"--{word}"

    return re.sub(r"`([a-z_]+)(?:=([^`]+))?`", option, text)
