"""How ``--help`` shows a command: examples that can be copied at 80 columns, flags without a type."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

from alphatune.settings import KINDS
from alphatune.settings.option import declared

#: in the meta of a context: that all options are asked for
EVERYTHING = "alphatune.every_option"
HEADING = "[bold]Examples[/bold]"
#: of an example; a terminal of 80 less typer's margins
WIDTH = 77

_OPTION_AND_VALUE = re.compile(r"((?<= )--?[\w-]+) (?=[^- ])")


class Command(TyperCommand):
    """A subcommand: the docstring of its function, whose examples are wrapped as a shell takes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        text, examples = split_examples(self.help or "")
        parts = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        if examples:
            parts += [HEADING, "\n".join(wrapped(example) for example in examples)]
        self.help = "\n\n".join(parts)

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types_of_flags(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the common options; with ``--help-all``, which sets ``ctx.meta[EVERYTHING]``, every one."""
        settings = declared(KINDS[self.name]) if self.name in KINDS else ()
        rare = {each.name for each in settings if not each.option.common}
        every = self.params
        try:
            if not ctx.meta.get(EVERYTHING):
                self.params = [param for param in every if param.name not in rare]
            super().format_help(ctx, formatter)
        finally:
            self.params = every


class Group(TyperGroup):
    """The command itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types_of_flags(super().get_params(ctx))


def split_examples(text: str) -> tuple[str, list[str]]:
    """What a docstring says, and its examples: one a paragraph after the heading."""
    text, _, examples = text.partition(HEADING)
    return text.strip(), [
        " ".join(paragraph.split()) for paragraph in examples.split("\n\n") if paragraph.strip()
    ]


def wrapped(example: str, width: int = WIDTH) -> str:
    """A command on lines of at most ``width``, continued by backslashes; a comment goes before it."""
    if len(example) <= width:
        return example
    command, mark, comment = example.partition(" # ")
    whole = _OPTION_AND_VALUE.sub("\\1\0", command.strip())  # not torn apart
    lines = textwrap.wrap(
        whole, width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    text = " \\\n".join(lines).replace("\0", " ")
    return f"# {comment.strip()}\n{text}" if mark else text


def without_types_of_flags(params: list[Any]) -> list[Any]:
    """``--overwrite`` and not ``--overwrite <bool>``."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params
