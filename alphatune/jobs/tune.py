"""Tune a model: from names of things to a tuned folder."""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch
from msgspec import structs

from alphatune.core.distributed import World, joined
from alphatune.core.errors import AlphatuneError, ConfigurationError, UnsupportedModelError, one_line
from alphatune.core.progress import Meter, ShowProgress, as_meter
from alphatune.core.version import VERSION
from alphatune.data.conditions import Conditions
from alphatune.data.loading import Batches
from alphatune.export.deployment import deployment_cost
from alphatune.export.graph_cost import graph_costs
from alphatune.export.onnx import require_onnx
from alphatune.jobs.averages import DescribedAverages, describe_averages, open_averages, replace_averages_
from alphatune.jobs.conditions import open_conditions
from alphatune.jobs.custom_score import run_score
from alphatune.jobs.describe import describe_data, describe_env, describe_model, describe_plan
from alphatune.jobs.fast_lookup import remember
from alphatune.jobs.gates import Gate, judge, open_gates
from alphatune.jobs.job_key import find_result, quick_key
from alphatune.jobs.opening import DTYPES, Prepared, digits, predictor_of, prepare, resolved
from alphatune.jobs.plan import plan_power, plan_work
from alphatune.jobs.preparation import Say, announce
from alphatune.jobs.result_cache import write_again
from alphatune.jobs.thumbnails import make_shift_examples, make_thumbnails
from alphatune.jobs.tracking import RUN_IDS, Tracking, tracked
from alphatune.models.bundle import write_model
from alphatune.models.output import beside, check_output, claimed, filling
from alphatune.models.probe import Probe
from alphatune.models.running_stats_check import require_health
from alphatune.models.temperature import set_temperature_
from alphatune.models.weights import weights_of
from alphatune.norms.patching import all_but, all_but_matching, patch_, patched, unpatch_, unpatched_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.reports.deployment import cost_summary
from alphatune.reports.folder import write_reports
from alphatune.reports.result import tune_document
from alphatune.reports.scores import ORIGINAL, StoredScores, Thumbnail
from alphatune.reports.shift_document import describe_shift
from alphatune.results.bench import Deployment
from alphatune.results.environment import TuneEnvironment
from alphatune.results.model import Model
from alphatune.results.plan import ImagesPlan, ScorePlan
from alphatune.results.tune import Tuned
from alphatune.settings import TuneSettings
from alphatune.settings.saved import check_minutes, decisive, input_paths, to_command, to_toml
from alphatune.statistics.scores import Scores
from alphatune.tuning.alphas import resolve_alphas
from alphatune.tuning.journal import Journal, State, open_journal
from alphatune.tuning.latency import LatencyBudget
from alphatune.tuning.tune import TuneResult, check_choices, expected_examples, tune

#: images, and seconds, of the look at what α costs in deployment
DEPLOYMENT_BATCH, DEPLOYMENT_SECONDS = 32, 0.5
#: seconds of the same in an exported graph, which takes longer to make
GRAPH_SECONDS = 2.0


def run_tune(
    settings: TuneSettings,
    progress: ShowProgress = None,
    *,
    plan: bool = False,
    say: Say | None = None,
) -> Tuned | ImagesPlan | ScorePlan | None:
    """Tune a model and write the tuned folder; under torchrun several processes share the work.

    Args:
        say: told how images are prepared, before the work begins.

    Returns:
        What result.json holds; with ``plan`` the plan: a few images are timed, nothing is
        written. None in all but the first process.

    Raises:
        AlphatuneError: in one of its kinds; nothing is left half written.
    """
    with tracked("tune", settings) as tracking:
        document = (
            _tune(settings, tracking, progress, plan, say)
            if settings.score is None
            else run_score(settings, progress, plan=plan, on_start=tracking.begin)
        )
        if isinstance(document, Tuned):
            tracking.tuned(document)
        return document


