"""``alphatune evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alphatune.cli import options as o
from alphatune.settings import EvaluateSettings
from alphatune.settings.option import OUTPUT

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.evaluation import EvaluateDocument

ScoresFile = Annotated[
    str | None,
    typer.Option(
        "--scores",
        metavar="FILE.npz",
        help="Also keep the scores of every example there, for alphatune compare.",
        rich_help_panel=OUTPUT,
    ),
]
ReplaceScores = Annotated[
    bool, typer.Option("--overwrite", help="Replace an older file of --scores.", rich_help_panel=OUTPUT)
]


@o.takes(EvaluateSettings)
def evaluate(
    settings: EvaluateSettings,
    *,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    scores: ScoresFile = None,
    overwrite: ReplaceScores = False,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Evaluate a model or a tuned folder, with the reader and the metrics of tune.

    [bold]Examples[/bold]

    alphatune evaluate tuned --data imagenet/val

    alphatune evaluate resnet50.a1_in1k --data imagenet/val --alpha 0.02 --format json

    alphatune evaluate resnet50.a1_in1k --data imagenet/val --scores stock.npz   # for alphatune compare
    """
    from alphatune.cli import console
    from alphatune.jobs.evaluate import run_evaluate
    from alphatune.results.plan import ImagesPlan
    from alphatune.results.serialisation import to_json

    with console.progress_bar("evaluating", quiet or dry_run) as progress:
        document = run_evaluate(settings, progress, scores=scores, overwrite=overwrite, dry_run=dry_run)
    if not quiet:
        console.remark_on(document.model, document.warnings)
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif isinstance(document, ImagesPlan):
        console.stdout().print(f"{document.data.n} examples; nothing was run", markup=False)
    elif format == "quiet":
        print(console.metrics_text(document.metrics))
    else:
        _show(document)


def _show(document: EvaluateDocument) -> None:
    from alphatune.cli import console

    metrics, alpha = document.metrics, document.model.alpha
    rows = [
        ("examples", metrics.n),
        ("alpha", "per layer" if isinstance(alpha, dict) else f"{alpha:g}"),
        ("top-1", f"{metrics.top1:.4f}"),
        ("top-5", f"{metrics.top5:.4f}"),
        ("loss (nats)", f"{metrics.loss:.4f}"),
        ("ECE", f"{metrics.ece:.4f}"),
    ]
    console.stdout().print(console.table(document.model.source, [("", "left"), ("", "right")], rows))
