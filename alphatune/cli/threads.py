"""Let the process share its cores with other programs."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: turns of a waiting thread before it sleeps: some microseconds, less than a layer takes
SPIN_COUNT = "10000"
#: with any of these a user has decided how threads wait
DECIDED_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Ask GNU's OpenMP to let threads sleep soon where they wait for each other.

    At the end of every loop that threads share, each waits for the last one, and
    by default spins for milliseconds. On an idle machine that is the fastest way.
    Where another program has a core, the last one is waiting for that core, and
    those that spin keep it from the others. OpenMP reads this when torch is
    imported. Other OpenMP libraries are left alone.
    """
    if not any(name in environment for name in DECIDED_BY):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
