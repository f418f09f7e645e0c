"""``alphatune tune``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from alphatune.cli import options as o
from alphatune.core.metrics import INFO
from alphatune.settings import TuneSettings

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.plan import ImagesPlan, PlannedWork, ScorePlan
    from alphatune.results.power import Power
    from alphatune.results.tune import Tuned


@o.takes(TuneSettings)
def tune(
    settings: TuneSettings,
    *,
    config: o.Config = None,
    plan: o.Plan = False,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Sweep α on validation data, decide whether it helps, write the tuned model and a report.

    [bold]Examples[/bold]

    alphatune tune resnet50.a1_in1k --data imagenet/val -o tuned
    # weights of timm, a folder of class folders

    alphatune tune my_model.py:build --checkpoint best.pth --data photos/val --input-size 64
    # a network and weights of your own; images of 64×64

    alphatune tune resnet50 --data imagenet/val --metric loss --granularity layer --temperature
    # one α per layer where it helps, and a temperature beside it

    alphatune tune resnet50 --data imagenet/val --shift common
    # for noise, blur, exposure and compression that the training images lack

    alphatune tune my_model.py:build --checkpoint best.pth --data my_model.py:loader --score my_model.py:iou
    # another task: your loader and your score
    """
    from alphatune.cli import console
    from alphatune.cli.custom_score import show_score_plan
    from alphatune.cli.tune_result import show_result
    from alphatune.jobs.fast_lookup import look_up_tune
    from alphatune.jobs.gates import failures, passes
    from alphatune.reports.step_summary import append_step_summary
    from alphatune.results.plan import ImagesPlan, ScorePlan
    from alphatune.results.serialisation import to_json
    from alphatune.settings.saved import to_command

    say = console.Announcements(quiet)
    document: Tuned | ImagesPlan | ScorePlan | None = None if plan else look_up_tune(settings)
    if document is None:
        with console.progress_bar(quiet or plan, resumes=settings.score is None) as progress:
            from alphatune.jobs.tune import run_tune  # torch takes three seconds to import

            document = run_tune(settings, progress, plan=plan, say=say)
    if document is None:
        return  # another of torchrun's processes speaks
    tuned = None if isinstance(document, ImagesPlan | ScorePlan) else document
    if tuned:
        append_step_summary(tuned, settings.output)
    if not quiet:
        console.remark_on(document.model, say.rest(document.warnings))
        if tuned and tuned.cache:
            console.note(f"from the cache: measured {tuned.cache.measured}; --no-cache measures anew")
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        print(settings.output)
    elif isinstance(document, ImagesPlan):
        _show_plan(document)
        console.show_next([(to_command("tune", settings), "")])
    elif isinstance(document, ScorePlan):
        show_score_plan(document, settings.output)
        console.show_next([(to_command("tune", settings), "")])
    else:
        show_result(document, settings.output, verbose=verbose)
    if tuned and not quiet:
        for sentence in passes(tuned):
            console.note(sentence)
    if tuned and (failed := failures(tuned)):
        console.fail(failed)
        raise typer.Exit(1)


def _show_plan(plan: ImagesPlan) -> None:
    from alphatune.cli import console
    from alphatune.reports.power import count_text

    model, data, env = plan.model, plan.data, plan.env
    searched = plan.work is not None and any(phase.name == "pilot" for phase in plan.work.phases)
    rows = [
        ("model", f"{model.source} {model.checkpoint}"),
        ("norm layers", f"{len(model.patched)} of {model.norm_layers} would be example-weighted"),
        ("data", f"{data.source}: {count_text(data.n)} images, {data.classes} classes"),
        ("preprocessing", ", ".join(f"{k} {v}" for k, v in data.preprocessing.items())),
        *(
            (name, f"{count_text(averages.data.n)} images of {averages.data.source}")
            for name, averages in (("calibration", plan.calibration), ("recalibration", plan.recalibration))
            if averages
        ),
        ("alphas", "searched for" if searched else ", ".join(f"{a:g}" for a in plan.alphas)),
        (
            "device",
            f"{env.device}, {env.dtype}, batches of {env.batch_size}, {env.workers} workers, "
            f"cache {env.cache}",
        ),
        ("output", plan.settings["output"]),
    ]
    out = console.stdout()
    out.print(console.table("Plan (nothing was tuned)", [("", "left"), ("", "left")], rows))
    if plan.work is not None:
        show_work(plan.work)
    if plan.power:
        show_power(plan.power, INFO[plan.power[0].metric].name, "images")


def show_work(work: PlannedWork) -> None:
    """The phases of a tune and their cost."""
    from rich.text import Text

    from alphatune.cli import console

    rows = [(phase.name, _range(phase.evaluations)) for phase in work.phases]
    rows.append(("all", _range(work.evaluations)))
    columns = [("phase", "left"), ("plain evaluations", "right")]
    console.stdout().print(console.table("What it takes", columns, rows))
    time = "The time is not known: the images could not be run."
    if work.seconds is not None:
        ends = dict.fromkeys(console.duration(seconds) for seconds in work.seconds)
        time = f"About {' to '.join(ends)} on this machine, going by a few images; starting up comes on top."
    console.stdout().print(Text(time))


def show_power(powers: tuple[Power, ...], name: str, things: str) -> None:
    """Which gains so many examples can tell from luck, and how many others need."""
    from rich.text import Text

    from alphatune.cli import console
    from alphatune.reports.power import assumption, needed_rows, power_words

    out = console.stdout()
    out.print(Text(power_words(powers, name, things, needs=False), style="bold"))
    out.print(Text(assumption(powers), style="dim"))
    columns = [(f"a gain in {name} of", "right"), (f"needs {things}", "right")]
    out.print(console.table("", columns, needed_rows(powers)))


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.2g}" for end in ends)
    return low if low == high else f"{low} to {high}"
