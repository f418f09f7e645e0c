"""The options of ``alphatune bench`` beside those of options.py. Imports neither torch nor timm."""

from __future__ import annotations

from typing import Annotated

import typer

from alphatune.cli.options import MOST_SEED, OUT, RUN, TUNE

OwnAlpha = Annotated[
    float | None,
    typer.Option(metavar="A", help="Default: those of a tuned folder, else 0.05.", rich_help_panel=TUNE),
]
BatchSizes = Annotated[
    str, typer.Option("--batch-size", metavar="LIST", help="Numbers of images.", rich_help_panel=RUN)
]
Seconds = Annotated[
    float,
    typer.Option(
        metavar="S",
        help="Time a batch size, less each variant's first call; there are at least three rounds.",
        rich_help_panel=RUN,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Of the CPU. Default: torch's.", rich_help_panel=RUN),
]
ImageSeed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the images.", rich_help_panel=RUN)]
ResultFile = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Also write the JSON object there.", rich_help_panel=OUT
    ),
]
ReplaceFile = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an older result of bench.", rich_help_panel=OUT),
]
