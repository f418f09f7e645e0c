"""Write docs/reference/cli.md from the commands themselves: ``python docs/cli_reference.py``.

A test compares the page with what this gives.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from alphatune.cli.help import split_examples, wrapped
from alphatune.cli.main import COMMANDS, app

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEAD = """\
# Every command and option

Made from the program by `python docs/cli_reference.py`; do not edit. [Command line](../cli.md) explains what
options mean together, and has the exit codes.
"""


def reference() -> str:
    """The page."""
    root = typer.main.get_command(app)
    context: Any = root.make_context("alphatune", ["--help"], resilient_parsing=True)
    lines = [HEAD]
    for panel, functions in COMMANDS.items():
        names = ", ".join(f"[`{f.__name__}`](#alphatune-{f.__name__})" for f in functions)
        lines.append(f"- {panel}: {names}")
    for functions in COMMANDS.values():
        for function in functions:
            lines += ["", *command_lines(function, root.commands[function.__name__], context)]
    lines += [
        "",
        "## alphatune",
        "",
        "Without a command.",
        "",
        *table("Options", root.get_params(context), context),
    ]
    return "\n".join(lines) + "\n"


def command_lines(function: Any, command: Any, root: Any) -> list[str]:
    """One command: what it does, how it is called, examples, and its options by panel."""
    context = command.make_context(function.__name__, [], parent=root, resilient_parsing=True)
    text, examples = split_examples(unindented(function.__doc__))
    params = [p for p in command.get_params(context) if not p.hidden and p.name != "help"]
    lines = [f"## alphatune {function.__name__}", "", prose(text), ""]
    lines += ["```bash", *(wrapped(example, 110) for example in examples), "```"]
    arguments = [p for p in params if p.param_type_name == "argument"]
    options = [p for p in params if p.param_type_name == "option"]
    panels: dict[str, list[Any]] = {"Arguments": arguments} if arguments else {}
    for param in options:
        panels.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(param)
    for panel, members in panels.items():
        lines += ["", *table(panel, members, context)]
    return lines


def table(panel: str, params: list[Any], context: Any) -> list[str]:
    """A panel as a table; the first heading is the panel's name."""
    rows = [f"| {panel} | value | default | |", "|---|---|---|---|"]
    for param in params:
        names = ", ".join(f"`{name}`" for name in spelled(param))
        cells = (names, value(param, context), default(param), prose(param.help or ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def spelled(param: Any) -> list[str]:
    """An option's names, the long ones first; an argument's placeholder."""
    if param.param_type_name == "argument":
        return [param.metavar or param.name.upper()]
    return sorted([*param.opts, *param.secondary_opts], key=lambda name: not name.startswith("--"))


def value(param: Any, context: Any) -> str:
    """What the option takes; nothing for a flag."""
    shown = "" if param.param_type_name == "argument" else param.display_type_rich(context) or ""
    shown = {"<str>": "TEXT", "<int>": "N", "<float>": "X"}.get(shown, shown.strip("<>"))
    return f"`{shown}`" if shown else ""


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
