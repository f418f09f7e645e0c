"""Code blocks of Markdown pages, and the shell commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block, and the line of its fence."""

    page: str  # from the project's root
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Statement:
    """One command of a shell, without the redirection of its output."""

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    output: str = ""  # the file that takes stdout
    appends: bool = False

    def __str__(self) -> str:
        return " ".join(self.words)


def blocks_of(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            str(path.relative_to(ROOT)),
            text.count("\n", 0, found.start()) + 1,
            found["language"].strip(),
            re.sub(rf"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
        )
        for found in _FENCE.finditer(text)
    ]


def statements(code: str) -> Iterator[Statement]:
    """The commands of a script: continued lines, comments, ``&&``, ``;``, ``NAME=value`` and ``>`` are understood."""
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if token in ("&&", ";"):
                if words:
                    yield _statement(words)
                words = []
            else:
                words.append(token)


def _statement(words: list[str]) -> Statement:
    environment = []
    while "=" in words[0] and words[0].partition("=")[0].isidentifier():
        name, _, value = words.pop(0).partition("=")
        environment.append((name, value))
    output, appends = "", False
    for redirection in (">", ">>"):
        if redirection in words:
            place = words.index(redirection)
            output, appends = words[place + 1], redirection == ">>"
            del words[place : place + 2]
    if set(words) & {"|", "<", "&", "(", ")"}:
        raise ValueError(f"cannot follow {' '.join(words)}")
    return Statement(tuple(words), tuple(environment), output, appends)


def transcript(code: str) -> list[tuple[str, str]]:
    """The commands of a ``console`` block, each with the output shown under it."""
    found: list[tuple[str, str]] = []
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, output = found.pop()
            found.append((command, f"{output}{line}\n"))
    return found
