"""``alphatune study``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from alphatune.cli import options as o
from alphatune.settings.option import DATA, OUTPUT, RUNNING
from alphatune.studies.scale import ScaleName

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.study import StudyDocument

Name = Literal[
    "inference-weight", "group-norm", "ghost", "ghost-weight", "norm-decay", "small-batch", "combined", "transfer",
    "non-iid", "averages", "output-range",
]  # fmt: skip
StudyName = Annotated[
    Name, typer.Argument(metavar="NAME", help=f"One of: {', '.join(get_args(Name))}.", show_default=False)
]
StudyScale = Annotated[
    ScaleName,
    typer.Option(
        "--scale",
        help="smoke: seconds, on scikit-learn's digits. cpu: hours of two cores, CIFAR-10 at 16x16. "
        "paper: days of a GPU.",
        rich_help_panel=RUNNING,
    ),
]
StudyData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Training images in place of the scale's, as for train.",
        rich_help_panel=DATA,
    ),
]
StudyRoot = Annotated[
    str | None,
    typer.Option("--data-root", metavar="ROOT", help="Where named data lie.", rich_help_panel=DATA),
]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        metavar="FILE",
        help="For inference-weight: a TOML file of trained networks, a table [[network]] for each.".replace(
            "[", "\\["
        ),
        rich_help_panel=DATA,
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", metavar="N", help="How many seeds. Default: the scale's.", min=1, rich_help_panel=RUNNING
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        "--processes", metavar="N", help="Networks trained at once, on a CPU.", min=1, rich_help_panel=RUNNING
    ),
]
StudyFolder = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Runs, tables and figures; continued.",
        rich_help_panel=OUTPUT,
    ),
]


def study(
    name: StudyName,
    scale: StudyScale = "smoke",
    data: StudyData = None,
    data_root: StudyRoot = None,
    checkpoints: Checkpoints = None,
    seeds: Seeds = None,
    processes: Processes = 1,
    device: o.Device = "auto",
    output: StudyFolder = "alphatune-study",
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Repeat a figure or table of the paper: train what it needs, measure it over alpha, and test its claims.

    Each finished network is a line of runs.jsonl in the output folder. Studies share them, and what is there is not
    trained again.

    [bold]Examples[/bold]

    alphatune study ghost
    # Ghost BatchNorm on small digits, in seconds; needs scikit-learn

    alphatune study non-iid --scale cpu --data cifar10 --data-root data --processes 2 -o runs
    # Table 1 on CIFAR-10 at 16x16; hours, which may be interrupted and continued

    alphatune study inference-weight --checkpoints networks.toml -o runs
    # the curve over alpha of trained networks
    """
    from alphatune.cli import console
    from alphatune.results.serialisation import to_json

    with console.progress_bar(quiet) as progress:
        from alphatune.studies.repeat import run_study

        document = run_study(
            name,
            scale,
            data=data,
            data_root=data_root,
            checkpoints=checkpoints,
            seeds=seeds,
            processes=processes,
            device=device,
            output=output,
            say=console.note if verbose else None,
            progress=progress,
        )
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        print(output)
    else:
        _show(document, output)


def _show(document: StudyDocument, output: str) -> None:
    from pathlib import Path

    from rich.text import Text

    from alphatune.cli import console
    from alphatune.reports.study import percent, points

    out = console.stdout()
    out.print(Text(f"{document.shows}. {document.question}"))
    if document.variants:
        columns: list[tuple[str, str]] = [
            ("network", "left"),
            ("as trained", "right"),
            ("with α", "right"),
            ("gain by α", "right"),
        ]
        rows: list[tuple[str, ...]] = [
            (each.name, percent(each.plain), percent(each.weighted), points(each.gain))
            for each in document.variants
        ]
        title = (
            f"Top-1 in percent, {len(document.variants[0].seeds)} seeds, 95 % intervals; {document.setting}"
        )
        out.print(console.table(title, columns, rows))
    for claim in document.claims:
        out.print(Text(f"{claim.text} {points(claim.difference)} points: {claim.verdict} here."))
    if document.networks:
        columns = [
            ("network", "left"),
            ("metric", "left"),
            ("best α", "right"),
            ("gain", "right"),
            ("p", "right"),
        ]
        rows = [
            (each.name, gain.metric, f"{each.best[gain.metric]:g}", f"{gain.delta:+.4f}", f"{gain.p:.3g}")
            for each in document.networks
            for gain in each.gains
        ]
        out.print(console.table("Over α", columns, rows))
    if document.ranges:
        kinds = tuple(document.ranges[0].lowest)
        columns = [("values", "right"), ("bound", "right"), *((kind, "right") for kind in kinds)]
        rows = [
            (f"{each.values}", f"{-each.bound:.2f}", *(f"{each.lowest[kind]:.2f}" for kind in kinds))
            for each in document.ranges
        ]
        out.print(console.table("Lowest output of BatchNorm in training", columns, rows))
    stem = f"{document.name}-{document.scale}"
    out.print(Text(f"Written: {Path(output) / stem}.md, .csv, .json and figures"), soft_wrap=True)
