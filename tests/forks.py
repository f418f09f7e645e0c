"""Runs of the command in processes of their own that cost a fraction of a second.

A server that has torch imported forks off each run, so that it can be killed,
or starved, in the midst of what it does, not while it imports.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from blank_figures import blank_figures

import alphatune
from alphatune.core.hashing import sha256

# A thread of the memory allocator of pyarrow, which pandas imports, may hold a lock at a fork.
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["alphatune.cli.main", "alphatune.jobs.tune", "alphatune.jobs.train", "alphatune.jobs.export", "pandas",
     "scipy.stats", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "blank_figures"]
)  # fmt: skip
#: after which a process tells where it hangs, and ends
SECONDS = 240
#: of the images of conftest.py
SIZE = ("--input-size", 12, "--crop-pct", 1, "--mean", 0.5, "--std", 0.25, "--workers", 0, "-q")


def command(
    argv: list[str], largest: int | None, environment: dict[str, str], err: Connection | None
) -> None:
    """What a process does; no file may become larger than ``largest``, as on a disk that is full."""
    null = os.open(os.devnull, os.O_WRONLY)
    take_environment(environment)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    command_on(argv, (0, null, err.fileno() if err else null))


def environment_now(**more: str) -> dict[str, str]:
    """The environment of this process, for a fork: the server keeps that of the test that happened to start it."""
    return {**os.environ, **more}


def take_environment(environment: dict[str, str]) -> None:
    """Have this environment and no other."""
    os.environ.clear()
    os.environ.update(environment)


def command_on(argv: list[str], streams: tuple[int, int, int]) -> None:
    """Run a command with these file descriptors as stdin, stdout and stderr."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    _as_without_us()
    from alphatune.cli.main import main

    with blank_figures():
        main(argv)


def started(argv: Sequence[object]) -> BaseProcess:
    process = FORKS.Process(
        target=command, args=([str(word) for word in argv], None, environment_now(), None)
    )
    process.start()
    return process


def run_whole(argv: Sequence[object]) -> float:
    """Run to the end, which has to be a good one; the seconds it took."""
    begun = time.perf_counter()
    code, err = run_forked(argv)
    assert code == 0, (argv, err)
    return time.perf_counter() - begun


def run_forked(
    argv: Sequence[object],
    *,
    largest: int | None = None,
    environment: dict[str, str] | None = None,
    meanwhile: Callable[[int], None] = lambda _: None,
) -> tuple[int | None, str]:
    """Exit code and stderr; ``meanwhile`` is called with the process's number."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(
        target=command,
        args=([str(word) for word in argv], largest, environment_now(**environment or {}), theirs),
    )
    process.start()
    theirs.close()
    meanwhile(int(process.pid or 0))
    with os.fdopen(os.dup(ours.fileno()), encoding="utf-8") as stream:
        err = stream.read()
    process.join()
    ours.close()
    return process.exitcode, err


def run_captured(
    argv: Sequence[object], *, environment: dict[str, str] | None = None, before: Callable[[], object] = int
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; ``before`` is called first, in its process."""
    (done,) = run_at_once([argv], [environment or {}], before=before)
    return done


def run_distributed(
    processes: int, argv: Sequence[object], *, environment: dict[str, str] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Several processes with the variables that torchrun would give them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    environments = [
        {**(environment or {}), **world, "LOCAL_WORLD_SIZE": str(processes), "RANK": str(i), "LOCAL_RANK": str(i)}
        for i in range(processes)
    ]  # fmt: skip
    return run_at_once([argv] * processes, environments)


def run_at_once(
    commands: Sequence[Sequence[object]],
    environments: Sequence[dict[str, str]] = (),
    *,
    before: Callable[[], object] = int,
) -> list[subprocess.CompletedProcess[str]]:
    """Start all commands, then wait for each."""
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for i, (command, environment) in enumerate(zip_longest(commands, environments, fillvalue={})):
            words = [str(word) for word in command]
            files = [Path(folder, f"{i}.{name}") for name in ("out", "err")]
            process = FORKS.Process(
                target=_captured, args=(words, environment_now(**environment), files, before)
            )
            process.start()
            started.append((process, words, files))
        found = []
        for process, words, files in started:
            process.join(SECONDS + 10)
            assert process.exitcode is not None, f"{words} goes on"
            out, err = (file.read_text(encoding="utf-8") for file in files)
            found.append(subprocess.CompletedProcess(words, process.exitcode, out, err))
        return found


def _captured(
    argv: list[str], environment: dict[str, str], files: list[Path], before: Callable[[], object]
) -> None:
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    _as_without_us()
    take_environment(environment)
    before()
    from alphatune.cli.main import main

    with blank_figures():
        main(argv)


def _as_without_us() -> None:
    """Workers are forked; but a process that hangs says where, and ends."""
    multiprocessing.set_start_method("fork", force=True)
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)


def is_whole(folder: Path) -> None:
    """Every file is what result.json says, and the model can be read."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for artifact in result["artifacts"]:
        assert sha256(folder / artifact["path"]) == artifact["sha256"], artifact["path"]
    if result["command"] == "tune":  # a run that trained keeps the state it went on from, too
        names = {a["path"] for a in result["artifacts"]} | {"result.json"}
        assert {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} == names
    alphatune.load(folder, trust_code=True)
