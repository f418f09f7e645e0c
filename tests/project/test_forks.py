"""A command that is forked off runs in the environment of the test, whichever test started the server."""

from __future__ import annotations

import os

import pytest
from forks import run_captured


def tell() -> None:
    print("cache", os.environ.get("ALPHATUNE_CACHE"), flush=True)


def test_a_fork_has_the_environment_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("first", "second"):
        monkeypatch.setenv("ALPHATUNE_CACHE", folder)
        assert f"cache {folder}" in run_captured(["--version"], before=tell).stdout
    monkeypatch.delenv("ALPHATUNE_CACHE")
    assert "cache None" in run_captured(["--version"], before=tell).stdout
    told = run_captured(["--version"], environment={"ALPHATUNE_CACHE": "off"}, before=tell)
    assert "cache off" in told.stdout
