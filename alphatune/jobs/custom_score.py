"""Tune by a score of the user's own: from names of things to a tuned folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from msgspec import structs

from alphatune.core.errors import ConfigurationError
from alphatune.core.peers import place_of_process
from alphatune.core.progress import ShowProgress, as_meter
from alphatune.jobs.custom_code import find_score, open_loader
from alphatune.jobs.describe import describe_model, describe_source
from alphatune.jobs.gates import Gate, judge, open_gates
from alphatune.jobs.opening import DTYPES, OpenedModel, open_model, resolved_paths
from alphatune.jobs.plan import plan_score_power
from alphatune.kernels.dispatch import resolve_kernel
from alphatune.models.bundle import write_model
from alphatune.models.output import check_output, claimed, filling
from alphatune.models.probe import Probe
from alphatune.models.running_stats_check import require_health
from alphatune.models.temperature import set_temperature_
from alphatune.models.weights import weights_of
from alphatune.norms.patching import all_but, all_but_matching, patch_, patched, unpatch_, unpatched_alpha
from alphatune.norms.survey import survey
from alphatune.reports.custom_score import score_document
from alphatune.reports.folder import write_reports
from alphatune.reports.result import environment
from alphatune.results.data import ScoredData
from alphatune.results.environment import ScoreEnvironment, SeededEnvironment
from alphatune.results.model import Model, PlannedModel
from alphatune.results.plan import PlannedData, PlannedScore, ScorePlan
from alphatune.results.tune import ScoreTuneDocument
from alphatune.settings import TuneSettings
from alphatune.settings.option import check_applies
from alphatune.settings.saved import input_paths, to_command, to_toml
from alphatune.tuning.alphas import resolve_alphas
from alphatune.tuning.custom_score import ScoreResult, tune_score


def run_score(
    settings: TuneSettings,
    progress: ShowProgress = None,
    *,
    plan: bool = False,
    on_start: Callable[[], None] = lambda: None,
) -> ScoreTuneDocument | ScorePlan:
    """Tune a model by the score that the settings name and write the tuned folder.

    Args:
        on_start: called when everything is checked, and work starts.

    Returns:
        What result.json holds; with ``plan`` the plan: model, loader
        and score are opened, and nothing is run or written.

    Raises:
        AlphatuneError: in one of its kinds; nothing is left half written.
    """
    check_settings(settings)
    check_output(Path(settings.output), overwrite=settings.overwrite, keep=input_paths(settings))
    gates = open_gates(settings)
    resolve_alphas(settings.alphas)  # an error in them should not wait for the model
    opened = open_model(settings)
    if settings.kernel != "auto":
        resolve_kernel(settings.kernel, opened.device)
    score, loader = find_score(settings.score or ""), open_loader(settings.data)
    module = opened.module
    weights_of(module)  # what cannot be written is refused before the work
    unpatch_(module)  # a tuned folder is tuned anew, from α = 0
    set_temperature_(module, 1.0)
    if plan:
        return _plan(settings, opened)
    meter = as_meter(progress)
    with claimed(settings.output) as stage:
        on_start()
        with contextlib.redirect_stdout(sys.stderr):  # the user's own code may print
            result = tune_score(
                module,
                loader,
                score,
                alphas=settings.alphas,
                accept=settings.accept,
                seed=settings.seed,
                dtype=DTYPES[settings.dtype],
                kernel=settings.kernel,
                exclude=(*settings.exclude, *all_but_matching(module, settings.layer_globs)),
                skip_unknown=settings.skip_unknown,
                progress=meter,
            )
        meter.phase("writing the report")
        model = describe_model(opened, result.layers, Probe(0, {}), result.patched)
        return _write(stage, settings, opened, result, gates, model)


def check_settings(settings: TuneSettings) -> None:
    """Refuse what cannot be honoured: options about images in classes, and several processes.

    Raises:
        ConfigurationError: names the option.
    """
    check_applies(
        settings,
        frozenset(),
        "`score`",
        "the loader prepares the data, and the score takes the place of the metric",
    )
    if settings.chooses_layers:
        raise ConfigurationError(
            "`layers=auto` does not go with `score`", "name the layers, such as 'layer4.*'"
        )
    if settings.dtype not in DTYPES:
        raise ConfigurationError(f"unknown dtype {settings.dtype!r}", f"one of: {', '.join(DTYPES)}")
    if place_of_process() is not None:
        raise ConfigurationError(
            "`score` runs in one process: a loader of your own cannot be shared out", "leave out torchrun"
        )


def _plan(settings: TuneSettings, opened: OpenedModel) -> ScorePlan:
    module = opened.module
    exclude = (*settings.exclude, *all_but_matching(module, settings.layer_globs))
    with patched(module, exclude=exclude, skip_unknown=settings.skip_unknown) as names:
        require_health(module)
        alphas = resolve_alphas(settings.alphas, unpatched_alpha(module))
    env = environment(opened.device, DTYPES[settings.dtype])
    model = describe_source(opened).extended(
        PlannedModel, norm_layers=len(survey(module)), patched=tuple(names)
    )
    return ScorePlan(
        model=model,
        data=PlannedData(source=settings.data),
        env=env.extended(SeededEnvironment, seed=settings.seed),
        score=PlannedScore(source=settings.score or ""),
        alphas=tuple(alphas),
        settings=asdict(settings),
        warnings=tuple(opened.warnings),
        power=plan_score_power(settings, model),
    )


def _write(
    stage: Path,
    settings: TuneSettings,
    opened: OpenedModel,
    result: ScoreResult,
    gates: tuple[Gate, ...],
    model: Model,
) -> ScoreTuneDocument:
    """Write the tuned folder, whole or not at all."""
    module, written = opened.module, _resolved(settings, opened)
    document = score_document(
        result,
        command_line=to_command("tune", settings),
        model=model,
        data=ScoredData(source=written.data, n=len(result)),
        env=environment(opened.device, DTYPES[settings.dtype]).extended(
            ScoreEnvironment,
            batch_size=result.batch_size,
            kernel=result.kernel,
            kernel_build_seconds=result.kernel_build_seconds,
            processes=1,
            seed=settings.seed,
        ),
        source=written.score or "",
        warnings=(*opened.warnings, *result.warnings),
    )
    document = structs.replace(document, gates=judge(gates, document))
    if result.alpha != result.baseline_alpha:
        patch_(module, result.alpha, exclude=all_but(module, result.patched))
    output, keep = Path(settings.output), input_paths(settings)
    with filling(stage, output, overwrite=settings.overwrite, keep=keep):
        # Not what was assumed for lack of better: nothing here prepared an image.
        write_model(module, stage, source=opened.source, preprocessing=opened.source.preprocessing)
        (stage / "run.toml").write_text(to_toml(written), encoding="utf-8")
        return write_reports(stage, document)


def _resolved(settings: TuneSettings, opened: OpenedModel) -> TuneSettings:
    return replace(resolved_paths(settings), device=str(opened.device))
