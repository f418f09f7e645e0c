"""Which versions are claimed, and what is said where the installed ones are too old for something."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
import torch
from conftest import ROOT
from torch import nn

from alphatune.core import versions
from alphatune.core.errors import ConfigurationError
from alphatune.core.toml import tomllib
from alphatune.core.versions import TORCH_FOR, is_at_least, require_torch, torch_allows
from alphatune.jobs.installed_packages import OLDEST_PYTHON, find_packages
from alphatune.norms.watching import watched

#: what lets the suite run, not alphatune
FOR_TESTS = ("dev", "docs")
LINE = re.compile(r"([\w-]+)>=([\w.]+)(?:,<\d+)?(?: *;.*)?")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_is_claimed_is_what_is_tested_at_its_lowest() -> None:
    """.ci/lowest installs tests/lowest.txt: the floor of each requirement, and of each extra's."""
    extras = project()["optional-dependencies"]
    claimed = [
        *project()["dependencies"],
        *(line for name in extras if name not in FOR_TESTS for line in extras[name]),
    ]
    floors = {}
    for line in claimed:
        found = LINE.fullmatch(line)
        assert found, f"{line!r} has no floor"
        floors[found[1]] = found[2]
    lines = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    # torchcodec is of one torch each, and the oldest that reads images is of a newer one
    assert tested == {name: floor for name, floor in floors.items() if name != "torchcodec"}


def test_the_oldest_python_is_said_everywhere_alike() -> None:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    assert project()["requires-python"] == f">={oldest}"
    script = (ROOT / ".ci" / "lowest").read_text(encoding="utf-8")
    assert f"python{oldest}" in script
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    floors = {LINE.fullmatch(line)[1]: LINE.fullmatch(line)[2] for line in project()["dependencies"]}  # type: ignore[index]
    assert f"Python {oldest} or newer, torch {floors['torch']} or newer" in " ".join(readme.split())


def pretend(monkeypatch: pytest.MonkeyPatch, torch_version: str) -> None:
    real = metadata.version
    monkeypatch.setattr(
        versions.metadata, "version", lambda name: torch_version if name == "torch" else real(name)
    )


@pytest.mark.parametrize(
    ("installed", "oldest", "enough"),
    [("2.4.0", "2.7", False), ("2.10.0+cpu", "2.7", True), ("2.7.0a0+git1a2b", "2.7", True), ("2.6.9", "2.7", False),
     ("3.0", "2.14.1", True), ("2.14", "2.14.1", False)],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(
    installed: str, oldest: str, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, installed)
    assert is_at_least("torch", oldest) is enough


def test_what_is_compiled_is_not_watched_by_a_torch_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "2.5.1")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with watched(model) as watch:
        model(torch.randn(2, 3, 8, 8))
    assert "1" in watch.shapes
    with (
        pytest.raises(ConfigurationError, match=r"needs torch 2\.6 or newer; this is 2\.5\.1"),
        watched(torch.compile(model, backend="eager")),
    ):
        pass


def test_what_is_new_enough_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "2.8.0")
    for what in TORCH_FOR:
        require_torch(what, "")
        assert torch_allows(what)


def test_the_doctor_says_what_torch_is_too_old_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "2.7.1")
    (torch_itself,) = [finding for finding in find_packages() if finding.name == "torch"]
    assert (torch_itself.status, torch_itself.detail) == ("note", "2.7.1; exporting to ONNX needs 2.8")
