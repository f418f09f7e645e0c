"""``alphatune tune``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from alphatune.cli import options as o
from alphatune.cli.usage import as_options
from alphatune.core.metrics import METRICS, Measure
from alphatune.settings import TuneSettings

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.plan import ImagesPlan, ScorePlan
    from alphatune.results.tune import BatchStatistics, Point, Refinement, Tuned, TuneDocument


@o.takes(TuneSettings)
def tune(
    settings: TuneSettings,
    *,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Sweep alpha on validation data, decide whether it pays, write the tuned model and a report.

    [bold]Examples[/bold]

    alphatune tune resnet50.a1_in1k --data imagenet/val -o tuned

    alphatune tune my_model.py:build --checkpoint best.pth --data photos/val --metric loss

    alphatune tune resnet50 --data imagenet/val --metric loss --granularity layer --temperature

    alphatune tune convnext_tiny --data imagenet/val --calibrate imagenet/train --calibrate-limit 5000

    alphatune tune my_model.py:build --checkpoint best.pth --data my_model.py:loader --score my_model.py:iou
    """
    from alphatune.cli import console
    from alphatune.cli.custom_score import show_score_plan, show_score_result
    from alphatune.jobs.fast_lookup import look_up_tune
    from alphatune.jobs.gates import failures
    from alphatune.reports.step_summary import append_step_summary
    from alphatune.results.plan import ImagesPlan, ScorePlan
    from alphatune.results.serialisation import to_json
    from alphatune.results.tune import ScoreTuneDocument

    document: Tuned | ImagesPlan | ScorePlan | None = None if dry_run else look_up_tune(settings)
    if document is None:
        from alphatune.jobs.tune import run_tune  # torch takes three seconds to import

        with console.progress_bar("sweeping alpha", quiet or dry_run) as progress:
            document = run_tune(settings, progress, dry_run=dry_run)
    if document is None:
        return  # another of torchrun's processes speaks
    tuned = None if isinstance(document, ImagesPlan | ScorePlan) else document
    if tuned:
        append_step_summary(tuned)
    if not quiet:
        console.remark_on(document.model, document.warnings)
        if tuned and tuned.cache:
            console.note(f"from the cache: measured {tuned.cache.measured}; --no-cache measures anew")
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        print(settings.output)
    elif isinstance(document, ImagesPlan):
        _show_plan(document)
    elif isinstance(document, ScorePlan):
        show_score_plan(document, settings.output)
    elif isinstance(document, ScoreTuneDocument):
        show_score_result(document, settings.output)
    else:
        show_result(document, settings.output)
    if tuned and (failed := failures(tuned)):
        console.fail(failed)
        raise typer.Exit(1)


def _show_plan(plan: ImagesPlan) -> None:
    from alphatune.cli import console

    model, data, env = plan.model, plan.data, plan.env
    rows = [
        ("model", f"{model.source} {model.checkpoint}"),
        ("norm layers", f"{len(model.patched)} of {model.norm_layers} would be example-weighted"),
        ("data", f"{data.source}: {data.n} examples, {data.classes} classes"),
        ("preprocessing", ", ".join(f"{k} {v}" for k, v in data.preprocessing.items())),
        *(
            (name, f"{averages.data.n} examples of {averages.data.source}")
            for name, averages in (("calibration", plan.calibration), ("recalibration", plan.recalibration))
            if averages
        ),
        ("alphas", ", ".join(f"{a:g}" for a in plan.alphas)),
        (
            "device",
            f"{env.device}, {env.dtype}, batches of {env.batch_size}, {env.workers} workers, "
            f"cache {env.cache}",
        ),
        ("output", plan.settings["output"]),
    ]
    console.stdout().print(console.table("Plan (nothing was run)", [("", "left"), ("", "left")], rows))


