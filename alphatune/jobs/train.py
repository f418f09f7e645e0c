"""Train a model: from names of things to a folder that ``alphatune tune`` takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from torch import nn

from alphatune.core.distributed import joined, local_device
from alphatune.core.progress import Meter, ShowProgress, as_meter
from alphatune.core.version import VERSION
from alphatune.data.label_order import check_label_order, near_chance
from alphatune.data.loading import Batches
from alphatune.data.training_batches import DeviceBatches
from alphatune.evaluation.predictor import evaluate
from alphatune.jobs.describe import describe_recipe, describe_training
from alphatune.jobs.opening import resolve_device
from alphatune.jobs.preparation import Say, announce
from alphatune.jobs.run_folder import (
    CHECKPOINT,
    LOG,
    as_begun,
    check_run_folder,
    finished_result,
    opened_run_folder,
)
from alphatune.jobs.tracking import RUN_IDS, Tracking, tracked
from alphatune.jobs.training_job import (
    TrainingJob,
    evaluation_batches,
    prepare_training,
    recipe_of,
)
from alphatune.models.bundle import write_model
from alphatune.models.output import is_bundle, published
from alphatune.reports.training import log_frame, write_training_reports
from alphatune.results.metrics import Metrics
from alphatune.results.plan import TrainPlan
from alphatune.results.training import Epoch, TrainDocument
from alphatune.settings import TrainSettings
from alphatune.settings.saved import check_minutes
from alphatune.statistics.scores import summarise
from alphatune.training.distributed import gather, shard
from alphatune.training.interruption import deferred_signals
from alphatune.training.loop import train
from alphatune.training.state import TrainingState, load_state_, replace_file, save_state, start


def run_train(
    settings: TrainSettings,
    progress: ShowProgress = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    *,
    plan: bool = False,
    say: Say | None = None,
) -> TrainDocument | TrainPlan:
    """Train a model and write it, as a folder that ``alphatune tune`` takes as MODEL.

    Checkpoints go to the output folder while it runs; SIGINT and SIGTERM save
    first and are delivered then.

    Args:
        say: told how images are prepared, before the work begins.

    Returns:
        The document that result.json holds; with ``plan`` the plan.

    Raises:
        AlphatuneError: in one of its kinds; the last checkpoint stays as it is.
    """
    check_minutes(settings.checkpoint_minutes)
    settings = as_begun(settings)
    recipe_of(settings)  # an error in the options should not wait for the data
    with tracked("train", settings) as tracking:
        return _train(settings, tracking, progress, on_epoch, plan, say)


def _train(
    settings: TrainSettings,
    tracking: Tracking,
    progress: ShowProgress,
    on_epoch: Callable[[Epoch], None] | None,
    plan: bool,
    say: Say | None,
) -> TrainDocument | TrainPlan:
    device = local_device(resolve_device(settings.device))
    output = Path(settings.output)
    with joined(device) as world:
        meter = as_meter(progress) if world.first else Meter()
        if world.first:
            check_run_folder(output, settings)
        if settings.resume and is_bundle(output) and not plan:
            return finished_result(output)
        job = prepare_training(settings, device, world)
        announce(job.announcement, say if world.first else None)
        if plan:
            return describe_training(job)
        with opened_run_folder(output, settings) if world.first else nullcontext():
            if settings.cache == "device":
                job = job.cached(meter)
            state = start(job.model, job.recipe, device)
            if settings.resume and (output / CHECKPOINT).is_file():
                load_state_(state, output / CHECKPOINT, job.fingerprint)
                done = f"after epoch {len(state.rows)} of {settings.epochs}"
                resumed = f"continuing {output} {done} ({state.seconds:.0f} s of training so far)"
                announce([resumed], say if world.first else None)
            if world.first:
                tracking.begin(output / RUN_IDS, state.step)
            _run(job, state, output, tracking, meter, on_epoch)
            described, validation = describe_training(job), state.rows[-1].validation()
            labels = job.splits.validation.targets
            document = TrainDocument(
                alphatune=VERSION,
                model=described.model,
                data=described.data,
                env=described.env,
                recipe=describe_recipe(job),
                epochs=tuple(state.rows),
                validation=validation,
                test=_test(job, state, meter),
                seconds=state.seconds,
                artifacts=(),
                warnings=(
                    *described.warnings,
                    *near_chance(labels, validation.top1, "on the validation examples"),
                ),
            )
            meter.phase("writing the report")
            if world.first:
                document = _publish(job, state, output, document)
                tracking.trained(document)
            return document


def _test(job: TrainingJob, state: TrainingState, meter: Meter) -> Metrics | None:
    """Metrics of the test set, where the data have one."""
    if job.splits.test is None:
        return None
    batches = evaluation_batches(job.splits.test, job.preprocessing, job.settings, job.batches.device)
    meter.begin("testing", len(batches))
    return _measure(state.evaluated, batches, job, lambda done, _: meter.add(done - meter.done))


def _run(
    job: TrainingJob,
    state: TrainingState,
    output: Path,
    tracking: Tracking,
    meter: Meter,
    on_epoch: Callable[[Epoch], None] | None,
) -> None:
    """Train to the end, saving on the way; a signal that came is delivered on leaving."""
    first = job.world.first

    def save() -> None:
        if first:
            save_state(state, output / CHECKPOINT, job.fingerprint)

    def finished_epoch(row: Epoch) -> None:
        if first:
            replace_file(output / LOG, lambda path: log_frame(state.rows).to_csv(path, index=False))
            tracking.epoch(row)
            if on_epoch:
                on_epoch(row)

    with deferred_signals(meter.display.interrupted) as stop:
        finished = train(
            state,
            job.batches,
            job.recipe,
            evaluate=lambda model, watch: _measure(model, job.validation, job, watch),
            save=save,
            save_minutes=job.settings.checkpoint_minutes,
            stop=stop,
            waiting=stop.waiting,
            world=job.world,
            validation_examples=len(job.validation),
            progress=meter,
            on_epoch=finished_epoch,
        )
    if not finished:  # by a signal to another process: one to this process was delivered above
        raise KeyboardInterrupt


def _measure(
    model: nn.Module, batches: Batches | DeviceBatches, job: TrainingJob, watch: ShowProgress = None
) -> Metrics:
    """Metrics over all examples, each scored once, by whichever process has it."""
    world, dtype = job.world, job.recipe.dtype
    if world.size > 1 and isinstance(batches, Batches):
        part = shard(batches, world)
        scores = evaluate(model, part, dtype=dtype) if len(part) else None
    elif world.first:
        scores = evaluate(model, batches, dtype=dtype, progress=watch)
    else:
        scores = None
    gathered = gather(scores, world)
    if batches is job.validation:  # weights that know another order may come with a head of as many classes
        check_label_order(job.splits.validation, gathered.targets, gathered.predicted)
    return summarise(gathered)


def _publish(job: TrainingJob, state: TrainingState, output: Path, document: TrainDocument) -> TrainDocument:
    """Put the finished model and its reports beside the checkpoint, the manifest last."""
    model = state.evaluated
    source = job.started.source
    with published(output) as stage:
        write_model(model, stage, source=source, preprocessing=job.preprocessing)
        return write_training_reports(stage, document)