def _tune(
    settings: TuneSettings, tracking: Tracking, progress: ShowProgress, plan: bool, say: Say | None
) -> Tuned | ImagesPlan | None:
    """``run_tune`` by a metric."""
    check_minutes(settings.checkpoint_minutes)
    check_output(Path(settings.output), overwrite=settings.overwrite, keep=input_paths(settings))
    started = time.time_ns()
    gates = open_gates(settings)  # an error in them should not wait for the model
    latency = latency_budget(settings)
    if settings.runtime == "onnx":
        require_onnx()
    resolve_alphas(settings.alphas)
    check_choices(
        settings.metric,
        settings.accept,
        settings.curve,
        settings.curve_tolerance,
        settings.race_delta,
        settings.granularity,
    )
    meter = as_meter(progress)
    prepared = prepare(settings, meter)
    module = prepared.opened.module
    weights_of(module)  # what cannot be written is refused before the work
    unpatch_(module)  # a tuned folder is tuned anew, from α = 0
    set_temperature_(module, 1.0)
    averages = open_averages(settings, prepared, meter)
    conditions = open_conditions(settings, prepared, meter)
    data = prepared.batches if conditions is None else conditions
    others = (*averages.batches(), *(each.batches for each in (conditions.sources[1:] if conditions else ())))
    counts = label_counts(settings)
    found = survey(module)
    layers = prepared.probe.watched.account(found)
    too_small = _below(settings.min_positions, prepared.probe, layers)
    # Layers that the forward pass leaves out need no consent to be left alone.
    idle = [a.name for a, b in zip(layers, found, strict=False) if a.status != b.status == "unsupported"]
    unwanted = all_but_matching(module, settings.layer_globs)
    exclude = (*settings.exclude, *unwanted, *(glob.escape(name) for name in (*too_small, *idle)))
    with patched(module, exclude=exclude, skip_unknown=settings.skip_unknown) as names:
        if settings.recalibrate is None:  # which is the remedy
            require_health(module)
        alphas = resolve_alphas(settings.alphas, unpatched_alpha(module))
    announce(prepared.announcement, say)
    if plan:
        planned = describe_plan(settings, prepared, names, alphas, **averages.plan())
        return structs.replace(
            planned,
            work=plan_work(settings, prepared, alphas, averages.batches(), exclude, conditions),
            power=plan_power(settings, planned, alphas, conditions),
        )
    known = find_result(settings, prepared, others)
    earlier = known.read() if known else None
    predictor = predictor_of(settings, prepared)
    with joined(prepared.opened.device) as world, ExitStack() as held:
        meter = meter if world.first else Meter()
        everywhere = not world.any(earlier is None)
        if everywhere and known and earlier:
            if world.first:
                remember(settings, known, started)
            return _by_the_first(world, settings, lambda: write_again(settings, known, earlier, gates))
        # From here on no other process writes this output, or the state that a run goes on from.
        output = Path(settings.output)
        claims = world.run_on_all_ranks(
            lambda: held.enter_context(claimed(output)) if world.first else output
        )
        stage = claims[0]
        journal = _journal(settings, prepared, world, others)
        if settings.resume and world.first:
            announce([_resumed(journal)], say)
        if world.first:
            if settings.log_to:
                with suppress(OSError):  # without it a resumed job is another run of its trackers
                    journal.begin()
            tracking.begin(journal.folder / RUN_IDS)
        held.enter_context(journal.kept_when_interrupted())
        meter.begin("averages" if averages.batches() else "")
        if averages.batches():
            meter.later = -(-_expected(settings, len(data)) // world.size)
        replaced = replace_averages_(averages, settings, prepared, predictor, world, meter)
        result = tune(
            module,
            data,
            alphas=settings.alphas,
            metric=settings.metric,
            accept=settings.accept,
            curve=settings.curve,
            curve_tolerance=settings.curve_tolerance,
            race_delta=settings.race_delta,
            granularity=settings.granularity,
            temperature=settings.temperature,
            objective=settings.objective,
            guard=settings.guard,
            rivals=settings.rivals,
            choose=settings.choose,
            label_counts=counts,
            latency=latency,
            batch_stats=settings.batch_stats,
            seed=settings.seed,
            kernel=settings.kernel,
            predictor=predictor,
            exclude=exclude,
            skip_unknown=settings.skip_unknown,
            world=world,
            journal=journal,
            progress=meter,
        )
        if given_up := next(filter(None, world.gather(journal.given_up)), ""):
            result = replace(result, warnings=(*result.warnings, given_up))

        def write() -> Tuned:
            description = describe_model(
                prepared.opened, result.layers, prepared.probe, result.patched, too_small
            )
            measured = describe_averages(averages, replaced, prepared, result)
            return _write(
                stage,
                settings,
                prepared,
                result,
                description,
                measured,
                replaced.before,
                gates,
                world.size,
                meter,
                conditions,
            )

        document = _by_the_first(world, settings, write)
    if known and world.first:
        known.keep(Path(settings.output))
        remember(settings, known, started)
    return document


def _by_the_first(world: World, settings: TuneSettings, write: Callable[[], Tuned]) -> Tuned | None:
    """Have the first process write the tuned folder; when it is there, nobody needs a state to go on from.

    Returns:
        The document, in the first process; None in all others.
    """
    documents: list[Tuned] = []

    def written() -> None:
        if world.first:
            documents.append(write())

    world.run_on_all_ranks(written)
    shutil.rmtree(_journal_folder(settings), ignore_errors=True)  # in each, as they may share no disk
    return documents[0] if documents else None


def label_counts(settings: TuneSettings) -> tuple[int, ...]:
    """The numbers of `label_counts`; raises ConfigurationError for anything else."""
    texts = [text for text in settings.label_counts.replace(" ", "").split(",") if text]
    counts = [digits(text) for text in texts]
    if not all(counts):
        raise ConfigurationError(
            f"`label_counts` takes whole numbers from 1, got {one_line(settings.label_counts, 80)!r}",
            "such as `label_counts=50,200,1000`",
        )
    return tuple(count for count in counts if count)


def latency_budget(settings: TuneSettings) -> LatencyBudget | None:
    """What inference may cost, where layers are to be chosen by it.

    Raises:
        ConfigurationError: a budget below 1, or `runtime=counted` with nothing to count for.
    """
    if settings.chooses_layers:
        return LatencyBudget(settings.latency_budget, settings.runtime, settings.budget_batch)
    if settings.runtime == "counted":
        raise ConfigurationError(
            "`runtime=counted` says what layers cost, and no layers are chosen",
            "`latency_budget=1.05` or `layers=auto` chooses them",
        )
    return None


def _expected(settings: TuneSettings, n: int) -> int:
    """About how many examples the tune itself looks at."""
    return expected_examples(
        n,
        settings.alphas,
        metric=settings.metric,
        curve=settings.curve,
        granularity=settings.granularity,
        temperature=settings.temperature,
        batch_stats=settings.batch_stats,
    )


def _journal_folder(settings: TuneSettings) -> Path:
    return beside(Path(os.path.abspath(settings.output)), "resume")


def _journal(
    settings: TuneSettings, prepared: Prepared, world: World, images: tuple[Batches, ...]
) -> Journal:
    """Where a run keeps its state: beside the output, until that is written.

    Args:
        images: further ones that the result depends on.
    """
    folder = _journal_folder(settings)
    checkpoint = prepared.opened.checkpoint
    job: State = decisive(resolved(settings, prepared))
    job |= {
        "alphatune": VERSION,
        "checkpoint_sha256": checkpoint.sha256 if checkpoint else "",
        "examples": len(prepared.batches),
        # Not the result's key, which is one of content: images may have been others for a while.
        "state": quick_key(settings, prepared, images),  # of model, data and code
    }
    job = world.run_on_all_ranks(lambda: job)[0]  # the others have other devices

    def opened() -> Journal:
        return open_journal(folder, job, resume=settings.resume, minutes=settings.checkpoint_minutes)

    # The first clears the folder that all share, before anybody writes; where they share no disk, each its own.
    turns = (
        world.run_on_all_ranks(lambda: opened() if world.first else None),
        world.run_on_all_ranks(lambda: None if world.first else opened()),
    )
    return next(mine for turn in turns if (mine := turn[world.rank]))


def _resumed(journal: Journal) -> str:
    """What a run goes on from, in a sentence."""
    if count := len(list(journal.folder.glob("*.pt"))):
        parts = "1 part of the work is" if count == 1 else f"{count} parts of the work are"
        return f"continuing from {journal.folder}, where {parts} saved"
    return f"nothing was saved in {journal.folder}: starting from the beginning"


def _write(
    stage: Path,
    settings: TuneSettings,
    prepared: Prepared,
    result: TuneResult,
    model: Model,
    averages: DescribedAverages,
    original: Scores | None,
    gates: tuple[Gate, ...],
    processes: int,
    meter: Meter,
    conditions: Conditions | None,
) -> Tuned:
    """Write the tuned folder, whole or not at all.

    Args:
        original: scores by the moving averages that were stored, where others took their place.
    """
    opened, module = prepared.opened, prepared.opened.module
    remarks = _remarks(result.patched, prepared.probe)
    document = tune_document(
        result,
        command_line=to_command("tune", settings),
        model=model,
        data=describe_data(prepared.batches, prepared.skipped),
        env=describe_env(settings, prepared).extended(
            TuneEnvironment,
            kernel=result.kernel,
            kernel_build_seconds=result.kernel_build_seconds,
            processes=processes,
        ),
        calibration=averages.calibration,
        recalibration=averages.recalibration,
        shift=None if conditions is None else describe_shift(result, conditions),
        warnings=(*prepared.warnings, *averages.warnings, *result.warnings, *remarks),
    )
    if result.alpha != result.baseline_alpha:
        meter.phase("timing inference")
        patch_(module, result.alpha, exclude=all_but(module, result.patched))
        cost, notes = _deployment(settings, prepared, result)
        document = structs.replace(document, deployment=cost, warnings=(*document.warnings, *notes))
    stored = _stored(settings, prepared, result, original, conditions)
    document = structs.replace(document, gates=judge(gates, document, stored))
    meter.phase("writing the report")
    result.candidate.apply_(module)  # α is in place
    set_temperature_(module, result.temperature)
    output, keep = Path(settings.output), input_paths(settings)
    with filling(stage, output, overwrite=settings.overwrite, keep=keep):
        write_model(module, stage, source=opened.source, preprocessing=opened.preprocessing)
        (stage / "run.toml").write_text(to_toml(resolved(settings, prepared)), encoding="utf-8")
        return write_reports(stage, document, stored)


def _stored(
    settings: TuneSettings,
    prepared: Prepared,
    result: TuneResult,
    original: Scores | None,
    conditions: Conditions | None,
) -> StoredScores:
    """What a report is drawn from: scores before and after, and pictures of what flipped."""
    swept, best = result.sweep, result.decision.best[result.metric]
    runs = {"baseline": swept.baseline, "chosen": result.chosen_scores}
    if best not in (result.baseline_alpha, result.alpha) and best in swept.alphas:
        runs["best"] = swept.scores[swept.alphas.index(best)]
    if original is not None:
        runs[ORIGINAL] = original
    after = result.chosen_scores if result.changes_model else runs.get("best")
    thumbnails: tuple[Thumbnail, ...] = ()
    if after is not None and settings.thumbnails:
        data = prepared.batches if conditions is None else conditions
        thumbnails = make_thumbnails(data, swept.baseline, after, settings.thumbnails)
    examples = () if conditions is None else make_shift_examples(conditions)
    return StoredScores(runs, prepared.batches.examples.classes, thumbnails, examples)


def _deployment(
    settings: TuneSettings, prepared: Prepared, result: TuneResult
) -> tuple[Deployment | None, tuple[str, ...]]:
    """A quick look at what the chosen α costs at inference, or why there is none; ``alphatune bench`` looks closer."""
    opened = prepared.opened
    size = min(prepared.batches.batch_size, DEPLOYMENT_BATCH)
    input_size = opened.preprocessing.input_size
    try:
        if settings.runtime == "onnx":
            (cost,) = graph_costs(
                opened.module, input_size, [size], alpha=result.alpha, seconds=GRAPH_SECONDS
            )
            return cost_summary(cost), ()
        generator = torch.Generator().manual_seed(settings.seed)
        images = torch.randn(size, *input_size, generator=generator).to(opened.device)
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        cost = deployment_cost(
            opened.module,
            images,
            alpha=result.alpha,
            budget_seconds=DEPLOYMENT_SECONDS,
            kernels=(result.kernel,),
            dtype=DTYPES[settings.dtype],
        )
    except AlphatuneError as error:  # a model that cannot be copied, say: the result stands without it
        return None, (f"what α costs at inference was not measured: {error.message}",)
    return cost_summary(cost), ()


def _below(positions: int, seen: Probe, layers: tuple[NormLayer, ...]) -> set[str]:
    """Patchable layers that are known to see fewer positions an example than asked for."""
    names = {layer.name for layer in layers if layer.status == "patchable"}
    small = {n for n in names if n in seen.layers and seen.layers[n].positions < positions}
    if small == names and names:
        raise UnsupportedModelError(
            f"every norm layer sees fewer than {positions} positions (`min_positions`)"
        )
    return small


def _remarks(names: tuple[str, ...], seen: Probe) -> list[str]:
    """One warning for each unusual way in which example-weighted layers see the example."""
    counts = Counter(seen.layers[n].remark for n in names if n in seen.layers and seen.layers[n].remark)
    return [
        f"{count} example-weighted layer(s) see {remark}; `min_positions=2` leaves layers of one position alone"
        for remark, count in counts.items()
    ]
