"""What is kept of the objects in a pickle that nobody makes: their names and their data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


class MalformedError(ValueError):
    """A pickle that no well-behaved program writes."""


@dataclass(frozen=True, eq=False, repr=False)
class Global:
    """A name in the file: the module and, after a space, the name in it. Nobody looked it up."""

    name: str


class Record:
    """What an object would have been made of, had its class been looked up.

    Attributes:
        name: of its class or function, dotted.
        args: what it would have been called with.
        state: what would have been set on it, usually a dict of attributes.
        items: what would have been appended to it.
        entries: what would have been set in it by key.
    """

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    def __repr__(self) -> str:  # not of its content, which may be deep or hold itself
        return f"<{shortened(self.name)}>"

    @property
    def attributes(self) -> dict[Any, Any]:
        """What is known by name: attributes, and entries of what would have been a mapping."""
        states = self.state if type(self.state) is tuple else (self.state,)  # __dict__, and __slots__
        return {k: v for each in (*states, self.entries) if isinstance(each, dict) for k, v in each.items()}


def key_of(value: Any) -> Any:
    """A value as a key: itself where hashing it is quick and safe, else a record of it."""
    if type(value) in (str, bytes, float, bool, type(None), Record, Global, torch.dtype):
        return value
    if type(value) is int and -(2**63) <= value < 2**64:
        return value
    if (
        type(value) is tuple
        and len(value) < 32
        and all(type(each) in (str, int, float, bool) for each in value)
    ):
        return value
    return Record("key", (value,))


def shortened(name: str, limit: int = 60) -> str:
    """A name from a file, fit for one line of text."""
    printable = "".join(c if c.isprintable() else "?" for c in name[: limit + 1])
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def grouped(names: Iterable[str], most: int = 6) -> str:
    """``torch.nn (12 names), argparse.Namespace, …``: names in one line, those of one package together."""
    packages: dict[str, list[str]] = {}
    for name in names:
        packages.setdefault(
            ".".join(name.split(".")[:2]) if name.startswith("torch.") else name.split(".")[0], []
        ).append(name)
    parts = [
        shortened(inside[0]) if len(inside) == 1 else f"{shortened(package, 40)} ({len(inside)} names)"
        for package, inside in packages.items()
    ]
    rest = f", and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + rest