def show_result(document: TuneDocument, output: str) -> None:
    """The curve, the decision and where the files are; ``alphatune demo`` shows them, too."""
    from rich.text import Text

    from alphatune.cli import console
    from alphatune.reports.averages import averages_sentences
    from alphatune.reports.batch_statistics import companions_sentence
    from alphatune.reports.markdown import beyond, headline

    out, curve, chosen = console.stdout(), document.curve, document.chosen.alpha
    baseline = document.baseline_alpha
    rows: list[tuple[str, ...]] = []
    for point in _shown(document):
        plain = point.alpha == baseline
        marks = [name for name, alpha in document.best.items() if alpha == point.alpha]
        rows.append(
            (
                f"{point.alpha:g}",
                f"{point.top1:.4f}",
                "" if plain else _interval(point, "top1"),
                f"{point.top5:.4f}",
                f"{point.loss:.4f}",
                "" if plain else _interval(point, "loss"),
                f"{point.ece:.4f}",
                ("chosen " if point.alpha == chosen else "")
                + (f"best {', '.join(marks)} " if marks else "")
                + ("" if point.measured else "~"),
            )
        )
    right = "right"
    columns = [
        ("alpha", right), ("top-1", right), ("change (95 %)", right), ("top-5", right),
        ("loss", right), ("change (95 %)", right), ("ECE", right), ("", "left"),
    ]  # fmt: skip
    model = document.model
    title = f"{document.data.n} examples, {len(model.patched)} of {model.norm_layers} norm layers"
    if compared := document.batch_statistics:
        rows.append(_comparison(compared))
    for sentence in averages_sentences(document):
        out.print(Text(sentence))
    out.print(console.table(title, columns, rows))
    if compared:
        out.print(Text(companions_sentence(compared), style="dim"))
    if any(not point.measured for point in curve):
        out.print(Text("~ interpolated", style="dim"))
    if len(curve) > 2:
        span = f"alpha {curve[0].alpha:g} to {curve[-1].alpha:g}"
        for name in ("top1", "loss"):
            values = [p[name] for p in curve]
            ends = f"{min(values):.4f} to {max(values):.4f}"
            out.print(Text(f"\n{name:>5} {console.sparkline(values)} {ends}, {span}"), end="")
        out.print("\n")
    if document.refinement:
        out.print(_levels(document.refinement, baseline))
    out.print(Text(as_options(headline(document)), style="bold"))
    if gain := document.gain:
        out.print(Text(console.gain_text(gain, beyond(document))))
    out.print(
        Text(
            f"Written to {output}: model.safetensors, {'moments.safetensors, ' if document.calibration else ''}"
            "report.html, figures, alphatune.json, result.json, scores.npz, report.md, curve.csv, run.toml"
        )
    )


def _comparison(compared: BatchStatistics) -> tuple[str, ...]:
    """The row of inference by the test batch's statistics."""
    top1, loss = (_interval(compared, metric) for metric in ("top1", "loss"))
    figures = {name: f"{compared[name]:.4f}" for name in METRICS}
    return (
        "test batch", figures["top1"], top1, figures["top5"], figures["loss"], loss, figures["ece"], "no choice",
    )  # fmt: skip


def _levels(refinement: Refinement, baseline_alpha: float) -> Any:
    """Each granularity out of fold, without and with a temperature."""
    from alphatune.cli import console
    from alphatune.reports.markdown import level_name

    right = "right"
    rows = []
    for level in refinement.levels:
        metrics, calibrated = level.metrics, level.calibrated
        marks = "chosen" if level.name == refinement.chosen else ""
        rows.append(
            (
                level_name(level, baseline_alpha),
                f"{level.units}" if level.units else "",
                f"{metrics.top1:.4f}",
                f"{metrics.loss:.4f}",
                f"{metrics.ece:.4f}",
                f"{level.mean_temperature:.3f}",
                f"{calibrated.loss:.4f}",
                f"{calibrated.ece:.4f}",
                marks,
            )
        )
    columns = [
        ("alpha", "left"), ("numbers", right), ("top-1", right), ("loss", right), ("ECE", right),
        ("T", right), ("loss at T", right), ("ECE at T", right), ("", "left"),
    ]  # fmt: skip
    return console.table("Out of fold, without and with temperature", columns, rows)


def _shown(document: TuneDocument) -> list[Point]:
    """A table's worth of the curve: some points in even steps, and all that are measured or best."""
    curve = document.curve
    marked = {alpha for _, alpha in document.best.items()}
    if not isinstance(chosen := document.chosen.alpha, dict):
        marked.add(chosen)
    step = max(1, len(curve) // 12)
    return [p for i, p in enumerate(curve) if i % step == 0 or p.measured or p.alpha in marked]


def _interval(row: Point | BatchStatistics, metric: Measure) -> str:
    """The paired interval of the difference to the unpatched model."""
    if metric not in row.ci:
        return ""
    low, high = row.ci[metric]
    return f"{low:+.4f} .. {high:+.4f}"
