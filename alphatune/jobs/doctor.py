"""The whole of ``alphatune doctor``: look at everything alphatune needs, and say what is wrong.

Nothing is installed, fetched or written but for temporary files. What is
looked at imports inside of its function: a torch that does not load must not
keep the doctor from saying so.
"""

from __future__ import annotations

from alphatune.core.version import VERSION
from alphatune.jobs.findings import guarded
from alphatune.jobs.installed_packages import EXTRAS, PACKAGES, find_extras, find_packages
from alphatune.jobs.machine import DEVICES, MEMORY, find_devices, find_memory
from alphatune.jobs.toolchain import DECODERS, TOOLS, find_compilers, find_decoders, find_operators
from alphatune.results.diagnosis import DoctorDocument, Finding, Summary
from alphatune.results.values import FINDING_STATUSES


def run_doctor() -> DoctorDocument:
    """Look at everything.

    Returns:
        ``ok``, whether nothing that is needed is broken; ``summary``, counts by
        status; ``findings``, one object each.
    """
    findings = guarded(PACKAGES, "packages", find_packages)
    ill = any(finding.status == "broken" for finding in findings)
    for group, name, look in (
        (TOOLS, "operators", find_operators),
        (TOOLS, "compilers", find_compilers),
        (DECODERS, "decoders", find_decoders),
        (DEVICES, "devices", find_devices),
        (MEMORY, "memory", find_memory),
        (EXTRAS, "extras", find_extras),
    ):
        findings += guarded(group, name, look, consequence=ill)
    return to_document(findings)


def to_document(findings: list[Finding]) -> DoctorDocument:
    """The findings, to be printed as JSON."""
    summary = Summary(**{status: sum(f.status == status for f in findings) for status in FINDING_STATUSES})
    return DoctorDocument(
        alphatune=VERSION,
        ok=summary.broken == 0,
        summary=summary,
        findings=tuple(findings),
    )
