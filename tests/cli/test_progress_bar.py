"""The bar of the commands on a terminal: one line, apart from what is printed, and Ctrl-C is answered at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY, Run, slow, write_images
from forks import run_whole
from terminals import Seen, on_terminal, write_slow_network

SIZE = ("--input-size", 12, "--crop-pct", 1, "--mean", 0.5, "--std", 0.25, "--workers", 0)
BAR = "━"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many"), per_class=260)


def phases(seen: Seen) -> list[str]:
    """What the last line of each screen says, while a bar is there."""
    found = [screen[-1].split(BAR)[0].split("  ")[0] for screen in seen.screens if screen]
    return list(dict.fromkeys(found))


def is_tidy(seen: Seen) -> None:
    """At most one bar, in one line that holds nothing else, below everything that was printed; none in the end."""
    for screen in seen.screens:
        bars = [line for line in screen if BAR in line]
        assert len(bars) <= 1, screen
        assert not any(word in line for line in bars for word in ("epoch  ", "warning", "error")), bars
        assert not bars or screen[-1] == bars[0], screen
        assert not any(line.strip() in ("images/s", "left", "%") for line in screen), screen
    assert not any(BAR in line for line in seen.screens[-1])


@pytest.mark.parametrize("columns", [80, 120])
def test_tune_shows_its_phases(many: Path, tiny_checkpoint: Path, tmp_path: Path, columns: int) -> None:
    seen = on_terminal(
        ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", many, *SIZE, "--metric", "loss", "-o", tmp_path / "out",
         "--accept", "best"], columns,
    )  # fmt: skip
    assert seen.code == 0, seen.screens[-1]
    is_tidy(seen)
    order = ["loading", "pilot", "search", "confirming", "timing inference", "writing the report"]
    assert [phase for phase in phases(seen) if phase in order] == order
    assert any("100 %" in line for line in seen.lines)


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_of_epochs_stand_above_the_bar(image_folder: Path, tmp_path: Path, columns: int) -> None:
    seen = on_terminal(
        ["train", write_slow_network(tmp_path), "--data", image_folder, "--val-fraction", 0.25, *SIZE, "--epochs", 3,
         "--batch-size", 4, "-o", tmp_path / "out"], columns,
    )  # fmt: skip
    assert seen.code == 0, seen.screens[-1]
    is_tidy(seen)
    epochs = [line for line in seen.screens[-1] if line.startswith("epoch ")]
    assert len(epochs) == 3
    assert all(line.endswith(" s") for line in epochs)  # not wrapped
    order = [
        "waiting for the first batch",
        *(f"training, epoch {i} of 3" for i in (1, 2, 3)),
        "writing the report",
    ]
    assert [phase for phase in phases(seen) if phase in order] == order
    assert {"validating", "saving"} <= set(phases(seen))
    assert any(" left" in line and "images/s" in line for line in seen.lines)


def test_bars_of_libraries_and_what_is_printed_do_not_collide_with_ours(many: Path, tmp_path: Path) -> None:
    name = write_slow_network(tmp_path)
    with (tmp_path / "slow.py").open("a") as file:
        file.write("""
def fetched():
    import sys, warnings
    from tqdm import tqdm
    for _ in tqdm(range(3), desc="fetching", mininterval=0):
        time.sleep(0.1)
    print("something to say", file=sys.stderr)
    return Slow()
""")
    seen = on_terminal(
        [
            "evaluate",
            name.replace("Slow", "fetched"),
            "--no-pretrained",
            "--data",
            many,
            *SIZE,
            "--batch-size",
            64,
        ],
        80,
    )
    assert seen.code == 0, seen.screens[-1]
    assert any(line.startswith("fetching:  33%") for line in seen.lines)
    assert "something to say" in seen.screens[-1]
    is_tidy(seen)


@pytest.mark.parametrize("words", [("--quiet",), ("--dry-run",)])
def test_no_bar_where_nobody_wants_one(many: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    seen = on_terminal(
        ["evaluate", TINY, "--no-pretrained", "--data", many, *SIZE, "--limit", 64, *words], 80
    )
    assert seen.code == 0
    assert not any("loading" in line or "evaluating" in line or BAR in line for line in seen.lines)


def test_no_bar_in_a_pipe(image_folder: Path, run: Run) -> None:
    code, _, err = run("evaluate", TINY, "--no-pretrained", "--data", image_folder, *SIZE)
    assert code == 0
    assert not any(text in err for text in (BAR, "loading", "evaluating", "\x1b"))


def test_an_answer_to_ctrl_c(many: Path, tmp_path: Path) -> None:
    words = [
        "evaluate",
        write_slow_network(tmp_path),
        "--no-pretrained",
        "--data",
        many,
        *SIZE,
        "--batch-size",
        4,
    ]
    seen = on_terminal(words, 80, interrupt_at="evaluating  ")
    assert seen.code == 130
    assert seen.screens[-1][-2:] == ["Stopping.", "error: interrupted"]
    assert seen.said < 2
    assert seen.ended < 10
    is_tidy(seen)


def test_a_tune_goes_on_after_ctrl_c(many: Path, tmp_path: Path) -> None:
    words = ["tune", write_slow_network(tmp_path, 0.002), "--data", many, *SIZE, "--batch-size", 16, "--alphas", "0,0.1",
             "--no-pretrained", "-o", tmp_path / "out", "--format", "json"]  # fmt: skip
    seen = on_terminal(words, 80, interrupt_at=r" [56]\d %")  # not every number is drawn
    assert seen.code == 130
    assert "Stopping; --resume goes on." in seen.screens[-1]
    assert seen.ended < 10
    assert not (tmp_path / "out").exists()
    again = on_terminal([*words, "--resume"], 80)
    assert again.code == 0
    shares = [int(line.split(" %")[0].split()[-1]) for line in again.lines if BAR in line and " %" in line]
    assert min(shares) >= 45  # what was done is not done again
    assert json.loads((tmp_path / "out" / "result.json").read_text())["data"]["n"] == 1040
    assert not (tmp_path / ".out.alphatune-resume").exists()


@pytest.mark.parametrize("at", [slow("waiting for"), "training, epoch 1", slow("validating")])
def test_training_stops_and_goes_on(at: str, image_folder: Path, tmp_path: Path) -> None:
    words = ["train", write_slow_network(tmp_path), "--data", image_folder, "--val-fraction", 0.25, *SIZE, "--epochs", 2,
             "--batch-size", 4, "--eval-batch-size", 1, "--workers", 1, "-o", tmp_path / "out"]  # fmt: skip
    seen = on_terminal(words, 80, interrupt_at=at)
    assert seen.code == 130
    assert "Stopping after this batch; --resume goes on." in seen.screens[-1]
    assert not any("ignored" in line for line in seen.lines)
    assert seen.ended < 10
    is_tidy(seen)
    run_whole([*words, "--resume"])
