"""Every architecture of timm and torchvision that carries BatchNorm keeps what patching promises."""

from __future__ import annotations

import gc
import json
import os
import resource
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from breadth import (
    CONVERSIONS,
    Architecture,
    Record,
    architectures,
    check,
    check_by_itself,
    equal,
    least,
    smallest,
    tensors_of,
    with_moving_averages_,
)
from conftest import Run

import alphatune
from alphatune.models.sources import build
from alphatune.norms.survey import survey

_SPLIT = (
    "timm's convert_splitbn_model puts SplitBatchNorm2d, which takes maps only, in the place of BatchNorm1d"
)
#: SOURCE:NAME of architectures, with their form, that do not keep the promises -> whose fault it is, and why
KNOWN: dict[str, str] = {
    f"timm:{name}, split": _SPLIT
    for name in ("efficientvit_m0", "iformer_t", "levit_128s", "nextvit_small", "repvit_m1", "shvit_s1")
}

#: bytes one process may hold, its libraries included
MEMORY = 7 * 10**9

FAMILIES = architectures()
OF_TIMM = [family for source, family in FAMILIES if source == "timm"]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _limited_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An architecture that asks for more fails by itself and does not take the machine with it."""
    # The command keeps what it has freed: good for one model, not for a thousand.
    monkeypatch.setattr("alphatune.cli.main.keep_freed_memory", lambda: None)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)
    gc.collect()  # the last model may hang in a cycle, which is small to the collector


@pytest.mark.parametrize(("source", "family"), FAMILIES, ids=[":".join(key) for key in FAMILIES])
def test_promises_hold(source: str, family: str) -> None:
    """With ``ALPHATUNE_BREADTH=FILE`` what was found is appended to FILE, for tests/benchmarks/breadth.py."""
    failures = {}
    for architecture in FAMILIES[source, family]:
        record = check(architecture)
        if "allocate memory" in record.failure:
            record = check_by_itself(architecture)
        note(record)
        if record.failure:
            failures[f"{source}:{record.name}"] = record.failure
    members = {f"{source}:{architecture.name}" for architecture in FAMILIES[source, family]}
    assert not {name: failure for name, failure in failures.items() if name not in KNOWN}
    mended = [name for name in KNOWN if name in members and name not in failures]
    assert not mended, "these hold now: take them out of KNOWN"


@pytest.mark.parametrize("form", [*CONVERSIONS, "features_only"])
@pytest.mark.parametrize("family", OF_TIMM)
def test_promises_hold_in_other_forms(family: str, form: str) -> None:
    """Of the smallest network of each family."""
    architecture = smallest_of(family)
    record = check(architecture, features_only=True) if form == "features_only" else check(architecture, form)
    if record.left_out:
        pytest.skip(record.left_out)
    note(record, form)
    known = KNOWN.get(f"timm:{record.name}, {form}")
    assert bool(record.failure) == bool(known), record.failure or f"holds now: take out {known!r}"


@pytest.mark.parametrize("family", OF_TIMM)
def test_command_takes_the_smallest_of_every_family(run: Run, family: str) -> None:
    architecture = smallest_of(family)
    shape, kwargs = smallest(architecture)
    arguments = [part for name, value in kwargs.items() for part in ("--model-kwargs", f"{name}={value}")]

    def inspect(*argv: object) -> tuple[int, dict[str, Any]]:
        """Exit code and document; an error is of ours, in one line."""
        code, out, err = run(
            "inspect", architecture.name, "--no-pretrained", "--format", "json", *arguments, *argv
        )
        document = json.loads(out)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0), err
        assert code in (0, 2), err
        assert "Traceback" not in err
        return code, document

    side = shape[-1]
    code, document = inspect("--input-size", side)
    assert code == 0
    found = survey(build(architecture.name, pretrained=False, model_kwargs=kwargs).model)
    assert [(layer["name"], layer["status"]) for layer in document["layers"]] == [
        (layer.name, layer.status) for layer in found
    ]
    for odd in (1, 37):
        inspect("--input-size", odd)
    inspect(
        "--input-size", f"1,{side},{side}", "--mean", "0.5", "--std", "0.5", "--model-kwargs", "in_chans=1"
    )
    code, document = inspect("--input-size", f"4,{side},{side}", "--model-kwargs", "in_chans=4")
    assert (code, document["error"]["message"]) == (
        2,
        "images have 1 or 3 channels, the input size asks for 4",
    )
    inspect("--input-size", side, "--model-kwargs", "num_classes=0")
    inspect("--input-size", side, "--model-kwargs", "features_only=True")  # maps in place of logits


@pytest.mark.parametrize(
    "name", [a.name for key in FAMILIES if key[0] == "torchvision" for a in FAMILIES[key]]
)
def test_command_takes_torchvision(run: Run, name: str) -> None:
    """Segmentation and detection, too; what takes no images, or none of this size, says so in one line."""
    code, out, err = run(
        "inspect", f"torchvision:{name}", "--no-pretrained", "--input-size", 64, "--format", "json"
    )
    document = json.loads(out)
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == (code != 0), err
    assert "Traceback" not in err
    if code:
        assert code == 2
        assert document["error"]["message"].startswith("the model does not take an input of size 3x64x64")


@pytest.mark.parametrize("family", OF_TIMM)
def test_tuned_folder_of_the_smallest_of_every_family(tmp_path: Path, family: str) -> None:
    architecture = smallest_of(family)
    shape, kwargs = smallest(architecture)
    source = build(architecture.name, pretrained=False, model_kwargs=kwargs)
    model = with_moving_averages_(source.model)
    if not any(layer.status == "patchable" for layer in survey(model)):
        pytest.skip("no BatchNorm")
    alphatune.patch_(model, 0.1)
    alphatune.save(model, tmp_path / "tuned", source=source, preprocessing=source.preprocessing)
    loaded = alphatune.load(tmp_path / "tuned")
    x = torch.randn(2, *shape)
    with torch.inference_mode():
        assert equal(tensors_of(loaded(x)), tensors_of(model(x)))


@cache
def smallest_of(family: str) -> Architecture:
    return least(FAMILIES["timm", family])


def note(record: Record, form: str = "") -> None:
    """Append a record to the file that the environment names."""
    if path := os.environ.get("ALPHATUNE_BREADTH"):
        peak = max(
            resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record) | {"form": form, "peak": peak}) + "\n")
