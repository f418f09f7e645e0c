"""A signal is not lost where Python loses exceptions; own code that exits has not done the work."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import slow
from forks import run_captured

from alphatune.cli import signals
from alphatune.cli.signals import Terminated, signals_raised

NET = """
import os, signal, sys, time, weakref
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.head = torch.nn.Linear(3, 4)

    def forward(self, x):
        time.sleep(0.02)  # work enough to be interrupted in
        {happens}
        return self.head(self.norm(x).mean((2, 3)))

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        for _ in range(100):
            pass

class Broken:
    def __del__(self):
        raise ZeroDivisionError("of mine")

class BadError(Exception):
    def __str__(self):
        raise OSError

class Unspeakable:
    def __repr__(self):
        raise OSError
    def __del__(self):
        raise BadError

class SignalledError(Exception):
    def __str__(self):
        os.kill(os.getpid(), NUMBER)
        for _ in range(100):
            pass
        return ""

class Late:
    def __del__(self):
        raise SignalledError

class Referred:
    pass

def signalled(_reference):
    os.kill(os.getpid(), NUMBER)
    for _ in range(100):
        pass

def swallowed():
    try:
        signalled(0)
    except BaseException:
        pass

def turned_into_another():
    try:
        signalled(0)
    except BaseException:
        raise RecursionError("numpy's import, when it is interrupted") from None

