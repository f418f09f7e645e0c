"""What the doctor finds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec import field as default

from alphatune.results.document import Part, VersionedDocument
from alphatune.results.values import Count, FindingStatus, Open, Text


class Finding(Struct, frozen=True):
    """One thing that was examined."""

    group: Text
    name: Text
    status: Annotated[
        FindingStatus,
        Meta(
            description="note: worth knowing, prevents nothing; missing: optional and not there; broken: needed and "
            "does not work."
        ),
    ]
    detail: Text
    hint: Annotated[str, Meta(description="What to do about it.")] = ""
    facts: Annotated[
        Open,
        Meta(
            description="The same for a program: version, name, memory, free, total (bytes), path, ...; not part of "
            "what can be relied on."
        ),
    ] = default(default_factory=dict)


class Summary(Part, frozen=True, kw_only=True):
    """Findings by status."""

    ok: Count
    note: Count
    missing: Count
    broken: Count


class DoctorDocument(VersionedDocument, frozen=True, kw_only=True):
    """What was examined of an installation and its machine. The exit code is 0 if "ok", else 5."""

    command: Literal["doctor"] = "doctor"
    ok: Annotated[bool, Meta(description="Nothing that alphatune needs is broken.")]
    summary: Summary
    findings: Annotated[tuple[Finding, ...], Meta(min_length=1)]
