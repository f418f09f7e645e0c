"""The summary of a CI run: appended where the runner says, never too long, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY, Run
from made_up_results import typed

from alphatune.reports.step_summary import MOST_BYTES, append_step_summary, cut


@pytest.fixture
def document(run: Run, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> dict:
    import json

    code, out, _ = run("tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--input-size", 12,
                       "--crop-pct", 1, "--mean", 0.5, "--std", 0.25, "--workers", 0, "--alphas", "0,0.5",
                       "--max-regression", "top5=1", "--format", "json", "-o", tmp_path / "out")  # fmt: skip
    assert code == 0
    return json.loads(out)


def test_it_is_appended(document: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    assert append_step_summary(typed(document), "out") == file
    text = file.read_text(encoding="utf-8")
    assert text.startswith("before\n# alphatune: ")
    assert "| max-regression top5 | ✅ passed |" in text
    head, fold, folded = text.partition("<details>")
    assert "**Keep α = 0" in head or "**Use α" in head
    assert "| loss |" in head
    assert "alphatune tune --config out/run.toml" in head
    assert fold
    assert "## Curve" in folded
    assert folded.rstrip().endswith("</details>")


def test_no_variable_no_summary(document: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert append_step_summary(typed(document), "out") is None


def test_a_summary_that_cannot_be_written_fails_nothing(
    document: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "such" / "folder.md"))
    assert append_step_summary(typed(document), "out") is None


def test_it_stays_short(document: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    document["warnings"] = ["α" * 1000] * 600
    append_step_summary(typed(document), "out")
    size = file.stat().st_size
    assert 0.99 * MOST_BYTES < size <= MOST_BYTES
    assert file.read_text(encoding="utf-8").endswith("in report.md.*\n")
    append_step_summary(typed(document), "out")  # another step of the same job may write to the same file
    assert file.stat().st_size <= MOST_BYTES


def test_hostile_names_stay_text(document: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    document["model"]["source"] = "<img src=x onerror=alert(1)>|`a`"
    append_step_summary(typed(document), "out")
    assert "<img" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("room", [-5, 0, 3, 120, 125, 200, 10**6])
def test_cut(room: int) -> None:
    text = "".join(f"line {i} α\n" for i in range(100))
    data = cut(text, room)
    assert len(data) <= max(0, room)
    lines = data.decode().splitlines()
    assert all(line in text.splitlines() for line in lines[:-5])


def test_an_error_stands_in_the_summary(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    assert run("tune", "no_such_network", "--data", tmp_path)[0] == 2
    page = file.read_text(encoding="utf-8")
    assert "**Exit code 2**" in page
    assert "unknown model 'no_such_network'" in page
    assert run("evaluate", "no_such_network", "--data", tmp_path)[0] == 2
    assert file.read_text(encoding="utf-8") == page  # of a tune alone
