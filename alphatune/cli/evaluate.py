"""``alphatune evaluate``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alphatune.cli import options as o
from alphatune.core.metrics import INFO, METRICS
from alphatune.settings import EvaluateSettings
from alphatune.settings.option import OUTPUT

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.evaluation import EvaluateDocument

ScoresFile = Annotated[
    str | None,
    typer.Option(
        "--scores",
        metavar="FILE.npz",
        help="Also write the scores of every example to this file, for alphatune compare.",
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
    plan: o.Plan = False,
    scores: ScoresFile = None,
    overwrite: ReplaceScores = False,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Evaluate a model or a tuned folder, with the reader and the metrics of tune.

    [bold]Examples[/bold]

    alphatune evaluate tuned --data imagenet/val
    # a tuned folder, with the alpha it holds

    alphatune evaluate resnet50.a1_in1k --data imagenet/val --alpha 0.02 --format json
    # any model at one alpha; the result as JSON

    alphatune evaluate tuned --data imagenet/val --shift common
    # also with noise, blur, JPEG, ..., and the mean corruption error

    alphatune evaluate resnet50.a1_in1k --data imagenet/val --scores stock.npz
    # keep the scores of every image for alphatune compare
    """
    from alphatune.cli import console
    from alphatune.results.plan import ImagesPlan
    from alphatune.results.serialisation import to_json

    say = console.Announcements(quiet)
    with console.progress_bar(quiet or plan) as progress:
        from alphatune.jobs.evaluate import run_evaluate

        document = run_evaluate(settings, progress, scores=scores, overwrite=overwrite, plan=plan, say=say)
    if not quiet:
        console.remark_on(document.model, say.rest(document.warnings))
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif isinstance(document, ImagesPlan):
        console.stdout().print(f"{document.data.n} examples; nothing was run", markup=False)
    elif format == "quiet":
        print(console.metrics_text(document.metrics))
    else:
        _show(document)
        console.show_next([_next(settings)])


def _next(settings: EvaluateSettings) -> tuple[str, str]:
    """A command that goes on from here, and what it is for."""
    from alphatune.results.stored import RESULT, command_of
    from alphatune.settings import ExportSettings, TuneSettings
    from alphatune.settings.saved import to_command

    if command_of(Path(settings.model, RESULT)) == "tune":
        return to_command(
            "export", ExportSettings(model=settings.model, format="onnx", trust_code=settings.trust_code)
        ), "write it for deployment"
    shared = {each.name: getattr(settings, each.name) for each in fields(settings)} | {"alpha": None}
    return to_command("tune", TuneSettings(**shared)), "look for the best α on these images"


def _show(document: EvaluateDocument) -> None:
    from rich.text import Text

    from alphatune.cli import console
    from alphatune.results.alpha import alpha_text

    metrics = document.metrics
    rows = [
        ("examples", metrics.n),
        ("α", alpha_text(document.model.alpha) + (" (plain BatchNorm)" if document.model.alpha == 0 else "")),
        *((INFO[name].label, f"{metrics[name]:.4f}") for name in METRICS if metrics.has(name)),
    ]
    out = console.stdout()
    out.print(Text(document.model.source))  # as a title it would be wrapped to the width of the table
    out.print(console.table("", [("", "left"), ("", "right")], rows))
    if document.conditions:
        _show_conditions(document)


def _show_conditions(document: EvaluateDocument) -> None:
    from alphatune.cli import console

    rows = [
        (
            each.name,
            _levels(each.severities),
            each.metrics.n,
            *(f"{each.metrics[name]:.4f}" for name in ("top1", "loss", "ece")),
        )
        for each in document.conditions
    ]
    columns = [("condition", "left"), ("severity", "left")]
    columns += [(heading, "number") for heading in ("examples", "top-1", "loss", "ECE")]
    out = console.stdout()
    out.print()
    out.print(console.table("", columns, rows))
    if error := document.mean_corruption_error:
        out.print(
            f"mean corruption error {error.mean:.4f} over {error.shifts} shift{'s' if error.shifts > 1 else ''}, "
            f"{error.relative:.4f} more than the clean error; 1 − top-1, not divided by AlexNet's as in ImageNet-C"
        )


def _levels(severities: tuple[int, ...]) -> str:
    """``3``, ``2-4``, or nothing for images as they are."""
    if not severities:
        return ""
    first, last = severities[0], severities[-1]
    return f"{first}-{last}" if len(severities) == last - first + 1 > 1 else ",".join(map(str, severities))
