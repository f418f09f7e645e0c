"""Shell completion, as a shell asks for it: through the installed command, in a process of its own."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ALPHATUNE = Path(sys.executable).parent / "alphatune"
SHELLS = ("bash", "zsh", "fish")

#: asks the function that the script registers, as bash does when Tab is pressed
ASK = """
source "$1"; shift
complete -p alphatune >&2
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_alphatune_completion alphatune
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    if not ALPHATUNE.exists():
        pytest.skip("the command is not installed beside this Python")
    return {**os.environ, "PATH": f"{ALPHATUNE.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def scripts(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The completion script of each shell, as the documentation has it printed."""
    folder, found = tmp_path_factory.mktemp("completion"), {}
    for shell in SHELLS:
        printed = subprocess.run(
            [ALPHATUNE], env={**environment, "_ALPHATUNE_COMPLETE": f"source_{shell}"},
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        found[shell] = folder / shell
        found[shell].write_text(printed.stdout)
    return found


@pytest.fixture(scope="module")
def bash(environment: dict[str, str], scripts: dict[str, Path]):
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")

    def ask(*words: str, **more: str) -> list[str]:
        done = subprocess.run(
            [shell, "--norc", "-c", ASK, "bash", scripts["bash"], "alphatune", *words],
            env={**environment, **more}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "-F _alphatune_completion" in done.stderr
        return [line for line in done.stdout.split("\n") if line]

    return ask


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tu"], ["tune"]),
        (["tune", "--granu"], ["--granularity"]),
        (["tune", "--granularity", ""], ["global", "stage", "layer", "channel"]),
        (["tune", "resnet50", "--metric", "lo"], ["loss"]),
        (["train", "resnet50", "--norm", "g"], ["ghost", "group"]),
        (["evaluate", "--format", "j"], ["json"]),
        (["doctor", "--form"], ["--format"]),
        (["bench", "resnet50", "--device", "c"], ["cpu", "cuda"]),
        (["nonsense", "--x"], []),
    ],
)
def test_bash(bash, words: list[str], expected: list[str]) -> None:
    assert bash(*words) == expected


def test_every_subcommand_completes(bash) -> None:
    from alphatune.cli.main import app

    assert bash("") == [command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("words", [["tune", ""], ["tune", "--data", "ph"], ["tune", "--checkpoint", "b"]])
def test_files_are_left_to_the_shell(bash, words: list[str]) -> None:
    """Nothing is offered, so that bash falls back to file names (complete -o default)."""
    assert bash(*words) == []


def test_completing_imports_none_of_the_large_packages(bash, tmp_path: Path) -> None:
    """Modules of these names that refuse to be imported change nothing."""
    for name in ("torch", "timm", "torchvision", "pandas"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported while completing')\n")
    assert bash("tune", "--granularity", "c", PYTHONPATH=str(tmp_path)) == ["channel"]
    done = subprocess.run(  # the instrument works
        [sys.executable, "-c", "import torch"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
    )
    assert b"imported while completing" in done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_ask_for_their_own_shell(scripts: dict[str, Path], shell: str) -> None:
    text = scripts[shell].read_text()
    assert f"_ALPHATUNE_COMPLETE=complete_{shell}" in text
    assert "alphatune" in text


def test_what_zsh_and_fish_are_answered(environment: dict[str, str]) -> None:
    """The answers of the scripts' own question; the shells themselves need not be here."""

    def answer(shell: str, line: str, **more: str) -> str:
        asked = {"_ALPHATUNE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, **more}
        return subprocess.run(
            [ALPHATUNE], env={**environment, **asked}, capture_output=True, text=True, timeout=60
        ).stdout

    assert '"channel"' in answer("zsh", "alphatune tune --granularity ch")
    assert answer("zsh", "alphatune tune --checkpoint be").strip() == "_files"
    fish = answer("fish", "alphatune tu", _TYPER_COMPLETE_FISH_ACTION="get-args")
    assert fish.split("\t")[0] == "tune"


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish(environment: dict[str, str], scripts: dict[str, Path]) -> None:
    code = f'source {scripts["fish"]}; complete -C "alphatune tune --granularity ch"'
    done = subprocess.run(
        ["fish", "--no-config", "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["channel"]


def test_installing_writes_where_bash_looks(environment: dict[str, str], tmp_path: Path) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")
    home = {**environment, "HOME": str(tmp_path), "SHELL": shell}
    subprocess.run(
        [shell, "--norc", "-c", "alphatune --install-completion; exit $?"],
        env=home, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    script = tmp_path / ".bash_completions" / "alphatune.sh"
    assert "_alphatune_completion" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_showing_finds_the_shell_that_asks(environment: dict[str, str], scripts: dict[str, Path]) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")
    command = [shell, "--norc", "-c", "alphatune --show-completion; exit $?"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == scripts["bash"].read_text().split()


def test_help_and_completion_are_quick(environment: dict[str, str], tmp_path: Path) -> None:
    """In seconds of the processor, beside an app of two bare commands; importing torch takes far longer."""
    bare = tmp_path / "bare.py"
    commands = ['@app.command()\ndef one() -> None: "One."', '@app.command()\ndef two() -> None: "Two."']
    bare.write_text("\n".join(["import typer", "app = typer.Typer()", *commands, "app()"]))

    def seconds(*command: object, **more: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*map(str, command)], env={**environment, **more}, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    asked = {"_ALPHATUNE_COMPLETE": "complete_bash", "COMP_WORDS": "alphatune tu", "COMP_CWORD": "1"}
    rounds = [
        (
            seconds(sys.executable, bare, "--help"),
            seconds(ALPHATUNE, "--help"),
            seconds(ALPHATUNE, "tune", "--help"),
            seconds(ALPHATUNE, **asked),
        )
        for _ in range(3)
    ]
    typer, overview, tune, completion = map(min, zip(*rounds, strict=True))
    assert overview < 2.5 * typer
    assert tune < 4 * typer
    assert completion < 2.5 * typer
