"""The pipelines of docs/ci.md: YAML that says what it should, commands that the program accepts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import ROOT

from alphatune.cli.main import app
from alphatune.reports.step_summary import MOST_BYTES

PAGE = ROOT / "docs" / "ci.md"
OPERATORS = {"|", "||", "&&", ";", ">", ">>", "&", "<"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def workflow() -> dict[Any, Any]:
    return yaml.safe_load(blocks("yaml")[0])


def pipeline() -> dict[str, Any]:
    return yaml.safe_load(blocks("yaml")[2])


def commands_of(script: str) -> Iterator[list[str]]:
    """Every call of alphatune in a shell script, as words, up to the next operator."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words = list(lexer)
        for at, word in enumerate(words):
            if word == "alphatune" and (at == 0 or words[at - 1] in OPERATORS):
                end = next((i for i in range(at, len(words)) if words[i] in OPERATORS), len(words))
                yield words[at + 1 : end]


def scripts() -> list[str]:
    (job,) = workflow()["jobs"].values()
    (gitlab,) = pipeline().values()
    return [
        *(step["run"] for step in job["steps"] if "run" in step),
        *gitlab["before_script"],
        *gitlab["script"],
        *blocks("bash"),
    ]


def test_the_program_accepts_the_commands() -> None:
    """By its own parser; nothing is run."""
    found = [words for script in scripts() for words in commands_of(script)]
    assert {words[0] for words in found} == {"tune", "evaluate", "compare"}
    group: Any = typer.main.get_command(app)
    for words in found:
        context = group.commands[words[0]].make_context(words[0], list(words[1:]))
        assert not context.args, words
    tuning = [words for words in found if words[0] == "tune"]
    *recipes, with_gates = tuning
    assert len(recipes) == 2
    for (
        words
    ) in recipes:  # green where alpha does not help; a size is given, and the folder is the one that is kept
        assert not {"--require-significant", "--min-gain"} & set(words)
        assert "--input-size" in words
        assert words[words.index("--output") + 1] == "tuned"
    assert {"--require-significant", "--min-gain", "--max-regression", "--max-latency-ratio"} <= set(
        with_gates
    )


def test_a_command_that_is_wrong_would_be_noticed() -> None:
    group: Any = typer.main.get_command(app)
    (words,) = commands_of("cd x && alphatune tune net --data d \\\n  --min-gian 0.1 > out.json")
    assert words == ["tune", "net", "--data", "d", "--min-gian", "0.1"]
    with pytest.raises(typer.TyperException):
        group.commands["tune"].make_context("tune", words[1:])


def test_the_workflow_of_github() -> None:
    document = workflow()
    triggers = document.pop(True)  # YAML 1.1 takes the key ``on`` for a truth value; GitHub does not
    assert set(triggers) <= {"workflow_dispatch", "push", "pull_request", "schedule"}
    assert set(document) <= {"name", "permissions", "env", "concurrency", "jobs"}
    assert document["permissions"] == {"contents": "read"}
    (job,) = document["jobs"].values()
    python = next(step for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python"))[
        "with"
    ]
    assert (python["python-version"], python["cache"]) == ("3.12", "pip")
    assert set(job) <= {"name", "runs-on", "timeout-minutes", "env", "steps", "strategy", "needs", "if"}
    for step in job["steps"]:
        assert set(step) <= {"name", "id", "if", "uses", "with", "run", "env", "shell", "continue-on-error"}
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+(/[a-z]+)?@v\d+", step["uses"])
    names = [step.get("name", "") for step in job["steps"]]
    after = job["steps"][names.index("Tune") + 1 :]
    assert all(step["if"] == "${{ !cancelled() }}" for step in after)  # also when a gate failed
    by_use = {step["uses"].partition("@")[0]: step["with"] for step in job["steps"] if "uses" in step}
    assert job["env"]["ALPHATUNE_CACHE"] == "${{ github.workspace }}/" + by_use["actions/cache/save"]["path"]
    assert by_use["actions/cache/restore"]["path"] == by_use["actions/cache/save"]["path"]
    assert by_use["actions/cache/restore"]["key"] == by_use["actions/cache/save"]["key"]
    prefix = by_use["actions/cache/restore"]["restore-keys"].strip()
    assert by_use["actions/cache/save"]["key"].startswith(prefix)
    assert by_use["actions/upload-artifact"]["path"].split() == ["tuned", "tuned.json"]


def test_the_job_of_gitlab() -> None:
    (job,) = pipeline().values()
    assert set(job) <= {
        "image",
        "variables",
        "rules",
        "cache",
        "before_script",
        "script",
        "artifacts",
        "tags",
        "stage",
    }
    assert job["cache"]["when"] == job["artifacts"]["when"] == "always"
    folder = job["variables"]["ALPHATUNE_CACHE"].removeprefix("$CI_PROJECT_DIR/")
    assert f"{folder}/" in job["cache"]["paths"]
    assert any(f"chmod -R go-w {folder}" in line for line in job["before_script"])
    assert job["artifacts"]["paths"] == ["tuned/"]


def test_the_summary_is_cut_where_the_page_says() -> None:
    assert MOST_BYTES <= 900_000
    assert "below 900 KB" in PAGE.read_text(encoding="utf-8")


def test_the_script_that_reads_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of the page fails if anything is worse."""
    monkeypatch.chdir(tmp_path)
    (line,) = [line for line in blocks("bash")[-1].splitlines() if line.startswith("python")]
    for verdict, code in (("worse", 1), ("undecided", 0), ("better", 0), (None, 0)):
        rows = [{"verdict": "better"}, {"verdict": verdict}]
        Path("comparison.json").write_text(json.dumps({"comparisons": [{"differences": rows}]}))
        with pytest.raises(SystemExit) as stop:
            exec(shlex.split(line)[2], {})
        assert int(stop.value.code or 0) == code
