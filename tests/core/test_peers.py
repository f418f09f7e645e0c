"""Processes that wait for each other: not forever, and not for one that is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TESTS, TINY, Run

from alphatune.core.errors import ConfigurationError
from alphatune.core.peers import Place, place_of_process

FAULTY = """
import os, pathlib, time
from tiny import tiny

def slow():
    pathlib.Path(os.environ["PIDS"], os.environ["RANK"]).write_text(str(os.getpid()))
    model = tiny()
    model.register_forward_hook(lambda *_: time.sleep(0.05))
    return model
"""

NOTING = """
import os, pathlib
from alphatune.cli.main import main

try:
    main()
except SystemExit as stop:
    pathlib.Path(os.environ["PIDS"], "code" + os.environ["RANK"]).write_text(str(stop.code))
    raise
"""


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, None),
        ({"RANK": "3"}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"}, Place(1, 2, "a", 5)),
    ],
)
def test_the_place_of_a_process(environ: dict[str, str], place: Place | None) -> None:
    assert place_of_process(environ) == place


WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [None, "", " ", "-1", "x", "7.5"])
def test_half_of_an_environment(name: str, value: str | None) -> None:
    environ = {key: text for key, text in WHOLE.items() if key != name or value is not None}
    if value is not None:
        environ[name] = value
    if (name, value) == ("WORLD_SIZE", None) or (name == "MASTER_ADDR" and value):
        place_of_process(environ)
    else:
        with pytest.raises(ConfigurationError, match=name):
            place_of_process(environ)


def test_a_rank_beyond_the_world() -> None:
    with pytest.raises(ConfigurationError, match="RANK is 2 of 2"):
        place_of_process(WHOLE | {"RANK": "2"})


@pytest.mark.parametrize("size", ["", "2"])
def test_the_command_says_so(
    image_folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    for command in (("tune", TINY), ("train", TINY)):
        code, _, err = run(*command, "--data", image_folder, "--input-size", 12, "-o", tmp_path / "out")
        assert code == 2, err
        assert "torchrun" in err


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


def start(rank: int, port: int, tmp_path: Path, images: Path, factory: str = "slow") -> subprocess.Popen[str]:
    (tmp_path / "faulty.py").write_text(FAULTY)
    environ = {
        **os.environ, "WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "PIDS": str(tmp_path), "PYTHONPATH": str(TESTS), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return subprocess.Popen(
        [*map(str, command(tmp_path, images, factory))], env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def command(tmp_path: Path, images: Path, factory: str) -> tuple[object, ...]:
    return (
        sys.executable, "-m", "alphatune", "tune", f"{tmp_path / 'faulty.py'}:{factory}", "--data", images,
        "--no-pretrained", "--input-size", 12, "--crop-pct", 1, "--mean", 0.5, "--std", 0.25, "--workers", 0,
        "--batch-size", 1, "--alphas", "0:0.5:21", "-o", tmp_path / "out",
    )  # fmt: skip


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not found() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number"), [(0, signal.SIGTERM), pytest.param(1, signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_process_whose_peers_do_not_come(
    rank: int, number: int, tmp_path: Path, image_folder: Path
) -> None:
    process = start(rank, free_port(), tmp_path, image_folder)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "waiting for" in line:
            break
    assert f"waiting for process {1 - rank} at localhost:" in "".join(lines)
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number


def test_the_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphatune.core.peers.LONGEST_WAIT", 0.3)
    from alphatune.core.peers import meet

    for rank in (0, 1):
        with pytest.raises(ConfigurationError, match=f"for process {1 - rank} at localhost:.*in vain"):
            meet(Place(rank, 2, "localhost", free_port()))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other(killed: int, tmp_path: Path, image_folder: Path) -> None:
    port = free_port()
    both = [start(rank, port, tmp_path, image_folder) for rank in (0, 1)]
    wait_for(lambda: (tmp_path / "1").exists() and (tmp_path / "0").exists(), both[0])
    time.sleep(8)  # they have met, and are busy
    both[killed].kill()
    began = time.monotonic()
    _, err = both[1 - killed].communicate(timeout=60)
    assert both[1 - killed].returncode == 5, err
    assert time.monotonic() - began < 30
    assert f"process {killed} of 2 ended" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_under_torchrun(killed: int, tmp_path: Path, image_folder: Path) -> None:
    """Which ends the others by SIGTERM."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    script = tmp_path / "noting.py"
    script.write_text(NOTING)
    environ = {**os.environ, "PIDS": str(tmp_path), "PYTHONPATH": str(TESTS)}
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    words = [*map(str, command(tmp_path, image_folder, "slow"))][3:]
    process = subprocess.Popen(
        [*launch, *words], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(lambda: (tmp_path / "1").exists() and (tmp_path / "0").exists(), process)
    time.sleep(8)
    os.kill(int((tmp_path / str(killed)).read_text()), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (tmp_path / f"code{1 - killed}").read_text().strip() == "5", err
    assert f"process {killed} of 2 ended" in err
