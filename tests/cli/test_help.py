"""``--help`` as a terminal of 80 columns shows it."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import Run

from alphatune.cli.help import HEADING, split_examples, wrapped
from alphatune.cli.main import COMMANDS, app
from alphatune.settings import KINDS
from alphatune.settings.option import declared

NAMES = [command.callback.__name__ for command in app.registered_commands]


def shown(run: Run, monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    code, stdout, stderr = run(*argv, "--help")
    assert (code, stderr) == (0, "")
    return re.sub(r"\x1b\[[0-9;]*m", "", stdout)  # typer colours it under GITHUB_ACTIONS, pipe or not


def examples(page: str) -> list[str]:
    """The lines between the heading and the first panel, without their margin."""
    block = page.partition("Examples\n")[2] or re.split(r" Examples\s*\n", page, maxsplit=1)[1]
    return [line.strip() for line in block.partition("╭")[0].splitlines() if line.strip()]


@pytest.mark.parametrize("name", NAMES)
def test_help_is_short_and_help_all_is_whole(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    page = shown(run, monkeypatch, name)
    assert len(page.splitlines()) <= 90
    if name not in KINDS:
        return
    monkeypatch.setenv("COLUMNS", "140")  # where no name is cut
    code, everything, _ = run(name, "--help-all")
    assert code == 0
    for each in declared(KINDS[name]):
        if each.option.given_by:
            continue
        option = f"--{each.name.replace('_', '-')}"
        assert each.name == "model" or re.search(rf"{option}\b", everything), option
        if each.name != "model":
            listed = re.search(rf"^│[ *]+{option}\s", page, re.MULTILINE)
            assert bool(listed) == each.option.common, option


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_examples_that_can_be_copied(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    page = shown(run, monkeypatch, name)
    assert all(len(line) <= 80 for line in page.splitlines())
    assert "[bold]" not in page
    assert "<bool>" not in page
    text = "\n".join(examples(page)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines()]
    commands = [words for words in commands if words]
    captions = [line for line in text.splitlines() if line.startswith("# ")]
    assert len(captions) == len(commands)  # each says what it is for
    documented = split_examples(vars(app.registered_commands[NAMES.index(name)])["callback"].__doc__)[1]
    assert commands == [shlex.split(example, comments=True) for example in documented]
    assert all(name in words for words in commands)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_grouped(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A long list has panels, and the panel that typer makes up for the rest holds no more than a few."""
    page = shown(run, monkeypatch, name)
    panels = dict(re.findall(r"╭─ ([^─]+?) ─+╮\n(.*?)╰─", page, re.DOTALL))
    count = {title: len(re.findall(r"^│ [* ]*--", body, re.MULTILINE)) for title, body in panels.items()}
    assert sum(count.values()) >= 1
    assert count.get("Options", 0) <= 4, count


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_that_says_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Ranges that every number of the kind is in, types of texts; and no word is cut in the middle."""
    monkeypatch.setenv("COLUMNS", "80")
    page = run(name, "--help-all" if name in KINDS else "--help")[1]
    assert not re.search(r"x>=|<=x|<str>|<int|<float>|<bool>|<list", page)
    for choices in re.findall(r"<[\w-]+\|[^>│]*", page):
        assert re.search(re.escape(choices) + ">", page), choices


def test_without_arguments_it_shows_the_help(run: Run) -> None:
    code, stdout, stderr = run()
    assert (code, stderr) == (2, "")
    assert stdout.split() == run("--help")[1].split()


def test_subcommands_are_grouped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    page = shown(run, monkeypatch)
    for panel, commands in COMMANDS.items():
        body = page.partition(f"╭─ {panel} ─")[2].partition("╰─")[0]
        assert [command.__name__ for command in commands] == re.findall(r"^│ (\w+) ", body, re.MULTILINE)
    assert sum(len(commands) for commands in COMMANDS.values()) == len(NAMES)
    assert "Exit codes" in page


def test_a_long_example_is_wrapped_between_options() -> None:
    example = "alphatune tune m.py:build --checkpoint best.pth --exclude 'layer 4.*' -o out"
    assert wrapped(example, 200) == example
    lines = wrapped(example, 40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert all(line.lstrip().startswith("-") for line in lines[1:])
    assert shlex.split(wrapped(example, 40).replace("\\\n", "")) == shlex.split(example)
    commented = wrapped("alphatune evaluate tuned --data somewhere # why not", 40).splitlines()
    assert commented == ["# why not", "alphatune evaluate tuned \\", "    --data somewhere"]


def test_examples_of_a_docstring() -> None:
    assert split_examples(f"Do it.\n\nMore.\n\n{HEADING}\n\na b\nc\n\nd\n") == (
        "Do it.\n\nMore.",
        ["a b c", "d"],
    )
    assert split_examples("Do it.") == ("Do it.", [])
