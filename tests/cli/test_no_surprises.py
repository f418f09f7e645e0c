"""What alphatune does not do: ask the network, tell anybody, install anything, run what it was not given."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

import alphatune

ROOT = Path(alphatune.__file__).parent

#: runs commands one after the other in one process whose every attempt to reach another machine is noted
NO_NETWORK = """
import json, socket, sys
tried = []
def refuse(name):
    def call(*args, **kwargs):
        tried.append(f"{name}{args[:2]}")
        raise OSError("no network here")
    return call
connect = socket.socket.connect
def only_local(self, address):
    if self.family == getattr(socket, "AF_UNIX", None):
        return connect(self, address)
    return refuse("connect")(address)
socket.socket.connect = only_local
socket.socket.connect_ex = refuse("connect_ex")
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse(name))
from alphatune.cli.main import main
codes = []
for argv in json.loads(sys.argv[1]):
    try:
        main(argv)
    except SystemExit as end:
        codes.append(end.code or 0)
print(json.dumps({"codes": codes, "tried": tried}), file=sys.stderr)
"""


def offline(commands: list[list[object]], tmp_path: Path, **variables: str) -> dict:
    words = [[str(word) for word in command] for command in commands]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch"), **variables}
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, json.dumps(words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )
    assert done.stderr, done.stdout
    found: dict = json.loads(done.stderr.splitlines()[-1])
    found["stderr"] = done.stderr
    return found


@pytest.mark.slow
def test_no_command_reaches_for_the_network(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    data = ["--data", image_folder, "--workers", 1, "--limit", 24]
    size = ["--input-size", 32]
    tuned = tmp_path / "tuned"
    found = offline(
        [
            ["tune", TINY, "--checkpoint", tiny_checkpoint, *data, *size, "--alphas", "0,0.2", "--accept", "best",
             "-o", tuned, "-q"],
            ["tune", "test_resnet", "--no-pretrained", "--model-kwargs", "num_classes=4", *data, *size,
             "--alphas", "0,0.2", "-o", tmp_path / "b", "-q"],
            ["tune", "torchvision:mobilenet_v3_small", "--no-pretrained", "--model-kwargs", "num_classes=4", *data,
             *size, "--alphas", "0,0.2", "-o", tmp_path / "c", "-q"],
            ["evaluate", tuned, "--trust-code", *data, "-q"],
            ["evaluate", f"local-dir:{tmp_path / 'b'}", *data, "-q"],
            ["inspect", "resnet18", "--no-pretrained"],
            ["train", TINY, "--data", image_folder, *size, "--epochs", 1, "--batch-size", 8, "--workers", 0,
             "--limit", 24, "-o", tmp_path / "run", "-q"],
            ["report", tuned, "--output", tmp_path / "again.html"],
            ["compare", tuned, tmp_path / "b"],
            ["doctor"],
        ],
        tmp_path,
    )  # fmt: skip
    assert found["tried"] == []
    assert [code for code in found["codes"] if code] == [], found["stderr"]


@pytest.mark.slow  # the hub's client tries again and again for a minute
def test_a_hub_model_asks_the_hub_and_nobody_else(image_folder: Path, tmp_path: Path) -> None:
    """Weights that are not there are an error that says so, in one line."""
    found = offline([["inspect", "resnet18.a1_in1k"]], tmp_path)
    assert found["codes"] == [3]
    assert found["tried"]
    assert all("huggingface" in attempt for attempt in found["tried"])


def test_the_hubs_own_switch_is_respected(tmp_path: Path) -> None:
    found = offline([["inspect", "resnet18.a1_in1k"]], tmp_path, HF_HUB_OFFLINE="1")
    assert found["codes"] == [3]
    assert found["tried"] == []


def calls(tree: ast.AST) -> set[str]:
    """Names of everything that is called, dotted."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_nothing_is_installed_or_evaluated() -> None:
    """No pip at run time, no shell, no eval of text: the words do not occur."""
    allowed = {
        "kernels/cpu.py": {"subprocess.run"},  # the C++ compiler, without a shell
        "jobs/toolchain.py": {"subprocess.run"},  # whether there is one
        "jobs/machine.py": {"subprocess.run"},  # the NVIDIA driver's version
        # file.py:factory, which the user named, and what lies beside it
        "models/neighbours.py": {"spec.loader.exec_module", "super().exec_module"},
    }
    for file in ROOT.rglob("*.py"):
        found = calls(ast.parse(file.read_text(encoding="utf-8")))
        suspicious = {
            name
            for name in found
            if name
            in (
                "eval",
                "exec",
                "compile",
                "__import__",
                "os.system",
                "os.popen",
                "pickle.load",
                "pickle.loads",
            )
            or name.startswith(("subprocess.", "pip.", "urllib.", "requests.", "http."))
            or name.endswith("exec_module")
        }
        assert suspicious <= allowed.get(str(file.relative_to(ROOT)), set()), file


def test_no_shell_is_started() -> None:
    for file in ROOT.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        shells = [
            k
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for k in node.keywords
            if k.arg == "shell"
        ]
        assert shells == [], file


def test_torch_unpickles_in_one_place() -> None:
    """``torch.load`` is called nowhere but behind the consent to run what is in the file: ``weights_only`` had holes."""
    places = []
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load":
                places.append((file.name, given.get("weights_only")))
            elif "weights_only" in given or name.startswith(("torch.hub", "torch.jit.load")):
                places.append((file.name, name))
            if name == "np.load":
                assert given.get("allow_pickle") == "False", file
    assert places == [("checkpoint_content.py", "False")]
