"""What to say about a command line that cannot be understood."""

from __future__ import annotations

import re
from collections.abc import Mapping

import typer

from alphatune.core.errors import ConfigurationError, one_line
from alphatune.core.suggestions import did_you_mean
from alphatune.settings.naming import as_options as as_options

_EXTRA = re.compile(r"[Uu]nexpected extra argument(?:\(s\)|s)? \((.+?)\)")
_NO_CHOICE = re.compile(r"'([^']*)' is not one of (.+?)\.?$")


def explain(error: typer.TyperException) -> tuple[str, str]:
    """Message and hint for a usage error of typer's."""
    message = one_line(error.format_message()).replace("Value error, ", "")
    if (option := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
        return f"no such option: {option}", _meant(error, option)
    if choice := _NO_CHOICE.search(message):
        return message, did_you_mean(choice[1], re.findall(r"'([^']*)'", choice[2]), "see --help")
    if extra := _EXTRA.search(message):
        listed = all(re.fullmatch(r"[-+.\d]+", word) for word in extra[1].split())
        return (
            message,
            "the values of a list are separated by commas, without spaces" if listed else "see --help",
        )
    return message, "see --help"


def name_owners(hint: str, command: str, commands: Mapping[str, object]) -> str:
    """A hint of the library's, with the commands that have the options in it where this one lacks them."""
    options = {name: _options(each) for name, each in commands.items()}
    parts = [hint]
    for option in dict.fromkeys(re.findall(r"--[a-z][a-z-]+", hint)):
        owners = [name for name, own in options.items() if option in own]
        named = any(re.search(rf"\b{owner}\b", hint) for owner in owners)
        if owners and not named and option not in options.get(command, [option]):
            parts.append(f"{option} is an option of {', '.join(owners)}")
    return "; ".join(parts)


def require_utf8(name: str) -> None:
    """Refuse the name of a file, whose bytes may be any, that results could not hold, which are UTF-8.

    Raises:
        ConfigurationError: before anything is measured.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"expected UTF-8, got {name!r}", "rename the file or folder") from None


def _meant(error: typer.TyperException, option: str) -> str:
    """The commands that have it, or options of this one that look like it."""
    context = getattr(error, "ctx", None)
    if context is None:
        return "see --help"
    root = context.find_root().command
    owners = [
        name
        for name, command in getattr(root, "commands", {}).items()
        if command is not context.command and option in _options(command)
    ]
    if owners:
        return f"an option of {', '.join(owners)}"
    return did_you_mean(option, _options(context.command), "see --help")


def _options(command: object) -> list[str]:
    params = getattr(command, "params", [])
    return [name for p in params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")]
