"""Tune a model: from names of things to a tuned folder."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from alphatune.errors import ConfigurationError, UnsupportedModelError
from alphatune.evaluation import Progress
from alphatune.jobs.describe import describe_data, describe_env, describe_model, describe_plan
from alphatune.jobs.opening import DTYPES, prepare
from alphatune.jobs.settings import TuneSettings, to_toml
from alphatune.models.bundle import check_output, staged, write_model
from alphatune.models.health import require_health
from alphatune.models.probe import Probe
from alphatune.norms.patching import patch_, unpatch_
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
    inputs = [p for p in (settings.model, settings.checkpoint, settings.data, settings.class_map) if p]
    check_output(output, overwrite=settings.overwrite, keep=inputs)
    alphas = resolve_alphas(settings.alphas)
    if settings.metric not in METRICS:
        raise ConfigurationError(f"unknown metric {settings.metric!r}", f"one of: {', '.join(METRICS)}")
    prepared = prepare(settings)
    opened, module = prepared.opened, prepared.opened.module
    unpatch_(module)  # a tuned folder is tuned anew, from α = 0
    layers = survey(module)
    exclude = {name for pattern in settings.exclude for name in _names_like(pattern, layers)}
    too_small = _below(settings.min_positions, prepared.probe, layers)
    require_health(module)
    if dry_run:
        return describe_plan(settings, prepared, layers, exclude | too_small, alphas)
    result = tune(
        module,
        prepared.batches,
        alphas=alphas,
        metric=settings.metric,
        accept=settings.accept,
        seed=settings.seed,
        dtype=DTYPES[settings.dtype],
        exclude=exclude | too_small,
        skip_unknown=settings.skip_unknown,
        progress=progress,
    )
    document = tune_document(
        result,
        model=describe_model(opened, layers, prepared.probe, result.patched, exclude, too_small, settings),
        data=describe_data(prepared.batches),
        env=describe_env(settings, prepared),
    )
    document["warnings"] = [*prepared.warnings, *document["warnings"]]
    if result.alpha > 0:
        patch_(module, result.alpha, exclude=exclude | too_small, skip_unknown=True)
    with staged(output, overwrite=settings.overwrite, keep=inputs) as stage:
        write_model(module, stage, source=opened.source, preprocessing=opened.preprocessing)
        (stage / "run.toml").write_text(to_toml(settings), encoding="utf-8")
        return write_reports(stage, document)


def _names_like(pattern: str, layers: tuple[NormLayer, ...]) -> list[str]:
    names = [layer.name for layer in layers if fnmatchcase(layer.name, pattern)]
    if not names:
        raise ConfigurationError(
            f"--exclude {pattern!r} matches no norm layer", "`alphatune inspect` lists the names"
        )
    return names


def _below(positions: int, seen: Probe, layers: tuple[NormLayer, ...]) -> set[str]:
    """Patchable layers that see fewer positions an example than asked for, or none at all."""
    names = {layer.name for layer in layers if layer.status == "patchable"}
    small = {n for n in names if n in seen.layers and seen.layers[n].positions < positions}
    if small == names and names:
        raise UnsupportedModelError(
            f"every norm layer sees fewer than {positions} positions (--min-positions)"
        )
    return small
