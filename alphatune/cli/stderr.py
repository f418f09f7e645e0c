"""Plain lines on stderr, without rich, for what must be told whatever has happened."""

from __future__ import annotations

import contextlib
import sys


def tell(line: str) -> None:
    """Print a line, if stderr takes it: the caller may have closed it, or its disk may be full."""
    with contextlib.suppress(OSError):
        if sys.stderr is not None:  # print would take stdout in its place
            print(line, file=sys.stderr, flush=True)
