"""Results as types: what a version wrote is read, and written again to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import TESTS

from alphatune.core.errors import InputError, NumericError
from alphatune.results.alpha import alpha_text, common_alpha
from alphatune.results.metrics import ScoreMetrics
from alphatune.results.schemas import DOCUMENTS
from alphatune.results.serialisation import to_json
from alphatune.results.stored import command_of, decode_measured, read_trained, read_tuned
from alphatune.results.tune import ScoreTuneDocument, TuneDocument

WRITTEN = TESTS / "written"
#: of each command and its variants, as they were written before results were types
FILES = sorted(WRITTEN.glob("*.json"))
EARLIER = WRITTEN / "earlier"


def folder_with(file: Path, folder: Path) -> Path:
    (folder / "result.json").write_bytes(file.read_bytes())
    return folder


def kinds_that_read(content: str) -> list[Any]:
    """The object of each type that the content is one of."""
    found = []
    for kind in DOCUMENTS[json.loads(content).get("command", "error")]:
        try:
            found.append(msgspec.json.decode(content, type=kind))
        except msgspec.ValidationError:
            continue
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_was_written_is_read_and_written_again_to_the_same_bytes(file: Path) -> None:
    content = file.read_text(encoding="utf-8")
    (document,) = kinds_that_read(content)
    assert to_json(document) + "\n" == content
    assert json.loads(to_json(document, for_pipe=True)) == json.loads(content)


def test_every_command_is_among_what_was_written() -> None:
    commands = {json.loads(file.read_text()).get("command", "error") for file in FILES}
    assert commands | {"demo"} == set(DOCUMENTS)  # which is a tune and a training


@pytest.mark.parametrize("name", ["tune-before-the-search", "tune-before-gates"])
def test_earlier_tunes_are_read(name: str, tmp_path: Path) -> None:
    document = read_tuned(folder_with(EARLIER / f"{name}.json", tmp_path))
    assert isinstance(document, TuneDocument)
    assert document.chosen.temperature == 1
    assert document.gates == ()
    assert document == decode_measured((EARLIER / f"{name}.json").read_bytes(), Path(name))
    written = json.loads(to_json(document))
    for key, value in json.loads((EARLIER / f"{name}.json").read_text()).items():
        if not isinstance(value, (dict, list)):
            assert written[key] == value


def test_earlier_evaluations_and_training_runs_are_read(tmp_path: Path) -> None:
    evaluated = decode_measured((EARLIER / "evaluate.json").read_bytes(), Path("evaluate.json"))
    assert evaluated.command == "evaluate"
    assert read_trained(folder_with(EARLIER / "train.json", tmp_path)).seconds > 0


def test_a_later_version_may_have_added_fields(tmp_path: Path) -> None:
    later = json.loads((WRITTEN / "tune.json").read_text()) | {"added": {"later": 1}}
    assert isinstance(decode_measured(json.dumps(later).encode(), Path("later.json")), TuneDocument)


def test_a_tune_by_a_score_is_told_by_its_metric(tmp_path: Path) -> None:
    assert isinstance(read_tuned(folder_with(WRITTEN / "tune-by-a-score.json", tmp_path)), ScoreTuneDocument)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "has schema 2"),
        ({"command": "bench"}, "expected one of tune"),
        ({"curve": []}, r"length >= 1 - at `\$.curve`"),
        ({"baseline": {"n": 1}}, r"`top1` - at `\$.baseline`"),
        ({"gain": {"metric": "luck"}}, r"at `\$.gain.metric`"),
        ({"decision": None}, r"at `\$.decision`"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    document = json.loads((WRITTEN / "tune.json").read_text()) | change
    (tmp_path / "result.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=words):
        read_tuned(tmp_path)


def test_the_command_of_a_file(tmp_path: Path) -> None:
    assert command_of(WRITTEN / "bench.json") == "bench"
    assert command_of(WRITTEN / "error.json") is None
    assert command_of(tmp_path / "missing.json") is None
    for content in (b"\xff\xfe", b"[1]", b"[" * 100_000, b'{"command": 3}'):
        (tmp_path / "other.json").write_bytes(content)
        assert command_of(tmp_path / "other.json") is None


def test_no_nan_is_written() -> None:
    with pytest.raises(NumericError, match="at score"):
        to_json(ScoreMetrics(n=1, score=float("nan")))


def test_one_alpha_for_all_layers() -> None:
    assert common_alpha({}) == 0.0
    assert common_alpha({"a": 0.1, "b": 0.1}) == 0.1
    assert common_alpha({"a": 0.1, "b": 0.2}) == {"a": 0.1, "b": 0.2}
    assert common_alpha({"a": [0.1, 0.2]}) == {"a": [0.1, 0.2]}
    assert alpha_text(0.1) == "0.1"
    assert alpha_text({"a": 0.1, "b": 0.2}) == "0.1 to 0.2 by layer"
    assert alpha_text({"a": [0.1, 0.3], "b": [0.2, 0.2]}) == "0.1 to 0.3 by channel"


def test_nothing_here_waits_for_torch() -> None:
    light = "import sys, alphatune.results.schemas, alphatune.results.stored, alphatune.results.serialisation"
    light += "; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", light], timeout=60).returncode == 0
