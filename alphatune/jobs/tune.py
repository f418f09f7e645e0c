"""Tune a model: from names of things to a tuned folder."""

from __future__ import annotations

import glob
from collections import Counter
from pathlib import Path
from typing import Any

from alphatune.errors import ConfigurationError, UnsupportedModelError
from alphatune.evaluation import Progress
from alphatune.jobs.describe import describe_data, describe_env, describe_model, describe_plan
from alphatune.jobs.opening import DTYPES, prepare, resolved
from alphatune.jobs.settings import TuneSettings, input_paths, to_toml
from alphatune.models.bundle import write_model
from alphatune.models.health import require_health
from alphatune.models.output import check_output, staged
from alphatune.models.probe import Probe
from alphatune.norms.patching import patch_, patched, unpatch_, unpatched_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.reports.folder import write_reports
from alphatune.reports.result import tune_document
from alphatune.tuning.alphas import resolve_alphas
from alphatune.tuning.selection import METRICS
from alphatune.tuning.tune import tune


def run_tune(
    settings: TuneSettings, progress: Progress | None = None, *, dry_run: bool = False
) -> dict[str, Any]:
    """Tune a model and write the tuned folder.

    Returns:
        The document that result.json holds; with ``dry_run`` the plan, and nothing
        is run on the data or written.

    Raises:
        AlphatuneError: in one of its kinds; nothing is left half written.
    """
    output = Path(settings.output)
    inputs = input_paths(settings)
    check_output(output, overwrite=settings.overwrite, keep=inputs)
    resolve_alphas(settings.alphas)  # an error in them should not wait for the model
    if settings.metric not in METRICS:
        raise ConfigurationError(f"unknown metric {settings.metric!r}", f"one of: {', '.join(METRICS)}")
    prepared = prepare(settings)
    opened, module = prepared.opened, prepared.opened.module
    unpatch_(module)  # a tuned folder is tuned anew, from α = 0
    layers = survey(module)
    too_small = _below(settings.min_positions, prepared.probe, layers)
    exclude = (*settings.exclude, *(glob.escape(name) for name in too_small))
    with patched(module, exclude=exclude, skip_unknown=settings.skip_unknown) as names:
        require_health(module)
        alphas = resolve_alphas(settings.alphas, unpatched_alpha(module))
    if dry_run:
        return describe_plan(settings, prepared, layers, names, alphas)
    result = tune(
        module,
        prepared.batches,
        alphas=settings.alphas,
        metric=settings.metric,
        accept=settings.accept,
        seed=settings.seed,
        dtype=DTYPES[settings.dtype],
        exclude=exclude,
        skip_unknown=settings.skip_unknown,
        progress=progress,
    )
    document = tune_document(
        result,
        model=describe_model(opened, layers, prepared.probe, names, too_small),
        data=describe_data(prepared.batches),
        env=describe_env(settings, prepared),
    )
    document["warnings"] = [*prepared.warnings, *document["warnings"], *_remarks(names, prepared.probe)]
    if result.alpha != result.baseline_alpha:
        patch_(module, result.alpha, exclude=exclude, skip_unknown=settings.skip_unknown)
    with staged(output, overwrite=settings.overwrite, keep=inputs) as stage:
        write_model(module, stage, source=opened.source, preprocessing=opened.preprocessing)
        (stage / "run.toml").write_text(to_toml(resolved(settings, prepared)), encoding="utf-8")
        return write_reports(stage, document)


def _below(positions: int, seen: Probe, layers: tuple[NormLayer, ...]) -> set[str]:
    """Patchable layers that are known to see fewer positions an example than asked for."""
    names = {layer.name for layer in layers if layer.status == "patchable"}
    small = {n for n in names if n in seen.layers and seen.layers[n].positions < positions}
    if small == names and names:
        raise UnsupportedModelError(
            f"every norm layer sees fewer than {positions} positions (--min-positions)"
        )
    return small


def _remarks(names: tuple[str, ...], seen: Probe) -> list[str]:
    """One warning for each unusual way in which example-weighted layers see the example."""
    counts = Counter(seen.layers[n].remark for n in names if n in seen.layers and seen.layers[n].remark)
    return [
        f"{count} example-weighted layer(s) see {remark}; --min-positions 2 leaves layers of one position alone"
        for remark, count in counts.items()
    ]
