"""``alphatune report``: the report of a tuned folder drawn again, and what becomes of a damaged one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Run
from made_up_results import HOSTILE

from alphatune.core.hashing import sha256

DRAWS_FIGURES = True


@pytest.fixture(scope="module")
def tuned(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned folder whose classes have names that nobody hopes for."""
    from conftest import write_images

    from alphatune.cli.main import main

    root = tmp_path_factory.mktemp("report")
    names = [name.replace("/", "⁄") for name in HOSTILE[:4]]
    data = write_images(root / "data", classes=tuple(sorted(names)))
    with pytest.raises(SystemExit) as end:
        main(
            [*map(str, (
                "tune", TINY, "--checkpoint", tiny_checkpoint, "--data", data, "--input-size", 12, "--crop-pct", 1,
                "--mean", 0.5, "--std", 0.25, "--workers", 0, "--alphas", "0,0.1,0.3", "--accept", "best", "--metric",
                "ece", "-o", root / "out", "--quiet", "--format", "quiet",
            ))]
        )  # fmt: skip
    assert not end.value.code
    return root / "out"


@pytest.fixture
def folder(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_tune_writes_it_and_its_figures(tuned: Path) -> None:
    names = contents(tuned).keys()
    assert {
        "report.html",
        "figures/curve-loss.svg",
        "figures/curve-loss.png",
        "figures/classes-loss.svg",
    } <= names
    listed = {a["path"]: a["sha256"] for a in json.loads((tuned / "result.json").read_text())["artifacts"]}
    assert names - {"result.json"} == listed.keys()
    assert all(sha256(tuned / path) == digest for path, digest in listed.items())
    page = (tuned / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert "<script" not in page
    assert str(tuned) not in page


def test_it_is_drawn_again_to_the_same_bytes(run: Run, folder: Path) -> None:
    before = contents(folder)
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "figures")
    code, stdout, stderr = run("report", folder)
    assert (code, stderr) == (0, "")
    assert f"Written to {folder}/report.html" in stdout
    assert contents(folder) == before


def test_what_is_printed(run: Run, folder: Path, tmp_path: Path) -> None:
    document = json.loads(run("report", folder, "--format", "json")[1])
    assert document["command"] == "report"
    assert document["scores"]
    assert all((folder / name).is_file() for name in document["figures"])
    assert run("report", folder, "--format", "quiet")[1] == f"{folder}/report.html\n"
    code, stdout, _ = run("report", folder, "-o", tmp_path / "page.html", "--format", "quiet")
    assert (code, stdout) == (0, f"{tmp_path}/page.html\n")
    assert (tmp_path / "page.html").read_bytes() == (folder / "report.html").read_bytes()


def test_a_file_is_not_lost(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    code, _, stderr = run("report", folder, "-o", tmp_path / "mine.html", "--overwrite")
    assert code == 2
    assert "was not written by alphatune report" in stderr
    assert run("report", folder, "-o", tmp_path / "page.html")[0] == 0
    assert run("report", folder, "-o", tmp_path / "page.html")[0] == 2
    assert run("report", folder, "-o", tmp_path / "page.html", "--overwrite")[0] == 0
    assert run("report", folder, "-o", tmp_path / "no" / "page.html")[0] == 2


def test_without_scores_there_are_fewer_sections(run: Run, folder: Path) -> None:
    (folder / "scores.npz").unlink()
    code, _, stderr = run("report", folder)
    assert code == 0
    assert "holds no scores.npz" in stderr
    page = (folder / "report.html").read_text()
    assert 'id="curves"' in page
    assert 'id="classes"' not in page


def test_another_versions_files_are_listed_as_they_are_now(run: Run, folder: Path) -> None:
    path = folder / "result.json"
    document = json.loads(path.read_text())
    for artifact in document["artifacts"]:
        if artifact["path"] in ("report.html", "figures/curve-loss.svg"):
            artifact["sha256"] = "00" * 32
    document["artifacts"] = [a for a in document["artifacts"] if a["path"] != "figures/curve-ece.png"]
    path.write_text(json.dumps(document))
    assert run("report", folder)[0] == 0
    listed = {a["path"]: a["sha256"] for a in json.loads(path.read_text())["artifacts"]}
    assert all(sha256(folder / name) == digest for name, digest in listed.items())
    assert "figures/curve-ece.png" in listed


def damage(folder: Path, kind: str) -> None:
    result, scores = folder / "result.json", folder / "scores.npz"
    document = json.loads(result.read_text())
    if kind == "no result":
        result.unlink()
    elif kind == "cut off":
        result.write_bytes(result.read_bytes()[:-100])
    elif kind == "no object":
        result.write_text("[1, 2]")
    elif kind == "binary":
        result.write_bytes(b"\xff\xfe\x00\x01")
    elif kind == "deep":
        result.write_text("[" * 100_000)
    elif kind == "newer":
        result.write_text(json.dumps(document | {"schema": 99}))
    elif kind == "of evaluate":
        result.write_text(json.dumps(document | {"command": "evaluate"}))
    elif kind.startswith("without "):
        del document[kind.removeprefix("without ")]
        result.write_text(json.dumps(document))
    elif kind == "text for numbers":
        document["curve"][1]["loss"] = "low"
        result.write_text(json.dumps(document))
    elif kind == "an empty curve":
        result.write_text(json.dumps(document | {"curve": []}))
    elif kind == "scores cut off":
        scores.write_bytes(scores.read_bytes()[:-50])
    elif kind == "other scores":
        import numpy as np

        with np.load(scores) as arrays:
            np.savez_compressed(scores, **{**arrays, "baseline_loss": arrays["baseline_loss"] + 1})


@pytest.mark.parametrize(
    "kind",
    ["no result", "cut off", "no object", "binary", "deep", "newer", "of evaluate", "without curve", "without model",
     "without chosen", "without artifacts", "without env", "text for numbers", "an empty curve", "scores cut off",
     "other scores"],
)  # fmt: skip
def test_a_damaged_folder_is_one_line_and_code_3(run: Run, folder: Path, kind: str) -> None:
    damage(folder, kind)
    before = contents(folder)
    code, stdout, stderr = run("report", folder)
    assert code == 3, stderr
    assert stdout == ""
    assert stderr.count("\n") == 1
    assert stderr.startswith("error: ")
    assert contents(folder) == before  # nothing half written


def test_no_folder_at_all(run: Run, tmp_path: Path) -> None:
    assert run("report", tmp_path / "nowhere")[0] == 3
    assert run("report", tmp_path)[0] == 3
