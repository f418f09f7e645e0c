"""``alphatune report``."""

from __future__ import annotations

from typing import Annotated

import typer

from alphatune.cli import options as o
from alphatune.settings.option import OUTPUT

TunedFolder = Annotated[
    str,
    typer.Argument(metavar="FOLDER", help="A folder that alphatune tune wrote.", show_default=False),
]
PageFile = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the page there, without figures as files. Default: report.html and figures/ in FOLDER.",
        rich_help_panel=OUTPUT,
    ),
]
ReplaceFile = Annotated[
    bool, typer.Option("--overwrite", help="Replace an older report at --output.", rich_help_panel=OUTPUT)
]


def report(
    folder: TunedFolder,
    output: PageFile = None,
    overwrite: ReplaceFile = False,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Draw the report of a tuned folder again: one HTML page, and its figures as files.

    [bold]Examples[/bold]

    alphatune report tuned
    # again, in the folder itself

    alphatune report tuned --output resnet50.html
    # one page elsewhere
    """
    from alphatune.cli import console
    from alphatune.results.serialisation import to_json

    with console.progress_bar(quiet, "drawing the report"):
        from alphatune.jobs.report import run_report

        document = run_report(folder, output=output, overwrite=overwrite)
    if not quiet:
        console.warn(document["warnings"])
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        print(document["report"])
    else:
        figures = f", {len(document['figures'])} figures in {folder}/figures" if document["figures"] else ""
        console.stdout().print(f"Written to {document['report']}{figures}", markup=False, soft_wrap=True)
