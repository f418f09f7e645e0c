"""The composite action in .github: its shape, and its steps in the place of a runner."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, TINY, write_images

ACTION = ROOT / ".github" / "actions" / "tune"
DOCUMENT: dict[str, Any] = yaml.safe_load((ACTION / "action.yml").read_text(encoding="utf-8"))
STEPS: dict[str, Any] = {step["name"]: step for step in DOCUMENT["runs"]["steps"]}
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")


class Runner:
    """As much of a runner as the steps need: files to write to, and programs of ours first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outputs = folder, {}
        self.programs, self.temp = folder / "bin", folder / "temp dir"
        for each in (self.programs, self.temp):
            each.mkdir()
        self.program("python", f'exec "{sys.executable}" "$@"')
        self.environment = {
            **os.environ,
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_WORKSPACE": str(folder),
            "GITHUB_ACTION_PATH": str(ACTION),
            "GITHUB_OUTPUT": str(folder / "output"),
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            "RUNNER_TEMP": str(self.temp),
            "PYTHONPATH": str(ROOT),
        }

    def program(self, name: str, text: str) -> None:
        file = self.programs / name
        file.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        file.chmod(0o755)

    def run(self, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        """A step with ``shell: bash``, as GitHub runs it."""
        step = STEPS[name]
        defaults = {key: each.get("default", "") for key, each in DOCUMENT["inputs"].items()}
        given = defaults | {key.replace("_", "-"): value for key, value in inputs.items()}

        def value(found: re.Match[str]) -> str:
            place, _, key = found[1].rpartition(".")
            return {"inputs": given, "runner": {"temp": str(self.temp)}}.get(place, self.outputs)[key]

        environment = {
            key: re.sub(r"\$\{\{ (\S+) \}\}", value, text) for key, text in step.get("env", {}).items()
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        written = self.folder / "output"
        if written.exists():
            self.outputs = dict(line.partition("=")[::2] for line in written.read_text("utf-8").splitlines())
        return done


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def records(runner: Runner, name: str, answer: str = "", code: int = 0) -> Any:
    """Put a program in the path that notes its arguments; returns what reads them."""
    notes = runner.folder / f"{name}.calls"
    (runner.folder / "answer").write_text(answer)
    runner.program(name, f'printf "%s\\0" "$@" >> "{notes}"; cat "{runner.folder}/answer"; exit {code}')
    return lambda: notes.read_text(encoding="utf-8").split("\0")[:-1]


def test_no_input_is_part_of_a_script() -> None:
    """What somebody else may name, a branch or a file, is never code: it comes in by the environment."""
    for step in DOCUMENT["runs"]["steps"]:
        assert ("uses" in step) != ("run" in step)
        assert "${{" not in step.get("run", "") + step.get("with", {}).get("script", "")
        if "run" in step:
            assert step["shell"] == "bash"
        else:
            assert re.fullmatch(r"actions/[a-z-]+(/[a-z]+)?@v\d+", step["uses"])


def test_inputs_and_outputs_are_used_and_documented() -> None:
    text = (ACTION / "action.yml").read_text(encoding="utf-8").partition("\nruns:")[2]
    section = PAGE.partition("### As an action")[2].partition("\n## ")[0]
    for name, each in DOCUMENT["inputs"].items():
        assert f"inputs.{name} " in text, name
        assert each["description"].endswith(".")
        assert name == "token" or f"`{name}`" in section, name
    for name in DOCUMENT["outputs"]:
        assert f"`{name}`" in section, name
    used = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0])["jobs"]["tune"]["steps"]
    assert set(used[1]["with"]) <= set(DOCUMENT["inputs"])
    required = {name for name, each in DOCUMENT["inputs"].items() if each.get("required")}
    assert required <= set(used[1]["with"])
    assert re.findall(r"steps\.tune\.outputs\.([\w-]+)", str(used[2])) == ["alpha"]


@pytest.mark.slow
@needs_bash
def test_tune_outputs_summary_and_gates(runner: Runner, tiny_checkpoint: Path) -> None:
    runner.program("alphatune", f'exec "{sys.executable}" -m alphatune "$@"')
    data = write_images(runner.folder / "my images", per_class=12)
    how: dict[str, str] = {
        "model": TINY, "checkpoint": str(tiny_checkpoint), "data": str(data), "input_size": "12",
        "args": "--crop-pct 1 --alphas 0,0.1 --workers 0", "gates": "--min-gain 0.9",
    }  # fmt: skip
    done = runner.run("Tune", **how)
    assert done.returncode == 0, done.stderr  # the steps that keep things come after it
    assert runner.outputs["exit-code"] == "1"
    assert runner.outputs["decision"] == "unchanged"
    assert (runner.outputs["alpha"], runner.outputs["significant"]) == ("0.0", "false")
    float(runner.outputs["gain"])
    for name in ("report", "result"):
        assert (runner.folder / runner.outputs[name]).is_file()
    assert "min-gain" in (runner.folder / "summary.md").read_text(encoding="utf-8")
    assert "preprocessing: given --input-size 3,12,12" in done.stderr  # the log says how images were prepared
    runner.outputs["steps.tune.outputs.exit-code"] = "1"
    assert runner.run("Gates").returncode == 1


