"""Evaluate a model or a tuned folder."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from alphatune.core.hashing import sha256
from alphatune.core.progress import ShowProgress, as_meter
from alphatune.core.version import VERSION
from alphatune.data.conditions import Conditions
from alphatune.data.label_order import check_label_order, near_chance
from alphatune.data.loading import Batches
from alphatune.evaluation.predictor import evaluate
from alphatune.jobs.conditions import corruption_error, describe_conditions, open_conditions
from alphatune.jobs.describe import describe_data, describe_env, describe_model, describe_plan, model_alpha
from alphatune.jobs.opening import predictor_of, prepare
from alphatune.jobs.preparation import Say, announce
from alphatune.kernels.dispatch import COMPILED_FROM, resolve_kernel, use_kernel
from alphatune.models.running_stats_check import require_health
from alphatune.models.temperature import get_temperature
from alphatune.norms.patching import get_alpha, patch_, set_alpha_
from alphatune.norms.survey import survey
from alphatune.norms.watching import leave_inactive
from alphatune.reports.evaluation_scores import check_scores_file, write_evaluation
from alphatune.results.document import Artifact
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.model import EvaluatedModel
from alphatune.results.plan import ImagesPlan
from alphatune.settings import EvaluateSettings
from alphatune.statistics.scores import summarise
from alphatune.tuning.remarks import remark_on_inactive, remark_on_untrained


def run_evaluate(
    settings: EvaluateSettings,
    progress: ShowProgress = None,
    *,
    scores: str | None = None,
    overwrite: bool = False,
    plan: bool = False,
    say: Say | None = None,
) -> EvaluateDocument | ImagesPlan:
    """Evaluate a model or tuned folder: same reader, scores and metrics as ``run_tune``.

    Args:
        scores: file for the scores of every example, which ``run_compare`` pairs.
        overwrite: replace such a file.
        say: told how images are prepared, before the work begins.
    """
    kept = None if scores is None else Path(scores)
    if kept is not None:
        check_scores_file(kept, overwrite=overwrite)
    meter = as_meter(progress)
    prepared = prepare(settings, meter)
    conditions = open_conditions(settings, prepared, meter)
    meter.begin("evaluating")
    module = prepared.opened.module
    if settings.alpha is not None:
        if get_alpha(module):  # a tuned folder says which of its layers are example-weighted
            set_alpha_(module, settings.alpha)
        else:
            patch_(module, settings.alpha, skip_unknown=settings.skip_unknown)
    require_health(module)
    announce(prepared.announcement, say)
    if plan:
        return describe_plan(settings, prepared, tuple(get_alpha(module)), ())
    layers = prepared.probe.watched.account(survey(module))
    weighted = tuple(get_alpha(module))
    if weighted:
        leave_inactive(layers)  # raises where no layer acts
    patched = tuple(la.name for la in layers if la.name in weighted and la.status != "inactive")
    data: Batches | Conditions = conditions or prepared.batches
    worth = len(data) >= COMPILED_FROM
    with use_kernel(resolve_kernel(settings.kernel, prepared.opened.device, worth_compiling=worth)):
        measured = evaluate(
            module,
            data,
            predictor=predictor_of(settings, prepared),
            total=len(data),
            progress=meter,
        )
    examples = prepared.batches.examples
    clean = measured.take(slice(len(prepared.batches)))  # the first of the conditions
    summary = summarise(clean)
    remarks = check_label_order(examples, clean.targets, clean.predicted)
    remarks += remark_on_untrained(module) or near_chance(clean.targets, summary.top1)
    described = describe_conditions(conditions, measured) if conditions else ()
    document = EvaluateDocument(
        alphatune=VERSION,
        model=describe_model(prepared.opened, layers, prepared.probe, patched).extended(
            EvaluatedModel, alpha=model_alpha(module), temperature=get_temperature(module)
        ),
        data=describe_data(prepared.batches, prepared.skipped),
        env=describe_env(settings, prepared),
        metrics=summary,
        conditions=described,
        mean_corruption_error=corruption_error(described),
        warnings=(
            *prepared.warnings,
            *(conditions.warnings if conditions else ()),
            *remarks,
            *(remark_on_inactive(layers, len(patched)) if weighted else ()),
        ),
    )
    if kept is not None:
        check_scores_file(kept, overwrite=overwrite)  # it may have appeared meanwhile
        write_evaluation(kept, measured, document, examples.classes)
        document = replace(document, scores=Artifact(path=str(kept), sha256=sha256(kept)))
    return document
