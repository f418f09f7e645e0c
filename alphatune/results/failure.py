"""What is printed in the place of a result where a command fails."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from alphatune.results.document import Part
from alphatune.results.values import Text

CODES = (2, 3, 4, 5, 6, 70, 129, 130, 143)


class Failure(Part, frozen=True, kw_only=True):
    """What went wrong, and what to do about it."""

    code: Annotated[int, Meta(description="The exit code.", extra_json_schema={"enum": list(CODES)})]
    message: Text
    hint: str


class FailureDocument(Part, frozen=True, kw_only=True):
    """What a command prints as JSON where it fails. A gate that fails is not such a failure: the result tells."""

    error: Failure
