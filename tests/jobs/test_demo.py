"""``alphatune demo`` through its entry point: what it writes, says and leaves behind; the images it works on."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from PIL import Image

import alphatune
from alphatune.cli.main import main
from alphatune.data.digits import Scanner, read_digits, rescan, write_class_folders
from alphatune.results.schemas import read_schema

pytest.importorskip("sklearn")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What the demo sets for itself, for the commands that follow it, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an empty folder, in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(argv))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def names(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*.png")}


def test_the_demo_from_end_to_end(run: Run, tmp_path: Path) -> None:
    code, stdout, stderr = run("demo", "--format", "json")
    assert code == 0, stderr
    document, folder = json.loads(stdout), tmp_path / "alphatune-demo"
    assert document == json.loads((folder / "demo.json").read_text())
    assert list(Draft202012Validator(read_schema("demo")).iter_errors(document)) == []
    assert [p.name for p in tmp_path.iterdir()] == ["alphatune-demo"]

    # The images: every one once, shifted those of validation only.
    assert len(names(folder / "images" / "train")) == document["images"]["train"] == 1078
    assert len(names(folder / "images" / "validation")) == document["images"]["validation"] == 719
    assert names(folder / "shifted") == names(folder / "images" / "validation")
    one = sorted(names(folder / "shifted"))[100]
    before, after = (np.asarray(Image.open(folder / d / one)) for d in ("images/validation", "shifted"))
    assert before.shape == after.shape == (8, 8)
    assert after.mean() > before.mean() - 10
    assert (after != before).any()

    # The network learned, with Ghost BatchNorm; the shift hurts; the decision is what the numbers say.
    tuned, train = document["tune"], document["train"]
    assert train["model"]["norm"]["kind"] == "ghost"
    assert document["unshifted"]["baseline"]["top1"] == pytest.approx(train["validation"]["top1"])
    assert document["unshifted"]["baseline"]["top1"] > 0.95
    assert document["shifted"]["baseline"]["top1"] < document["unshifted"]["baseline"]["top1"]
    gain = tuned["gain"]
    significant = gain["ci"][0] > 0 and gain["p"] <= 0.05
    assert tuned["decision"]["significant"] == significant
    assert (tuned["chosen"]["alpha"] > 0) == significant
    assert tuned == json.loads((folder / "tuned" / "result.json").read_text())
    alphatune.load(folder / "tuned")  # without trust_code: the architecture is alphatune's own

    # What it proposes to do next works, and finds the same figures.
    code, _, stderr = run("demo")
    assert code == 2
    assert "--overwrite" in stderr
    first, second, third = (shlex.split(command)[1:] for command in document["next"])
    for command, part in ((first, "shifted"), (second, "unshifted")):
        code, out, err = run(*command, "--workers", "0", "--format", "json")
        assert code == 0, err
        assert json.loads(out)["metrics"] == pytest.approx(document[part]["chosen"], abs=1e-6)
    code, out, err = run(*third, "--workers", "0", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["baseline"] == pytest.approx(document["unshifted"]["baseline"], abs=1e-6)

    # Again, for a person: the same figures, and the commands as they can be typed.
    code, stdout, stderr = run("demo", "--overwrite")
    assert code == 0, stderr
    again = json.loads((folder / "demo.json").read_text())
    assert again["tune"]["curve"] == tuned["curve"]
    assert not (folder / "tuned-unshifted").exists()
    assert [line[2:] for line in stdout.splitlines() if line.startswith("  alphatune ")][:3] == document[
        "next"
    ]
    assert f"{document['unshifted']['baseline']['top1']:.4f}" in stdout
    assert "simulated" in stdout
    assert "\x1b" not in stdout + stderr


def test_without_scikit_learn(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # what import finds where it is not installed
    code, stdout, stderr = run("demo")
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    assert 'pip install "alphatune[demo]"' in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["thesis.txt", "alphatune.json", "demo.json"])
def test_only_a_demo_is_overwritten(run: Run, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / content).write_text('{"schema": 1}')
    for options in ((), ("--overwrite",)):
        code, _, stderr = run("demo", "-o", "mine", *options)
        assert code == 2
        assert "mine" in stderr
        assert (folder / content).read_text() == '{"schema": 1}'


@pytest.mark.parametrize(("options", "words"), [
    (["--seed", "-1"], "--seed"), (["--device", "tpu9"], "tpu9"), (["-o", "x.json"], "folder"),
])  # fmt: skip
def test_bad_options_leave_nothing(run: Run, tmp_path: Path, options: list[str], words: str) -> None:
    code, _, stderr = run("demo", *options)
    assert code == 2
    assert words in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "alphatune", "demo"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A job in the background inherits "ignore Ctrl-C", which is no terminal's state.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    while not process.stderr.readline().startswith("training"):
        assert process.poll() is None
    time.sleep(0.5)
    assert list(tmp_path.iterdir()) != []
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    images, targets = read_digits()
    original = load_digits()
    assert images.shape == (1797, 8, 8)
    np.testing.assert_array_equal(np.round(images * (16 / 255.0)), original.images)  # no grey level is lost
    np.testing.assert_array_equal(targets, original.target)
    write_class_folders(tmp_path / "digits", images[:30], targets[:30])
    for number in range(30):
        stored = np.asarray(Image.open(tmp_path / "digits" / str(targets[number]) / f"{number:04}.png"))
        np.testing.assert_array_equal(stored, images[number])


def test_rescan_is_its_equation() -> None:
    images, _ = read_digits()
    np.testing.assert_array_equal(rescan(images, Scanner(), 0), images)
    dim = rescan(images, Scanner(contrast=0.5, background=0.2), 0)
    np.testing.assert_allclose(dim, 0.5 * images + 51, atol=0.5)
    np.testing.assert_array_equal(
        rescan(images, Scanner(contrast=1, background=1), 0), np.full_like(images, 255)
    )
    noisy = Scanner(contrast=0, background=0.5, noise=0.1)
    assert rescan(images, noisy, 0).astype(float).std() == pytest.approx(25.5, rel=0.02)
    np.testing.assert_array_equal(rescan(images, noisy, 7), rescan(images, noisy, 7))
    assert (rescan(images, noisy, 7) != rescan(images, noisy, 8)).mean() > 0.9
    dot = np.zeros((1, 9, 9), np.uint8)
    dot[0, 4, 4] = 255
    blurred = rescan(dot, Scanner(blur=1.0), 0)[0].astype(float)
    rows = np.arange(9) - 4
    weights = blurred / blurred.sum()
    assert (weights.sum(1) * rows**2).sum() == pytest.approx(1.0, abs=0.25)  # the variance is σ²
    np.testing.assert_allclose(blurred, blurred.T, atol=1)