NUMBER = int(os.environ.get("NUMBER", 0))
"""
LOSERS = {
    "__del__": "Deleted()",
    "weak reference": "thing = Referred(); ref = weakref.ref(thing, signalled); del thing",
    "while another error is told": "Late()",
    "a bare except": "swallowed()",
    "another error in its place": "turned_into_another()",
    "after fork": "os.register_at_fork(after_in_parent=lambda: signalled(0)); os.fork() or os._exit(0)",
}


def evaluate(
    tmp_path: Path, data: Path, happens: str, number: int = 0, *more: str, ignored: int = 0
) -> subprocess.CompletedProcess[str]:
    words = evaluation(tmp_path, data, happens, *more)
    return run_captured(words, environment={"NUMBER": str(int(number))}, before=partial(_begin, ignored))


def evaluation(tmp_path: Path, data: Path, happens: str, *more: str) -> list[object]:
    (tmp_path / "own.py").write_text(NET.format(happens=happens))
    return ["evaluate", f"{tmp_path / 'own.py'}:Net", "--no-pretrained", "--data", data, "--workers", 0, "--input-size", 12,
            "--mean", 0.5, "--std", 0.25, "--batch-size", 1, "--limit", 16, *more]  # fmt: skip


def _begin(ignored: int) -> None:
    # A job in the background inherits "ignore Ctrl-C", which is no terminal's state.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if ignored:
        signal.signal(ignored, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("happens", "number", "code"),
    [
        *((h, n, 128 + n) for h in LOSERS.values() for n in (signal.SIGINT, signal.SIGTERM)),
        (LOSERS["__del__"], signal.SIGHUP, 129),
    ],
)
def test_a_signal_that_python_drops(
    tmp_path: Path, image_folder: Path, happens: str, number: int, code: int
) -> None:
    done = evaluate(tmp_path, image_folder, happens, number)
    assert done.returncode == code, done.stderr
    assert "ignored" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_a_hangup_that_is_ignored(tmp_path: Path, image_folder: Path) -> None:
    """As under nohup."""
    done = evaluate(tmp_path, image_folder, "os.kill(os.getpid(), signal.SIGHUP)", 0, ignored=signal.SIGHUP)
    assert done.returncode == 0, done.stderr


def test_a_signal_waits_for_an_import_to_end(tmp_path: Path, image_folder: Path) -> None:
    """In the midst of it torch aborts the process, and numpy goes round in circles."""
    (tmp_path / "imported.py").write_text("import own; own.swallowed(); print('whole', flush=True)")
    path = (
        f"sys.path.insert(0, {str(tmp_path)!r}); sys.modules['own'] = sys.modules[__name__]; import imported"
    )
    done = evaluate(tmp_path, image_folder, path, signal.SIGTERM)
    assert (done.returncode, done.stdout) == (143, "whole\n"), done.stderr


def test_the_second_signal_does_not_wait() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        _second_signal()
    finally:
        signal.signal(signal.SIGINT, before)


def _second_signal() -> None:
    def both() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            time.sleep(1.05)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("not raised")

    with pytest.raises(KeyboardInterrupt), signals_raised():
        both()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_was_just_forked_does_not_end_the_command(
    tmp_path: Path, image_folder: Path, number: int
) -> None:
    """It would print the error, as JSON for instance, a second time."""
    happens = "os.fork() or [os.kill(os.getpid(), NUMBER), time.sleep(5)]; os.wait()"
    done = evaluate(tmp_path, image_folder, happens, number, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "evaluate"
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("signals", "whole"),
    [([signal.SIGTERM, signal.SIGHUP], True), ([signal.SIGTERM] * 3, True), ([signal.SIGTERM] * 4, False)],
    ids=["one wish", "within a second", "again and again"],
)
def test_signals_that_follow_each_other(signals: list[signal.Signals], whole: bool) -> None:
    """torchrun passes on what the terminal has sent; whoever asks for a second cannot be kept waiting."""
    tidied = False

    def work() -> None:
        nonlocal tidied
        try:
            signal.raise_signal(signals[0])
        finally:
            for number in signals[1:]:
                time.sleep(0.4)
                signal.raise_signal(number)
            tidied = True

    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
    try:
        with pytest.raises(Terminated), signals_raised():
            work()
    finally:
        signal.signal(signal.SIGHUP, hang_up)
    assert tidied == whole


def _impatient() -> None:
    _begin(0)
    signals._PATIENCE = 1.0


@pytest.mark.parametrize("code", [130, 143])
def test_whoever_does_not_stop_is_ended(tmp_path: Path, image_folder: Path, code: int) -> None:
    """A clean-up that takes a minute, or workers that do not leave: the command ends all the same, and says so once."""
    happens = "exec('try: signalled(0)\\nfinally: [time.sleep(0.1) for _ in range(600)]')"
    words = evaluation(tmp_path, image_folder, happens, "--format", "json")
    began = time.monotonic()
    done = run_captured(words, environment={"NUMBER": str(code - 128)}, before=_impatient)
    assert done.returncode == code, done.stderr
    assert time.monotonic() - began < 30
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert json.loads(done.stdout)["error"]["code"] == code


@pytest.mark.parametrize(
    "happens", ["sys.exit(0)", "raise SystemExit", "import typer; typer.run(lambda: None) or sys.exit(0)"]
)
def test_a_model_that_exits_has_not_been_evaluated(tmp_path: Path, image_folder: Path, happens: str) -> None:
    done = evaluate(tmp_path, image_folder, happens)
    assert done.returncode == 70, done.stderr
    assert "SystemExit" in done.stderr


def test_any_other_error_that_python_drops_is_one_line(tmp_path: Path, image_folder: Path) -> None:
    done = evaluate(tmp_path, image_folder, "Broken()")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if "ZeroDivisionError" in line]
    assert told
    assert all(line.startswith("warning: exception ignored in") and "of mine" in line for line in told)
    assert "Traceback" in evaluate(tmp_path, image_folder, "Broken()", 0, "-v").stderr


def test_an_error_that_cannot_be_told(tmp_path: Path, image_folder: Path) -> None:
    done = evaluate(tmp_path, image_folder, "Unspeakable()")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "BadError: <BadError>" in done.stderr


@pytest.mark.parametrize("words", [("pass",), slow(("Broken()", "--quiet"))])
def test_stderr_that_is_closed(tmp_path: Path, image_folder: Path, words: tuple[str, ...]) -> None:
    """Then stdout holds the result all the same, and nothing else."""
    argv = [str(word) for word in evaluation(tmp_path, image_folder, *words, "--format", "json")]
    done = subprocess.run(
        [sys.executable, "-m", "alphatune", *argv], stdout=subprocess.PIPE, text=True, timeout=60,
        preexec_fn=lambda: os.close(2),
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(done.stdout)["command"] == "evaluate"


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@pytest.mark.parametrize("redirect", ["2>&-", pytest.param("2>/dev/full", marks=FULL)])
def test_an_error_that_stderr_does_not_take(redirect: str) -> None:
    """The exit code says it."""
    command = shlex.join([sys.executable, "-m", "alphatune", "report", "nowhere"])
    done = subprocess.run(f"{command} {redirect}", shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")


def test_everything_is_as_before_afterwards() -> None:
    class Broken:
        def __del__(self) -> None:
            raise ZeroDivisionError("seen")

    hook, handler, told = sys.unraisablehook, signal.getsignal(signal.SIGTERM), []
    try:
        sys.unraisablehook = told.append
        with pytest.raises(Terminated), signals_raised(verbose=True):
            Broken()
            signal.raise_signal(signal.SIGTERM)
        assert sys.unraisablehook == told.append
    finally:
        sys.unraisablehook = hook
    assert [type(error.exc_value) for error in told] == [ZeroDivisionError]
    assert signal.getsignal(signal.SIGTERM) is handler
