"""How long OpenMP's threads spin before they sleep."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from alphatune.cli.threads import spin_briefly


def test_what_a_user_decided_stays() -> None:
    for decided in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        environment = dict(decided)
        spin_briefly(environment)
        assert environment == decided


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is that of Linux")
@pytest.mark.parametrize(("given", "shown"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_openmp_reads_it_when_the_command_imports_torch(given: dict[str, str], shown: str) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    run = subprocess.run(
        [sys.executable, "-m", "alphatune", "doctor"],
        env={**kept, **given, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in run.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert lines, "torch's OpenMP is not GNU's"
    assert all(f"'{shown}'" in line for line in lines)
