"""``alphatune demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alphatune.cli import options as o
from alphatune.settings.option import OUTPUT, RUNNING

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.demo import DemoDocument

DemoFolder = Annotated[
    str,
    typer.Option("--output", "-o", metavar="FOLDER", help="Images and models.", rich_help_panel=OUTPUT),
]
OverwriteDemo = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier demo.", rich_help_panel=OUTPUT)
]
DemoSeed = Annotated[
    int,
    typer.Option(
        "--seed", help="Random seed for split, weights, batches, noise and folds.", rich_help_panel=RUNNING
    ),
]


def demo(
    output: DemoFolder = "alphatune-demo",
    overwrite: OverwriteDemo = False,
    seed: DemoSeed = 0,
    device: o.Device = "auto",
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Try it in a minute, without data of your own or a network connection.

    Trains a small network on the handwritten digits that scikit-learn ships, shifts the validation images as
    another scanner might, and tunes α on these. Needs scikit-learn: pip install ".\\[demo]" in the clone.

    [bold]Examples[/bold]

    alphatune demo
    # into the folder alphatune-demo

    alphatune demo --seed 1 --output second --format json
    # another draw, elsewhere; the result as JSON
    """
    from alphatune.cli import console
    from alphatune.results.serialisation import to_json

    with console.progress_bar(quiet) as progress:
        from alphatune.jobs.demo import run_demo

        document = run_demo(
            output,
            seed=seed,
            device=device,
            overwrite=overwrite,
            say=None if quiet else console.note,
            progress=progress,
        )
    if verbose:
        console.note(f"trained in {document.train.seconds:.0f} s")
    if not quiet:
        console.warn(document.tune.warnings)
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        print(output)
    else:
        _show(document, output)


def _show(document: DemoDocument, output: str) -> None:
    from pathlib import Path

    from rich.text import Text

    from alphatune.cli import console
    from alphatune.cli.tune_result import show_result

    out, shift, alpha = console.stdout(), document.shift, document.tune.chosen.alpha
    n = document.images.validation
    out.print(
        Text(
            f"Top-1 of the {n} validation images as they are: {document.unshifted.baseline.top1:.4f}.\n"
            "Now the same images as another scanner might see them. The shift is simulated (contrast "
            f"{shift.contrast:g}, background {shift.background:+.0%}, blur {shift.blur:g} pixels, noise "
            f"{shift.noise:.0%}) and was chosen to show an effect.\n"
        )
    )
    show_result(document.tune, str(Path(output) / "tuned"), onward=False)
    columns = [("validation images", "left"), ("α = 0", "right")]
    if alpha:
        columns.append((f"α = {alpha:g}", "right"))
    names = ("baseline", "chosen")[: len(columns) - 1]
    rows = [
        (part, *(f"{document[part][name].top1:.4f}" for name in names)) for part in ("unshifted", "shifted")
    ]
    out.print("")
    out.print(console.table("Top-1", columns, rows))
    if alpha:
        out.print(
            Text(
                "\nHere α makes up for a shift that was made on purpose. Where your own images should be like "
                "those trained on, look for the cause of so large a gain first."
            )
        )
    out.print(
        Text(
            f"\n{output} holds images/train, images/validation and shifted as class folders, model, tuned and "
            "demo.json. Next:"
        )
    )
    for command in document.next:
        out.print(Text(f"  {command}"), soft_wrap=True)
    out.print(Text("  alphatune tune MODEL --data DIR        # a model and validation images of your own"))
