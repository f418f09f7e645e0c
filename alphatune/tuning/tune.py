"""The library's main job: sweep a model over α, choose, and say whether it pays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from alphatune.data.loading import Batches, loader_batches
from alphatune.errors import ConfigurationError
from alphatune.evaluation import Metrics, Progress, summarise
from alphatune.models.health import examine, require_health
from alphatune.norms.patching import patched, unpatched_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.tuning.alphas import resolve_alphas
from alphatune.tuning.selection import (
    METRICS,
    Accept,
    Decision,
    Metric,
    paired_difference,
    select,
)
from alphatune.tuning.sweep import Sweep, sweep

Interval = tuple[float, float]


@dataclass(frozen=True)
class CurvePoint:
    """Metrics at one α, with the paired interval of each mean's difference to α = 0."""

    alpha: float
    measured: bool
    metrics: Metrics
    ci: dict[str, Interval]


@dataclass(frozen=True)
class TuneResult:
    """Everything a tune found out; ``alpha`` is the one to deploy."""

    metric: Metric
    accept: Accept
    seed: int
    curve: tuple[CurvePoint, ...]
    decision: Decision
    sweep: Sweep
    layers: tuple[NormLayer, ...]
    patched: tuple[str, ...]
    num_classes_seen: int
    warnings: tuple[str, ...]

    @property
    def alpha(self) -> float:
        return self.decision.alpha

    @property
    def baseline_alpha(self) -> float:
        """The α of the unpatched model: 0, or 1 where all layers are GroupNorm."""
        return self.sweep.baseline_alpha

    @property
    def baseline(self) -> Metrics:
        return self.curve[0].metrics

    @property
    def chosen(self) -> Metrics:
        return self.at(self.alpha)

    def at(self, alpha: float) -> Metrics:
        """Metrics measured at one of the α of the curve."""
        return next(p.metrics for p in self.curve if p.alpha == alpha)

    def __str__(self) -> str:
        before, after = self.baseline, self.chosen
        return (
            f"alpha = {self.alpha:g}: {self.decision.reason}; top-1 {before.top1:.4f} -> {after.top1:.4f}, "
            f"loss {before.loss:.4f} -> {after.loss:.4f} on {before.n} examples"
        )


def tune(
    model: nn.Module,
    data: Batches | Iterable[Any],
    *,
    alphas: str | Sequence[float] = "auto",
    metric: Metric = "top1",
    accept: Accept = "significant",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
    progress: Progress | None = None,
) -> TuneResult:
    """Sweep α over labelled data, choose one, and decide whether it pays.

    The model is patched for the time of the call and comes back as it was;
    ``patch_(model, result.alpha)`` makes the choice take effect.

    Args:
        model: a classifier with BatchNorm layers, on the device to run on.
        data: any iterable of (inputs, class indices) batches, e.g. a DataLoader
            that does not shuffle or augment.
        alphas: ``"auto"``, ``"0,0.01,0.02"``, ``"0:0.3:31"`` or numbers; the unpatched model's (0, but
            1 for GroupNorm) is always added.
        metric: what to choose by: top1, top5, loss or ece.
        accept: ``"significant"`` keeps α = 0 unless the gain is; ``"best"`` takes the optimum.
        dtype: float32, or float16/bfloat16 for autocast.
        exclude, skip_unknown: as for ``patch_``.
        progress: called with (examples done, examples in all or None).

    Raises:
        UnsupportedModelError: no BatchNorm layer, or one of unknown kind.
        NumericError: impossible moving averages, or an output that is not finite.
        ConfigurationError: α outside [0, 1], an unknown metric, labels that do not fit.
        DataError: an unreadable image, or no data.
    """
    if metric not in METRICS:
        raise ConfigurationError(f"unknown metric {metric!r}", f"one of: {', '.join(METRICS)}")
    if accept not in ("significant", "best"):
        raise ConfigurationError(f"unknown accept {accept!r}", "one of: significant, best")
    resolve_alphas(alphas)  # an error in them should not wait for the model
    if isinstance(data, Batches):
        batches: Iterable[Any] = data
        total: int | None = len(data)
    else:
        tensor = next(iter((*model.parameters(), *model.buffers())), torch.zeros(()))
        batches = loader_batches(data, tensor.device)
        total = _length(data)
    layers = survey(model)
    with patched(model, exclude=exclude, skip_unknown=skip_unknown) as names:
        require_health(model)
        values = resolve_alphas(alphas, unpatched_alpha(model))
        swept = sweep(model, batches, values, dtype=dtype, total=total, progress=progress)
    curve = tuple(
        CurvePoint(
            alpha=alpha,
            measured=True,
            metrics=summarise(scores),
            ci={m: paired_difference(scores, swept.baseline, m) for m in METRICS if m != "ece"}
            if len(scores) > 1
            else {},
        )
        for alpha, scores in zip(swept.alphas, swept.scores, strict=True)
    )
    decision = select(swept, metric, accept=accept, seed=seed)
    classes = len(set(swept.baseline.targets.tolist()))
    result = TuneResult(
        metric=metric,
        accept=accept,
        seed=seed,
        curve=curve,
        decision=decision,
        sweep=swept,
        layers=layers,
        patched=names,
        num_classes_seen=classes,
        warnings=(),
    )
    return replace(result, warnings=tuple(_warnings(result, model)))


