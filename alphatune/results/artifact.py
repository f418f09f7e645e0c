"""Files that belong to a result."""

from __future__ import annotations

from alphatune.results.document import Part
from alphatune.results.values import Sha256, Text


class Artifact(Part, frozen=True, kw_only=True):
    """A file and its hash."""

    path: Text
    sha256: Sha256
