"""``alphatune train``."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from alphatune.cli import options as o
from alphatune.core.metrics import STANDARD
from alphatune.settings import TrainSettings

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.plan import TrainPlan
    from alphatune.results.training import Epoch, TrainDocument, TrainedNorm


@o.takes(TrainSettings)
def train(
    settings: TrainSettings,
    *,
    config: o.Config = None,
    plan: o.Plan = False,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Train a network with ghost, batch-group or other norm layers, for tune.

    [bold]Examples[/bold]

    alphatune train alphatune.models.cifar:resnet18 --data cifar10 --data-root data --norm ghost --ghost-size 16
    # from scratch, with Ghost BatchNorm

    alphatune train resnet50.a1_in1k --pretrained --data flowers102 --data-root data --lr 0.01 -o flowers
    # fine-tune weights of timm

    torchrun --nproc-per-node 4 -m alphatune train resnet50 --data imagenet --resume
    # four GPUs; go on where an earlier run stopped
    """
    from alphatune.cli import console
    from alphatune.results.plan import TrainPlan
    from alphatune.results.serialisation import to_json

    speaks = os.environ.get("RANK", "0") == "0"  # one of torchrun's processes speaks for all
    quiet = quiet or not speaks
    say = console.Announcements(quiet)
    with console.progress_bar(quiet or plan) as progress:
        from alphatune.jobs.train import run_train

        document = run_train(settings, progress, None if quiet else _show_epoch, plan=plan, say=say)
    if not speaks:
        return
    if not quiet:
        console.warn(say.rest(document.warnings))
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        print(settings.output)
    elif isinstance(document, TrainPlan):
        _show_plan(document)
    else:
        _show_result(document, settings)


def norm_text(norm: TrainedNorm) -> str:
    """A normalisation of training and its sizes: ``ghost norm, 16 examples per group``."""
    examples = {"ghost": norm.ghost_batch_size, "batch-group": norm.examples_per_group}.get(norm.kind)
    groups = norm.num_groups if norm.kind in ("group", "batch-group") else None
    parts = [f"{norm.kind} norm"]
    if groups is not None:
        parts.append(f"at most {groups} channel group{'' if groups == 1 else 's'}")
    if examples is not None:
        parts.append(f"{examples} example{'' if examples == 1 else 's'} per group")
    return ", ".join(parts)


def _show_epoch(row: Epoch) -> None:
    from alphatune.cli import console

    text = f"epoch {row.epoch:>3}  train loss {row.train_loss:.4f}, top-1 {row.train_top1:.4f}"
    if row.was_validated:
        text += f"  val loss {row.val_loss:.4f}, top-1 {row.val_top1:.4f}"
    console.note(f"{text}  {row.seconds:.0f} s")


def _show_plan(plan: TrainPlan) -> None:
    from alphatune.cli import console

    model, data, env = plan.model, plan.data, plan.env
    rows = [
        ("model", f"{model.source} {model.checkpoint}, {model.parameters / 1e6:.2f} M parameters"),
        ("norm layers", f"{model.norm_layers}, trained with {norm_text(model.norm)}"),
        ("new weights", ", ".join(model.new_weights) or "none" if model.checkpoint else "all"),
        ("data", f"{data.source}: {data.train} to train on, {data.validation} to validate"),
        ("classes", data.classes),
        ("preprocessing", ", ".join(f"{k} {v}" for k, v in data.preprocessing.items())),
        ("augmentation", data.augmentation),
        ("steps", f"{env.steps_per_epoch} an epoch, batches of {env.batch_size}"),
        ("decay", ", ".join(f"{k} {v:g}" for k, v in env.decay.items())),
        (
            "device",
            f"{env.device}, {env.dtype}, {env.processes} process{'' if env.processes == 1 else 'es'}, "
            f"{env.workers} workers",
        ),
        ("output", plan.settings["output"]),
    ]
    console.stdout().print(console.table("Plan (nothing was run)", [("", "left"), ("", "left")], rows))


def _show_result(document: TrainDocument, settings: TrainSettings) -> None:
    from rich.text import Text

    from alphatune.cli import console

    rows = []
    for part in ("validation", "test"):
        if metrics := document[part]:
            values = [f"{metrics[name]:.4f}" for name in STANDARD]
            rows.append((part, document.data[part], *values))
    columns = [("", "left"), *((name, "right") for name in ("examples", "top-1", "top-5", "loss", "ECE"))]
    model = document.model
    count = f"{len(document.epochs)} epoch{'' if len(document.epochs) == 1 else 's'}"
    title = f"{model.source}\n{norm_text(model.norm)}, {count}"  # in two lines, as a table breaks a long one
    out = console.stdout()
    out.print(console.table(title, columns, rows))
    out.print(
        Text(
            f"Written to {settings.output}: model.safetensors, alphatune.json, result.json, log.csv, curves.png"
        )
    )
    console.show_next([(_tune_command(settings, document), "look for the best α on the validation images")])


def _tune_command(settings: TrainSettings, document: TrainDocument) -> str:
    """The command that tunes the trained model on the examples it was validated on."""
    data, fraction = document.data, document.data.val_fraction
    command = ["alphatune", "tune", settings.output, "--data", settings.val_data or settings.data]
    for option, value in (
        ("--data-root", settings.data_root),
        ("--class-map", settings.class_map),
        ("--labels", None if settings.val_data else settings.labels),
        ("--path-column", None if settings.val_data else settings.path_column),
        ("--label-column", None if settings.val_data else settings.label_column),
        ("--split", settings.train_split if fraction else settings.split),
        ("--val-fraction", fraction),
        ("--split-seed", data.split_seed or None),
        ("--input-key", settings.input_key),
        ("--target-key", settings.target_key),
    ):
        if value is not None:
            command += [option, str(value)]
    command += ["--output", f"{settings.output.rstrip('/')}-tuned"]  # a second network has one of its own
    return shlex.join(command)
