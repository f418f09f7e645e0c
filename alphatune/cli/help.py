"""How ``--help`` shows a command: examples that can be copied at 80 columns, no types that say nothing."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

from alphatune.settings import KINDS
from alphatune.settings.option import MAX_SEED, declared

#: in the meta of a context: that all options are asked for
EVERYTHING = "alphatune.every_option"
HEADING = "[bold]Examples[/bold]"
#: of an example; a terminal of 80 less typer's margins
WIDTH = 77
#: of the values an option takes; a longer list is told in its help
LONGEST_CHOICE = 20

_PLACEHOLDERS = {"<int>": "N", "<int range>": "N", "<float>": "X", "<str>": "NAME"}
_OPTION_AND_VALUE = re.compile(r"((?<= )--?[\w-]+) (?=[^- ])")


class Command(TyperCommand):
    """A subcommand: the docstring of its function, whose examples are wrapped as a shell takes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        text, examples = split_examples(self.help or "")
        parts = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        if examples:
            shown = "\n".join(wrapped(example) for example in examples)
            parts += [HEADING, re.sub("^# .*", r"[dim]\g<0>[/dim]", shown, flags=re.MULTILINE)]
        self.help = "\n\n".join(parts)

    def get_params(self, ctx: Any) -> list[Any]:
        return [in_short(param) for param in super().get_params(ctx)]

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
        return [in_short(param) for param in super().get_params(ctx)]


def split_examples(text: str) -> tuple[str, list[str]]:
    """What a docstring says, and its examples: one a paragraph after the heading."""
    text, _, examples = text.partition(HEADING)
    return text.strip(), [
        " ".join(paragraph.split()) for paragraph in examples.split("\n\n") if paragraph.strip()
    ]


def wrapped(example: str, width: int = WIDTH) -> str:
    """A command on lines of at most ``width``, continued by backslashes; its comment goes before it."""
    text, mark, comment = example.partition(" # ")
    text = text.strip()
    if len(text) > width:
        whole = _OPTION_AND_VALUE.sub("\\1\0", text)  # not torn apart
        lines = textwrap.wrap(
            whole, width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        text = " \\\n".join(lines).replace("\0", " ")
    return f"# {comment.strip()}\n{text}" if mark else text


def in_short(param: Any) -> Any:
    """A parameter without what says nothing: the type of a flag or a text, the range of a whole number."""
    if getattr(param, "is_flag", False) and param.metavar is None:
        param.metavar = ""  # --overwrite and not --overwrite <bool>
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    if (low, high) != (None, None) and low in (None, 0, 1) and high in (None, MAX_SEED):
        param._get_number_range_help_str = lambda: None
    shown = "" if param.metavar is not None else param.display_type_rich(None) or ""
    if param.param_type_name == "argument":
        param.display_type_rich = lambda *_, **__: ""  # a text, like all of them
    elif shown in _PLACEHOLDERS:
        param.metavar = _PLACEHOLDERS[shown]
    elif "|" in shown and len(shown) > LONGEST_CHOICE:  # which would be cut in the middle of a word
        choices = shown.strip("<>").split("|")
        param.metavar = param.name.rpartition("_")[2].upper()
        if not all(choice in (param.help or "") for choice in choices):
            param.help = f"{param.help} One of: {', '.join(choices)}."
    return param
