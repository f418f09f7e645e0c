"""``alphatune schema``."""

from __future__ import annotations

from typing import Annotated

import typer

SchemaName = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]", help="The command; dry-run; or error. Without it: the names.", show_default=False
    ),
]


def schema(name: SchemaName = None) -> None:
    """Print the JSON Schema of what a command prints with --format json.

    [bold]Examples[/bold]

    alphatune schema
    # the names

    alphatune schema tune > tune.schema.json
    # one of them
    """
    import json

    from alphatune.results.schemas import read_schema, schema_names

    if name is None:
        print("\n".join(schema_names()))
    else:
        print(json.dumps(read_schema(name), indent=2))
