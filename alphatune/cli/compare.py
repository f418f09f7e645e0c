"""``alphatune compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alphatune.cli import options as o
from alphatune.cli.usage import as_options
from alphatune.core.metrics import Metric
from alphatune.settings.option import MAX_SEED, OUTPUT

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.comparison import CompareDocument, Comparison

Results = Annotated[
    list[str],
    typer.Argument(
        metavar="RESULT",
        help="Tuned folders, results as JSON (of tune or evaluate), or files of evaluate --scores; "
        "FOLDER:baseline, FOLDER:chosen (the default) or FOLDER:best names a run. The first is what the others are "
        "compared with.",
        show_default=False,
    ),
]
RankBy = Annotated[
    Metric | None,
    typer.Option(
        "--metric",
        metavar="METRIC",
        help="What to rank by. Default: what the first was tuned for, else top1.",
    ),
]
BootstrapSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed for the bootstrap.")]
ComparisonFile = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Also write the comparison there: .json, .md or .csv.",
        rich_help_panel=OUTPUT,
    ),
]
ReplaceFile = Annotated[
    bool, typer.Option("--overwrite", help="Replace an older comparison.", rich_help_panel=OUTPUT)
]


def compare(
    results: Results,
    metric: RankBy = None,
    seed: BootstrapSeed = 0,
    output: ComparisonFile = None,
    overwrite: ReplaceFile = False,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Compare results side by side, and example by example where the data are the same.

    [bold]Examples[/bold]

    alphatune compare tuned other-tuned
    # two tuned folders

    alphatune compare tuned:baseline tuned tuned-finer --metric loss
    # before and after, and finer alphas, ranked by loss

    alphatune compare stock.npz tuned.npz --output comparison.md
    # files of evaluate --scores; the table also as Markdown
    """
    from alphatune.cli import console
    from alphatune.results.serialisation import to_json

    with console.progress_bar(quiet, "reading the results") as progress:
        from alphatune.jobs.compare import run_compare

        document = run_compare(
            results, metric=metric, seed=seed, output=output, overwrite=overwrite, progress=progress
        )
    if not quiet:
        console.warn(document.warnings)
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        for comparison in document.comparisons:
            print(_line(comparison))
    else:
        _show(document)


def _line(comparison: Comparison) -> str:
    """``other=B top1=+0.0035 p_top1=0.44 ...``: each difference, and its p if the examples are paired."""
    words = [f"other={comparison.other}"]
    for row in comparison.differences:
        words.append(f"{row.metric}={row.difference:+.4f}")
        if row.p_adjusted is not None:
            words.append(f"p_{row.metric}={row.p_adjusted:.3g}")
    return " ".join(words)


def _show(document: CompareDocument) -> None:
    from rich.text import Text

    from alphatune.cli import console
    from alphatune.reports import comparison_text as text

    out, left, right = console.stdout(), "left", "right"
    columns = [("", left), *((f"{e.label}\n{e.name}", left) for e in document.entries)]
    rows = [tuple(map(as_options, row)) for row in text.entry_rows(document)]
    out.print(console.table("", columns, rows))
    adjusted = document.correction != "none"
    for comparison in document.comparisons:
        out.print()
        out.print(Text(as_options(text.comparison_title(comparison)), style="bold"))
        if comparison.differences:
            head = text.difference_columns(document)
            sides = [left, *(right for _ in head[1:-1]), left]
            rows = text.difference_rows(comparison, adjusted=adjusted)
            out.print(console.table("", list(zip(head, sides, strict=True)), rows))
        if sentence := text.prediction_sentence(comparison):
            out.print(Text(sentence))
        for remark in comparison.remarks:
            out.print(Text(as_options(f"note: {remark}"), style="dim"))
    out.print()
    for sentence in text.summary_sentences(document):
        out.print(Text(sentence, style="bold"))
