"""Where the report of a tuned folder was written."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from alphatune.results.document import VersionedDocument
from alphatune.results.values import Text, Warnings


class ReportDocument(VersionedDocument, frozen=True, kw_only=True):
    """Where the report of a tuned folder was written."""

    command: Literal["report"] = "report"
    folder: Text
    report: Annotated[str, Meta(min_length=1, description="The page.")]
    figures: Annotated[
        tuple[Annotated[str, Meta(pattern="^figures/")], ...],
        Meta(description="Files within the folder; none where the page was written elsewhere."),
    ]
    scores: Annotated[bool, Meta(description="Whether there are scores of every example to draw from.")]
    warnings: Warnings
