"""Write docs/reference/cli.md from the commands themselves: ``python docs/cli_reference.py``.

A test compares the page with what this gives.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import typer

from alphatune.cli.help import split_examples, wrapped
from alphatune.cli.main import COMMANDS, app

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEAD = """\
# Command line

Generated from the program by `python docs/cli_reference.py`; do not edit.
`--help` shows a command's common options and `--help-all` every one. Options that mean the same in several commands
are described once, under [shared options](#shared-options); a command has those that it lists, or all of a group.
Longer explanations: [models and data](../models-and-data.md), [exit codes and gates](../exit-codes-and-gates.md).
"""


class Described(NamedTuple):
    """An option as a command has it; two commands share it where all of this is equal."""

    panel: str
    names: str
    line: str


def reference() -> str:
    """The page."""
    root = typer.main.get_command(app)
    context: Any = root.make_context("alphatune", ["--help"], resilient_parsing=True)
    options = {
        function.__name__: described(root.commands[function.__name__], context)
        for functions in COMMANDS.values()
        for function in functions
    }
    uses = Counter(option for members in options.values() for option in members)
    lines = [HEAD]
    for panel, functions in COMMANDS.items():
        names = ", ".join(f"[`{f.__name__}`](#alphatune-{f.__name__})" for f in functions)
        lines.append(f"- {panel}: {names}")
    for functions in COMMANDS.values():
        for function in functions:
            lines += ["", *command_lines(function, options[function.__name__], uses)]
    lines += ["", "## alphatune", "", "Without a command.", ""]
    lines += [line_of(param, context) for param in root.get_params(context)]
    lines += ["", "## Shared options"]
    for panel, members in by_panel(option for option, count in uses.items() if count > 1).items():
        lines += ["", f"### {panel}", "", *(option.line for option in members)]
    return "\n".join(lines) + "\n"


def described(command: Any, root: Any) -> list[Described]:
    """The arguments and options of a command."""
    context = command.make_context(command.name, [], parent=root, resilient_parsing=True)
    params = [p for p in command.get_params(context) if not p.hidden and p.name not in ("help", "help_all")]
    params.sort(key=lambda p: p.param_type_name != "argument")  # arguments first
    return [Described(panel_of(p), ", ".join(spelled(p)), line_of(p, context)) for p in params]


def panel_of(param: Any) -> str:
    """The heading an option stands under."""
    if param.param_type_name == "argument":
        return "Arguments"
    return getattr(param, "rich_help_panel", None) or "Options"


def command_lines(function: Any, options: list[Described], uses: Counter[Described]) -> list[str]:
    """One command: what it does, examples, its own options, and the names of those that it shares."""
    text, examples = split_examples(unindented(function.__doc__))
    lines = [f"## alphatune {function.__name__}", "", prose(text), ""]
    lines += ["```bash", *(wrapped(example) for example in examples), "```"]
    for panel, members in by_panel(option for option in options if uses[option] == 1).items():
        lines += ["", f"{panel}:", "", *(option.line for option in members)]
    shared = by_panel(option for option in options if uses[option] > 1)
    if shared:
        lines += ["", "Shared:", ""]
    everywhere = by_panel(option for option, count in uses.items() if count > 1)
    for panel, members in shared.items():
        anchor = re.sub(r"[^\w -]", "", panel).lower().replace(" ", "-")
        whole = len(members) == len(everywhere[panel]) > 1
        names = "all" if whole else ", ".join(option.names for option in members)
        lines.append(f"- [{panel}](#{anchor}): {names}")
    return lines


def by_panel(options: Iterable[Described]) -> dict[str, list[Described]]:
    """Options under their headings, in the order of help."""
    panels: dict[str, list[Described]] = {}
    for option in options:
        panels.setdefault(option.panel, []).append(option)
    return panels


def line_of(param: Any, context: Any) -> str:
    """An item of a list: names, value, default, and what it does."""
    names = spelled(param)
    if taken := value(param, context):
        names[-1] = f"{names[-1][:-1]} {taken}`"
    given = default(param)
    note = f" ({given if given == 'required' else f'default {given}'})" if given else ""
    return f"- {', '.join(names)}{note}: {prose(param.help or '')}"


def spelled(param: Any) -> list[str]:
    """An option's names as code, the short ones first; an argument's placeholder."""
    if param.param_type_name == "argument":
        return [f"`{param.metavar or param.name.upper()}`"]
    names = sorted([*param.opts, *param.secondary_opts], key=lambda name: name.startswith("--"))
    return [f"`{name}`" for name in names]


def value(param: Any, context: Any) -> str:
    """What the option takes; nothing for a flag."""
    shown = "" if param.param_type_name == "argument" else param.display_type_rich(context) or ""
    return {"<str>": "TEXT", "<int>": "N", "<int range>": "N", "<float>": "X"}.get(shown, shown.strip("<>"))


def default(param: Any) -> str:
    """The default; "required" where there is none and one must be given."""
    if param.required:
        return "required"
    if param.default is None or not param.show_default or callable(param.default):
        return ""
    if isinstance(param.default, bool):
        if not param.secondary_opts:
            return ""
        return f"`{(param.opts if param.default else param.secondary_opts)[0]}`"
    return f"`{param.default}`"


def prose(text: str) -> str:
    """A help text as Markdown: no markup of the terminal, options as code."""
    text = " \n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")).replace("\\[", "[")
    text = re.sub(r"([*_<])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*[a-z])", r"`\1`", text).replace(" \n\n", "\n\n")


def unindented(docstring: str) -> str:
    return re.sub(r"^ {4}", "", docstring, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
