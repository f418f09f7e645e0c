"""What every result has: the version of the layout, and the command that it is of."""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Annotated, Any, Literal, TypeVar

from msgspec import UNSET, Meta, Struct
from msgspec.structs import asdict

import alphatune
from alphatune.results.values import Sha256, Text

#: version of the layout: it changes when a field changes its meaning or goes
SCHEMA: Literal[1] = 1

_P = TypeVar("_P", bound="Part")


class Part(Struct, frozen=True, kw_only=True):
    """An object within a result.

    A field with a default is always written, and may be absent from what an
    earlier version wrote. One whose default is UNSET is not written where it
    does not apply.
    """

    def __getitem__(self, name: str) -> Any:
        """A field by its name, where that is the name of a metric."""
        return getattr(self, name)

    def has(self, name: str) -> bool:
        """Whether there is such a field, and it is set."""
        return getattr(self, name, UNSET) is not UNSET

    def items(self) -> ItemsView[str, Any]:
        """Names and values of the fields that are set, in their order; JSON knows lists, not tuples."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not UNSET
        }.items()

    def extended(self, kind: type[_P], **more: Any) -> _P:
        """The same with more fields, as an object of a kind that has them."""
        return kind(**asdict(self), **more)


class Artifact(Part, frozen=True, kw_only=True):
    """A file that belongs to a result, and its hash."""

    path: Text
    sha256: Sha256


class Document(Part, frozen=True, kw_only=True):
    """A whole result."""

    schema: Annotated[
        Literal[1],
        Meta(description="Version of the layout: it changes when a field changes its meaning or is removed."),
    ] = SCHEMA
    command: str

    def _repr_html_(self) -> str:
        """What a notebook shows in place of the fields."""
        return alphatune.to_html(self)


class VersionedDocument(Document, frozen=True, kw_only=True):
    """A result that names the version that wrote it."""

    alphatune: Annotated[str, Meta(min_length=1, description="Version of alphatune.")]
