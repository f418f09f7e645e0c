"""``alphatune doctor``: what it finds here, and in installations that are broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Run
from jsonschema import Draft202012Validator

from alphatune.core.extras import install_line
from alphatune.core.toml import tomllib
from alphatune.jobs import machine
from alphatune.jobs.doctor import to_document
from alphatune.jobs.findings import guarded
from alphatune.jobs.installed_packages import (
    OLDEST_PYTHON,
    Requirement,
    find_extras,
    look_at,
    parse_requirements,
    satisfies,
)
from alphatune.jobs.machine import shared_memory
from alphatune.jobs.toolchain import find_cxx
from alphatune.results.diagnosis import Finding
from alphatune.results.document import SCHEMA
from alphatune.results.schemas import read_schema


def findings(stdout: str) -> dict[str, dict]:
    return {finding["name"]: finding for finding in json.loads(stdout)["findings"]}


def doctor(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alphatune", "doctor", *argv],
        capture_output=True, text=True, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip


def test_this_installation_is_sound_and_every_finding_is_true(run: Run) -> None:
    code, stdout, stderr = run("doctor", "--format", "json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert document["ok"] is True
    assert list(Draft202012Validator(read_schema("doctor")).iter_errors(document)) == []
    found = findings(stdout)
    for package in ("torch", "torchvision", "timm", "typer", "numpy"):
        assert found[package]["facts"]["version"] == metadata.version(package)
    assert found["torchvision::nms"]["status"] == "ok"
    assert found["pil"]["status"] == "ok"
    assert found["cpu"]["facts"]["threads"] == torch.get_num_threads()
    assert found["cpu"]["facts"]["usable_cores"] == len(os.sched_getaffinity(0))
    assert ("cuda:0" in found) == torch.cuda.is_available()
    free = found["memory"]["facts"]["free"]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free <= total
    extras = {name for name, finding in found.items() if finding["group"] == "Optional packages"}
    assert extras == set(metadata.metadata("alphatune").get_all("Provides-Extra")) - {"dev", "docs"}


def test_a_person_reads_a_table_and_a_script_one_line(run: Run) -> None:
    code, stdout, _ = run("doctor")
    assert code == 0
    for heading in ("Packages", "Devices", "Image decoders", "Memory and folders", "Optional packages"):
        assert f"\n{heading}" in f"\n{stdout}"
    assert "Everything that alphatune needs works." in stdout
    code, stdout, _ = run("doctor", "--format", "quiet")
    assert dict(pair.split("=") for pair in stdout.split())["broken"] == "0"


@pytest.mark.slow
def test_torchvision_built_for_another_torch_is_broken(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    done = doctor("--format", "json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 5
    assert json.loads(done.stdout)["ok"] is False
    found = findings(done.stdout)
    assert found["torch"]["status"] in ("ok", "note")  # a note where it is too old for an export
    assert found["torchvision::nms"]["status"] == "broken"
    assert "does not exist" in found["torchvision::nms"]["detail"]
    assert "same release" in found["torchvision::nms"]["hint"]
    assert "error: torchvision" in done.stderr


def test_a_torch_that_does_not_load_is_said_and_the_rest_still_looked_at(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.99: cannot open')\n")
    done = doctor("--format", "json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 5, done.stderr
    found = findings(done.stdout)
    assert found["torch"]["status"] == "broken"
    assert "libcudart.so.99" in found["torch"]["detail"]
    assert found["numpy"]["status"] == "ok"
    assert "memory" in found
    assert found["devices"]["status"] == "note"  # a consequence, not one more thing that is broken


def test_a_compiler_is_tried_and_not_only_found(tmp_path: Path) -> None:
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\necho 'fatal error: cannot find crt1.o' >&2\nexit 1\n")
    script.chmod(0o755)
    found = find_cxx(str(script))
    assert found.status == "missing"
    assert "crt1.o" in found.detail
    assert "`kernel=eager`" in found.hint
    script.write_text("#!/bin/sh\nexit 0\n")  # claims success and writes nothing
    assert find_cxx(str(script)).status == "missing"


def test_the_compiler_of_this_machine_works() -> None:
    from alphatune.kernels.cpu import find_compiler

    if find_compiler() is None:
        pytest.skip("no C++ compiler here")
    assert find_cxx().status in ("ok", "note")


def test_extras_name_what_they_lack_and_the_line_that_adds_it() -> None:
    requirements = [
        Requirement("torch", ">=2", ""),
        Requirement("no-such-package-of-ours", ">=1", "onnx"),
        Requirement("pytest", ">=1", "onnx"),
        Requirement("pytest", ">=9999", "future"),
        Requirement("pytest", ">=1", "there"),
        Requirement("pytest", ">=9999", "dev"),
    ]
    found = {finding.name: finding for finding in find_extras(requirements)}
    assert set(found) == {"onnx", "future", "there"}
    assert (found["there"].status, found["there"].hint) == ("ok", "")
    assert found["onnx"].status == "missing"
    assert "no-such-package-of-ours" in found["onnx"].detail
    assert found["onnx"].hint == install_line("onnx")
    assert "older than >=9999" in found["future"].detail


def test_requirements_are_read_as_metadata_spells_them() -> None:
    lines = ["torch>=2.11", "datasets>=4; extra == 'hfds'", 'x-y[a,b] ~= 1.0 ; extra == "z"', "rich"]
    assert parse_requirements(lines) == [
        Requirement("torch", ">=2.11", ""),
        Requirement("datasets", ">=4", "hfds"),
        Requirement("x-y", "~= 1.0", "z"),
        Requirement("rich", "", ""),
    ]
    of_older = [
        "old>=1; python_version < '3.0'",
        'older; python_version<"3.9"',
        "present>=2; python_version < '9.0'",
    ]
    assert parse_requirements(of_older) == [Requirement("present", ">=2", "")]
    assert satisfies("2.14.1+cpu", ">=2.11")
    assert not satisfies("2.9", ">=2.11")


def test_every_requirement_of_the_project_is_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    of_packages = [line for line in lines if not line.startswith("alphatune") and ";" not in line]
    read = [str(r) for r in parse_requirements(lines) if r.name not in ("alphatune", "tomli")]
    assert read == of_packages
    assert project["requires-python"] == ">=" + ".".join(map(str, OLDEST_PYTHON))


def test_a_package_that_is_needed_and_old_or_absent_is_broken() -> None:
    assert look_at(Requirement("no-such-package-of-ours", ">=1", "")).status == "broken"
    old = look_at(Requirement("numpy", ">=9999", ""))
    assert old.status == "broken"
    assert old.hint == 'pip install "numpy>=9999"'


def test_little_shared_memory_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_memory(tmp_path).facts["total"] > 0
    monkeypatch.setattr(machine, "LITTLE_SHARED", 2**62)
    found = shared_memory(tmp_path)
    assert found.status == "note"
    assert "--shm-size" in found.hint
    # Images of ours go by pipes: fewer workers of ours would not help.
    assert "--workers" not in found.hint
    assert "DataLoader of your own" in found.detail


def test_a_check_that_fails_is_a_finding_and_keeps_those_before_it() -> None:
    def look():
        yield Finding("g", "first", "ok", "fine")
        raise ValueError("two\nlines")

    first, second = guarded("g", "second", look)
    assert first.status == "ok"
    assert (second.status, second.detail) == ("broken", "ValueError: two lines")
    assert not to_document([first, second]).ok
    assert to_document([first, second]).schema == SCHEMA
    assert guarded("g", "second", look, consequence=True)[1].status == "note"
