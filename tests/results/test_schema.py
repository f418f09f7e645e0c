"""The JSON Schemas against what the commands really print, and against what they must not."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Run, write_images
from jsonschema import Draft202012Validator

from alphatune.cli.main import app, main
from alphatune.core.versions import EXPORTED_PROGRAM, torch_allows
from alphatune.results.schemas import read_schema, schema_names

OWN = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def loader():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(40, 3, 12, 12, generator=generator), torch.arange(40) % 4), 20)

def margin(outputs, targets):
    return outputs.gather(1, targets[:, None]).squeeze(1)
"""
WRITES_PT2 = torch_allows(EXPORTED_PROGRAM)
#: documents that are changed in every field
CHANGED = (
    "tune", "tune: finer", "tune: by a score", "evaluate", "inspect", "bench", "train", "compare",
    "dry-run: tune", "doctor", "report", "error", *(["export: pt2"] if WRITES_PT2 else []),
)  # fmt: skip
#: names of objects whose keys are the user's, or those of an older result, and keys that need not be there
OPEN = {"settings", "model_kwargs", "facts"}
OPTIONAL = {"free_path", "paths", "top1", "top5", "loss", "ece", "score"}


def printed(*argv: object) -> Any:
    """The object that a command prints, whatever its exit code."""
    out = io.StringIO()
    json_to = ["--stdout", "json"] if argv[0] == "export" else ["--format", "json"]
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main([*map(str, argv), *json_to, "-q"])
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def documents(
    tiny_checkpoint: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Objects of every command, in their variants, by a name that starts with the schema's."""
    root = tmp_path_factory.mktemp("schema")
    (root / "own.py").write_text(OWN)
    own = [f"--data={root / 'own.py'}:loader", f"--score={root / 'own.py'}:margin"]
    weights = [TINY, "--checkpoint", tiny_checkpoint]
    prepared = ["--input-size", 12, "--crop-pct", 1, "--mean", 0.5, "--std", 0.25, "--workers", 0]
    job = [*weights, "--data", image_folder, *prepared]
    many = write_images(root / "many", per_class=250)
    grouped, odd = (TINY.replace(":tiny", f":{name}") for name in ("grouped", "odd"))
    tune = ["tune", *job, "--no-cache", "--alphas", "0,0.1,0.3"]
    found = {
        "tune": printed(
            *tune, "--metric", "ece", "--accept", "best", "--batch-stats", "--min-gain", 5,
            "--max-regression", "top1=1", "--require-significant", "--max-latency-ratio", 99, "-o", root / "a",
        ),
        "tune: searched, recalibrated": printed(
            "tune", *weights, "--data", many, *prepared, "--no-cache", "--recalibrate", image_folder, "-o", root / "b"
        ),
        "tune: finer": printed(
            "tune", *weights, "--data", many, *prepared, "--no-cache", "--granularity", "channel", "--temperature",
            "--limit", 104, "--metric", "loss", "--accept", "best", "-o", root / "c",
        ),
        "tune: calibrated": printed(
            "tune", grouped, "--data", image_folder, *prepared, "--no-cache", "--alphas", "1,0.9", "--calibrate",
            image_folder, "-o", root / "d",
        ),
        "tune: one example": printed(*tune, "--limit", 1, "-o", root / "e"),
        "tune: by a score": printed(
            "tune", *weights, *own, "--alphas", "0,0.1", "--accept", "best", "--min-gain", 0, "-o", root / "f"
        ),
        "dry-run: tune": printed(*tune, "--recalibrate", image_folder, "--dry-run", "-o", root / "x"),
        "dry-run: by a score": printed("tune", *weights, *own, "--dry-run", "-o", root / "x"),
        "dry-run: evaluate": printed("evaluate", *job, "--dry-run"),
        "evaluate": printed("evaluate", *job, "--alpha", 0.1, "--scores", root / "s.npz"),
        "inspect": printed("inspect", *job, "--paths"),
        "inspect: no data": printed("inspect", odd, "--input-size", 12),
        "bench": printed("bench", *weights, "--input-size", 12, "--batch-size", "1,2", "--seconds", 0.02),
        "error": printed("tune", TINY, "--data", root / "nowhere", "-o", root / "x"),
        "error: usage": printed("evaluate", TINY, "--nonsense"),
    }  # fmt: skip
    train = [
        "train",
        TINY,
        "--data",
        image_folder,
        *prepared,
        "--epochs",
        3,
        "--eval-every",
        2,
        "--batch-size",
        16,
    ]
    found["train"] = printed(*train, "--norm", "ghost", "--ghost-size", 4, "-o", root / "t")
    found["dry-run: train"] = printed(*train, "--dry-run", "-o", root / "x")
    found["compare"] = printed("compare", f"{root / 'a'}:baseline", root / "a", root / "s.npz", root / "b")
    found["report"] = printed("report", root / "a")
    found["report: by a score, elsewhere"] = printed("report", root / "f", "-o", root / "page.html")
    export = ["export", root / "a", "--trust-code", "--format"]
    if WRITES_PT2:
        found["export: pt2"] = printed(*export, "pt2", "-o", root / "a.pt2")
    found["export: safetensors"] = printed(*export, "safetensors", "-o", root / "a.safetensors")
    found["doctor"] = printed("doctor")
    found["compare: finer"] = printed("compare", root / "c", root / "b")
    found["compare: scores"] = printed("compare", root / "f", root / "f")
    return found


@pytest.fixture(scope="module")
def validators() -> dict[str, Draft202012Validator]:
    return {name: Draft202012Validator(read_schema(name)) for name in schema_names()}


def check(validator: Draft202012Validator, document: Any, name: str) -> None:
    errors = [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in validator.iter_errors(document)
    ]
    assert errors == [], name


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field; of a list only those of its first object, of an open object none."""
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield (*path, key)
            if key not in OPEN:
                yield from places(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from places(value[0], (*path, 0))


def parent_of(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


# --- what is printed fits --------------------------------------------------------------------


def test_what_the_commands_print_fits(documents: dict[str, Any], validators: dict[str, Any]) -> None:
    for name, document in documents.items():
        kind = name.partition(":")[0]
        assert document.get("command", "error") == kind, (name, document)
        check(validators[kind], document, name)
    assert documents["tune"]["deployment"]
    assert {gate["passed"] for gate in documents["tune"]["gates"]} == {True, False}
    assert documents["tune: searched, recalibrated"]["search"]
    assert documents["tune: finer"]["refinement"]
    assert isinstance(documents["compare: finer"]["entries"][0]["alpha"], (dict, float))
    assert "val_top1" not in documents["train"]["epochs"][0]


def test_a_result_from_the_cache_fits(
    run: Run, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, validators: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("ALPHATUNE_CACHE", str(tmp_path / "cache"))
    job = ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--input-size", 12, "--mean", 0.5,
           "--std", 0.25, "--crop-pct", 1, "--workers", 0, "--alphas", "0,0.1", "--format", "json"]  # fmt: skip
    assert run(*job, "-o", tmp_path / "a")[0] == 0
    document = json.loads(run(*job, "-o", tmp_path / "b")[1])
    assert document["cache"]
    check(validators["tune"], document, "cached")
    check(validators["tune"], json.loads((tmp_path / "b" / "result.json").read_text()), "result.json")


def test_there_is_a_schema_of_every_command_that_prints_json() -> None:
    printing = {
        command.callback.__name__
        for command in app.registered_commands
        if {"format", "stdout"} & command.callback.__annotations__.keys()
    }
    assert printing | {"dry-run", "error"} == set(schema_names())


# --- what must not be does not ---------------------------------------------------------------


@pytest.mark.slow
def test_a_field_that_is_missing_or_unknown_does_not_fit(
    documents: dict[str, Any], validators: dict[str, Any]
) -> None:
    """At the top and at every depth, but in what a user names."""
    for name in CHANGED:
        document = copy.deepcopy(documents[name])
        validator = validators[name.partition(":")[0]]
        for path in places(document):
            if path[-1] in OPTIONAL or str(path[-1]).startswith("val_") or is_named_by_a_user(path):
                continue
            holder = parent_of(document, path)
            value = holder.pop(path[-1])
            assert not validator.is_valid(document), f"{name} without {path}"
            holder[f"{path[-1]}_"] = value
            assert not validator.is_valid(document), f"{name} with {path}_"
            del holder[f"{path[-1]}_"]
            holder[path[-1]] = value
        assert validator.is_valid(document), name


def is_named_by_a_user(path: tuple[Any, ...]) -> bool:
    """Layers, kinds of layers, what only some commands add, and what an older result may lack."""
    if path in (("calibration",), ("recalibration",)):
        return True
    named = {"alpha", "kinds", "decay", "summary"}
    if path[0] == "entries":
        named |= {"preprocessing", "decision", "gain", "deployment"}
    return len(path) > 1 and path[-2] in named


def test_metrics_are_all_there(documents: dict[str, Any], validators: dict[str, Any]) -> None:
    for name, path in (
        ("tune", ("baseline",)),
        ("tune", ("chosen", "metrics")),
        ("evaluate", ("metrics",)),
        ("tune", ("best",)),
    ):
        for metric in ("top1", "top5", "loss", "ece"):
            document = copy.deepcopy(documents[name])
            del parent_of(document, (*path, metric))[metric]
            assert not validators[name].is_valid(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("command",), "evaluate"),
        (("metric",), "accuracy"),
        (("metric",), "score"),
        (("accept",), "always"),
        (("baseline", "top1"), 1.01),
        (("baseline", "top1"), -0.01),
        (("baseline", "top1"), "0.5"),
        (("baseline", "top1"), None),
        (("baseline", "loss"), -0.1),
        (("baseline", "n"), 0),
        (("baseline", "n"), 4.5),
        (("chosen", "alpha"), 1.2),
        (("chosen", "alpha"), {"bn1": "much"}),
        (("chosen", "temperature"), 0),
        (("gain", "p"), 1.5),
        (("gain", "ci"), [0.1]),
        (("gain", "scheme"), "guessed"),
        (("curve",), []),
        (("curve", 0, "ci", "top1"), [0, 1, 2]),
        (("model", "checkpoint_sha256"), "abc"),
        (("model", "patched"), [1]),
        (("data", "preprocessing", "std"), [0]),
        (("env", "dtype"), "int8"),
        (("env", "workers"), -1),
        (("deployment", "ratio_to_plain"), 0),
        (("decision", "significant"), "no"),
        (("gates", 0, "passed"), 1),
        (("cache",), {"key": "no hex", "measured": "2026-11-25T00:00:00+00:00"}),
        (("artifacts", 0, "sha256"), ""),
        (("warnings",), "none"),
        (("command_line",), ""),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_or_range_does_not_fit(
    documents: dict[str, Any], validators: dict[str, Any], path: tuple[Any, ...], value: Any
) -> None:
    document = copy.deepcopy(documents["tune"])
    parent_of(document, path)[path[-1]] = value
    assert not validators["tune"].is_valid(document)


def test_no_number_may_be_nan_or_infinite(documents: dict[str, Any], validators: dict[str, Any]) -> None:
    """A parser may let them through; the schema does not."""
    for name in ("tune", "evaluate", "bench", "compare"):
        document = copy.deepcopy(documents[name])
        for path in places(document):
            holder = parent_of(document, path)
            value = holder[path[-1]]
            if not isinstance(value, float) or "preprocessing" in path:
                continue
            for wrong in (float("nan"), float("inf"), float("-inf")):
                holder[path[-1]] = wrong
                assert not validators[name].is_valid(document), f"{name}: {path} = {wrong}"
            holder[path[-1]] = value


# --- the schemas -----------------------------------------------------------------------------


def test_schemas_are_schemas(documents: dict[str, Any], validators: dict[str, Any]) -> None:
    for name in schema_names():
        schema = read_schema(name)
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["title"] == f"alphatune {name}"
    for name, document in documents.items():
        if name.partition(":")[0] != "error":
            assert not validators[name.partition(":")[0]].is_valid(document | {"schema": 2})


def test_a_printed_schema_stands_alone() -> None:
    for name in schema_names():
        text = json.dumps(read_schema(name))
        assert ".json" not in text.replace("result.json", "").replace("demo.json", "")
        for reference in {part.split('"')[0] for part in text.split('"$ref": "')[1:]}:
            assert reference.removeprefix("#/$defs/") in read_schema(name)["$defs"]


def test_the_command(run: Run) -> None:
    assert run("schema") == (0, "\n".join(schema_names()) + "\n", "")
    code, stdout, _ = run("schema", "tune")
    assert (code, json.loads(stdout)) == (0, read_schema("tune"))
    code, stdout, stderr = run("schema", "tuna")
    assert (code, stdout) == (2, "")
    assert "tune" in stderr
    light = "import sys; from alphatune.results.schemas import read_schema; read_schema('demo')"
    light += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], timeout=60).returncode == 0