def _length(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def _warnings(result: TuneResult, model: nn.Module) -> list[str]:
    """What a careful colleague would point out about these numbers."""
    notes = []
    top1 = {point.alpha: point.metrics.top1 for point in result.curve}
    base = result.baseline_alpha
    plain, changed = top1[base], result.alpha != base
    others = "alpha > 0" if base == 0 else f"an alpha other than {base:g}"
    chance = 1 / max(2, result.num_classes_seen)
    if plain < chance + 0.1 * (1 - chance):
        notes.append(
            f"top-1 at alpha = {base:g} is {plain:.4f}, close to chance ({chance:.4f}): check the order of the "
            "labels (--class-map) and the preprocessing (--mean, --std, --input-size) before trusting any gain"
        )
    if max(top1.values()) - plain > 0.02:
        notes.append(
            f"{others} raises top-1 by {100 * (max(top1.values()) - plain):.1f} points: so much usually means "
            "that alpha makes up for preprocessing other than the model was trained with; check "
            "--mean, --std, --crop-pct and --interpolation first"
        )
    before, after = result.baseline, result.chosen
    if changed and result.metric != "top1" and after.top1 < before.top1:
        notes.append(
            f"the chosen alpha lowers top-1 by {100 * (before.top1 - after.top1):.2f} points; by top-1 the best "
            f"alpha is {result.decision.best['top1']:g}"
        )
    if changed and result.metric == "top1" and after.loss > before.loss:
        notes.append(f"the chosen alpha raises the loss by {after.loss - before.loss:.4f} nats")
    end = result.curve[-1].alpha  # the farthest from the unpatched model
    if result.decision.best[result.metric] == end != base and end != 1 - base:
        extreme = "largest" if base == 0 else "smallest"
        notes.append(
            f"the best alpha is the {extreme} one tried ({end:g}): try --alphas {end:g}:{1 - base:g}:8 as well"
        )
    if result.decision.gain is None:
        notes.append(result.decision.reason)
    remarks = [h for h in examine(model) if h.remark]
    if remarks:
        notes.append(f"{len(remarks)} norm layer(s) look odd, e.g. {remarks[0].layer}: {remarks[0].remark}")
    unknown = [layer for layer in result.layers if layer.status == "unsupported"]
    if unknown:
        notes.append(
            f"{len(unknown)} norm layer(s) were left alone, e.g. {unknown[0].name}: {unknown[0].reason}"
        )
    return notes
