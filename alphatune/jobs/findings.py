"""How ``alphatune doctor`` looks: whatever is raised is a finding, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from alphatune.core.errors import one_line
from alphatune.results.diagnosis import Finding


def guarded(
    group: str, name: str, look: Callable[[], Iterable[Finding]], *, consequence: bool = False
) -> list[Finding]:
    """What ``look`` finds; whatever it raises is a finding as well, because a doctor must not fall ill.

    Args:
        consequence: whether something that this needs is known to be broken, and the
            exception says no more than that.
    """
    findings = []
    try:
        for finding in look():
            findings.append(finding)  # one by one: those before an exception are kept
    except Exception as error:  # anything may be wrong with a machine
        detail = f"{type(error).__name__}: {one_line(error)}"
        if consequence:
            detail = f"not looked at, because of what is broken above ({detail})"
        findings.append(Finding(group, name, "note" if consequence else "broken", detail))
    return findings


def gibibytes(size: int) -> str:
    """A size for a person: ``23.4 GiB``, ``64 MiB``."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
