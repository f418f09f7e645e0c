"""Every architecture of timm and torchvision that carries BatchNorm keeps what patching promises."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from breadth import architectures, check

#: SOURCE:NAME of architectures that do not keep the promises -> whose fault it is, and why
KNOWN: dict[str, str] = {}

#: bytes one process may hold, its libraries included
MEMORY = 7 * 10**9

FAMILIES = architectures()


@pytest.fixture(autouse=True)
def _limited_memory() -> Iterator[None]:
    """An architecture that asks for more fails by itself and does not take the machine with it."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "family"), FAMILIES, ids=[":".join(key) for key in FAMILIES])
def test_promises_hold(source: str, family: str) -> None:
    """With ``ALPHATUNE_BREADTH=FILE`` what was found is appended to FILE, for tests/benchmarks/breadth.py."""
    failures = {}
    for architecture in FAMILIES[source, family]:
        record = check(architecture)
        if path := os.environ.get("ALPHATUNE_BREADTH"):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record) | {"peak": peak}) + "\n")
        if record.failure:
            failures[f"{source}:{record.name}"] = record.failure
    members = {f"{source}:{architecture.name}" for architecture in FAMILIES[source, family]}
    unforeseen = {name: failure for name, failure in failures.items() if name not in KNOWN}
    mended = [name for name in KNOWN if name in members and name not in failures]
    assert not unforeseen
    assert not mended, "these hold now: take them out of KNOWN"