@needs_bash
@pytest.mark.parametrize("answer", ['{"error": {"code": 2, "message": "no such data", "hint": "look"}}', ""])
def test_a_tune_that_fails_says_so(runner: Runner, answer: str) -> None:
    records(runner, "alphatune", answer, code=2)
    assert runner.run("Tune", model="m", data="d").returncode == 0
    assert (runner.outputs["exit-code"], runner.outputs["decision"]) == ("2", "")
    page = (runner.folder / "summary.md").read_text(encoding="utf-8")
    assert "Exit code 2" in page
    assert runner.run("Gates").returncode == 2


@needs_bash
def test_inputs_stay_words(runner: Runner) -> None:
    """Whatever an input holds, it is arguments of alphatune, and nothing is run."""
    calls = records(runner, "alphatune", "{}")
    evil = f'$(touch "{runner.folder}/run") `touch {runner.folder}/run`; touch {runner.folder}/run #'
    runner.run("Tune", model=evil, data="--help", checkpoint=evil, args="--exclude 'layer 4.*' \"$HOME\"")
    words = calls()
    assert words[-2:] == ["--", evil]
    assert words[words.index("--data") + 1] == "--help"
    assert words[words.index("--checkpoint") + 1] == evil
    assert words[words.index("--exclude") + 1 :][:2] == ["layer 4.*", "$HOME"]
    assert not (runner.folder / "run").exists()
    assert (
        runner.run("Tune", model="m", data="d", args="'open").returncode != 0
    )  # and not without its options


@needs_bash
def test_what_is_installed(runner: Runner) -> None:
    notes = runner.folder / "pip.calls"
    pip = f'if [ "$2" = pip ]; then printf "%s " "${{@:3}}" >> "{notes}"; echo >> "{notes}"; exit; fi'
    runner.program("python", f'{pip}\nexec "{sys.executable}" "$@"')
    assert runner.run("Install").returncode == 0
    torch, own = notes.read_text().splitlines()
    assert torch.split() == [
        "install",
        "--index-url",
        "https://download.pytorch.org/whl/cpu",
        "torch",
        "torchvision",
    ]
    assert (Path(own.split()[1]) / "pyproject.toml").is_file()  # the clone that the action lies in
    notes.unlink()
    assert runner.run("Install", torch="", install="--find-links 'my wheels' alphatune").returncode == 0
    assert notes.read_text().splitlines() == ["install --find-links my wheels alphatune "]


@needs_bash
def test_keys_of_caches(runner: Runner) -> None:
    """Of characters that a key may have, and of their own for each job and installation."""
    keys = set()
    for model, torch in (("a,b", "x"), ("a,b", "y[z]"), ("c" * 2000, "x")):
        assert runner.run("Names of what is kept", model=model, data="d", torch=torch).returncode == 0
        assert all(re.fullmatch("[0-9a-f]{16}", key) for key in runner.outputs.values())
        keys.add(tuple(runner.outputs.values()))
    assert len(keys) == 3


COMMENT = """
const comment = require(process.argv[1]);
const calls = [];
const comments = JSON.parse(require('fs').readFileSync(process.argv[2]));
const does = (name) => async (how) => { calls.push([name, how]); if (process.argv[3]) throw new Error(process.argv[3]); };
const issues = { listComments: 'list', updateComment: does('update'), createComment: does('create') };
const github = { paginate: async () => comments, rest: { issues } };
const context = { repo: { owner: 'o', repo: 'r' }, issue: { number: 7 } };
comment({ github, context, core: { warning: (text) => calls.push(['warning', text]) } })
  .then(() => console.log(JSON.stringify(calls)));
"""


@needs_node
def test_the_comment_replaces_its_own(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# decision\n" + "a line\n" * 20_000, encoding="utf-8")

    def comment(about: str, comments: list[Any], error: str = "") -> Any:
        there = tmp_path / "comments.json"
        there.write_text(json.dumps(comments), encoding="utf-8")
        words = ["node", "-e", COMMENT, str(ACTION / "comment.js"), str(there), error]
        environment = {**os.environ, "PAGE": str(page), "ABOUT": about}
        return json.loads(
            subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
        )

    ((name, made),) = comment("m.py:net tuned -->", [])
    assert (name, made["issue_number"]) == ("create", 7)
    assert made["body"].count("-->") == 1  # that of its mark
    assert len(made["body"]) < 65_536
    assert "# decision" in made["body"]
    assert "Cut here" in made["body"]
    theirs = {"id": 1, "user": {"type": "User"}, "body": made["body"]}
    ours = {"id": 2, "user": {"type": "Bot"}, "body": made["body"]}
    ((name, changed),) = comment("m.py:net tuned -->", [theirs, ours])
    assert (name, changed["comment_id"]) == ("update", 2)
    assert comment("another", [theirs, ours])[0][0] == "create"
    assert comment("m", [], "may not")[-1][0] == "warning"  # no failure of the run
