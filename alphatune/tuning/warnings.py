"""What a careful colleague would point out about the numbers of a tune by a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from alphatune.core.metrics import INFO
from alphatune.data.label_order import near_chance
from alphatune.models.running_stats_check import untouched
from alphatune.tuning.remarks import remark_on_end, remark_on_layers

if TYPE_CHECKING:  # which imports this
    from alphatune.tuning.tune import TuneResult


def _remark_on_calibration(result: TuneResult) -> list[str]:
    """How much of a gain in loss or ECE a temperature would give, too, as far as is known."""
    metric, refinement = result.metric, result.refinement
    name = INFO[metric].name
    if refinement is None:
        return [
            f"a gain in {name} can be calibration, which dividing the logits by one number gives for free: "
            "`temperature` tells what α is worth beyond it"
        ]
    plain, chosen = (getattr(level.calibrated, metric) for level in (refinement.levels[0], refinement.level))
    if refinement.joint or chosen < plain:
        return []
    return [
        f"all of the gain in {name} is calibration: with a temperature each the unpatched model has {plain:.4f} and "
        f"the chosen α {chosen:.4f}; `temperature` takes that into account"
    ]


def warnings_of(result: TuneResult, model: nn.Module) -> list[str]:
    """What a careful colleague would point out about these numbers."""
    notes = remark_on_layers(model, result.layers, len(result.patched))
    top1 = {point.alpha: point.metrics.top1 for point in result.curve}
    base = result.baseline_alpha
    plain, changed = top1[base], result.alpha != base
    others = "α > 0" if base == 0 else f"an α other than {base:g}"
    if not untouched(model):  # which is the reason then
        notes += near_chance(result.sweep.baseline.targets, plain, f"at α = {base:g}")
    if max(top1.values()) - plain > 0.02 and not result.conditions:
        notes.append(
            f"{others} raises top-1 by about {100 * (max(top1.values()) - plain):.1f} points: so much usually means "
            "that α makes up for preprocessing other than the model was trained with; check "
            "`mean`, `std`, `crop_pct` and `interpolation` first"
        )
    before, after = result.baseline, result.chosen
    if changed and result.metric != "top1" and after.top1 < before.top1:
        best = result.decision.best.get("top1")
        better = "" if best is None else f"; by top-1 the best α is {best:g}"
        notes.append(f"the chosen α lowers top-1 by {100 * (before.top1 - after.top1):.2f} points{better}")
    if changed and result.metric == "top1" and after.loss > before.loss:
        notes.append(f"the chosen α raises the loss by {after.loss - before.loss:.4f} nats")
    if changed and INFO[result.metric].sees_confidence:
        notes += _remark_on_calibration(result)
    end = result.curve[-1].alpha  # the farthest from the unpatched model
    notes += remark_on_end(result.decision.candidate, end, base)
    if result.decision.gain is None:
        notes.append(result.decision.reason)
    return notes
