"""Let the process keep the memory that it frees and takes again in every layer."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Ask glibc not to hand large blocks back to the kernel between layers.

    A CPU forward pass frees and allocates an activation in every layer. By
    default glibc maps each large one anew, and the kernel zeroes its pages:
    up to half of the time of an evaluation, saved for somewhat more peak memory
    (docs/benchmarks.md). Other C libraries are left alone.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
