"""``alphatune evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alphatune.cli import options as o
from alphatune.jobs.settings import MOST_PIXELS, EvaluateSettings

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.evaluation import EvaluateDocument

ScoresFile = Annotated[
    str | None,
    typer.Option(
        "--scores",
        metavar="FILE.npz",
        help="Also keep the scores of every example there, for alphatune compare.",
        rich_help_panel=o.OUT,
    ),
]
ReplaceScores = Annotated[
    bool, typer.Option("--overwrite", help="Replace an older file of --scores.", rich_help_panel=o.OUT)
]


def evaluate(
    ctx: typer.Context,
    model: o.Model,
    data: o.Data,
    checkpoint: o.Checkpoint = None,
    checkpoint_key: o.CheckpointKey = None,
    checkpoint_prefix: o.CheckpointPrefix = None,
    model_kwargs: o.ModelKwargs = None,
    pretrained: o.Pretrained = True,
    unsafe_pickle: o.UnsafePickle = False,
    trust_code: o.TrustCode = False,
    logits: o.Logits = None,
    split: o.Split = None,
    val_fraction: o.HeldOut = None,
    split_seed: o.SplitSeed = 0,
    data_root: o.DataRoot = None,
    input_key: o.InputKey = None,
    target_key: o.TargetKey = None,
    class_map: o.ClassMap = None,
    labels: o.Labels = None,
    path_column: o.PathColumn = None,
    label_column: o.LabelColumn = None,
    classes_only_present: o.ClassesOnlyPresent = False,
    limit: o.Limit = None,
    decoder: o.Decoder = "pil",
    max_pixels: o.MaxPixels = MOST_PIXELS,
    on_bad_image: o.OnBadImage = "fail",
    mean: o.Mean = None,
    std: o.Std = None,
    input_size: o.InputSize = None,
    crop_pct: o.CropPct = None,
    crop_mode: o.CropMode = None,
    interpolation: o.Interpolation = None,
    alpha: o.Alpha = None,
    skip_unknown: o.SkipUnknown = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    batch_size: o.BatchSize = "auto",
    workers: o.Workers = "auto",
    cache: o.Cache = "auto",
    seed: o.Seed = 0,
    kernel: o.Kernel = "auto",
    channels_last: o.ChannelsLast = False,
    compile: o.Compile = False,
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

    settings = o.settings_from(ctx, EvaluateSettings)
    if verbose:
        console.note(f"settings: {settings}")
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
