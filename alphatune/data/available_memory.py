"""How much memory of the host can still be had."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Bytes, or None where the system does not say.

    Linux counts as available what it would free of its file caches; only
    that, and not ``SC_AVPHYS_PAGES``, is sensible after images were read. A
    container may have less than its host.
    """
    found = [_of_system(meminfo), _of_container(cgroup)]
    return min((size for size in found if size is not None), default=None)


def _of_system(meminfo: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_container(cgroup: Path) -> int | None:
    """What a control group (version 2) leaves; the files that it caches can be freed."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (cgroup / "memory.stat").read_text().splitlines()
        counts = dict(line.split(maxsplit=1) for line in lines)
        return max(0, limit - used + int(counts.get("inactive_file", 0)))
    return None
