"""What a careful colleague would point out about any tune, whatever it scores by."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from alphatune.models.running_stats_check import examine, untouched
from alphatune.norms.survey import NormLayer

#: layers that a remark names
NAMED = 5


def remark_on_end(best: float, end: float, baseline: float) -> list[str]:
    """A remark if the best α is the farthest from the unpatched model's that was tried, and others are left."""
    if not best == end != baseline or end == 1 - baseline:
        return []
    extreme = "largest" if baseline == 0 else "smallest"
    return [
        f"the best α is the {extreme} one tried ({end:g}): try `alphas={end:g}:{1 - baseline:g}:8` as well"
    ]


def remark_on_untrained(model: nn.Module) -> list[str]:
    """A remark if no moving average was ever updated: no figure means anything then."""
    layers = untouched(model)
    if not layers:
        return []
    return [
        f"the running statistics of all {layers} norm layers are as before training (mean 0, variance 1): the weights "
        "are random, or the statistics were folded into them; tuning α makes no sense here"
    ]


def remark_on_layers(model: nn.Module, layers: Sequence[NormLayer], patched: int) -> list[str]:
    """Remarks on moving averages that look odd, and on layers that were left alone or do not act."""
    notes = remark_on_untrained(model)
    odd = [health for health in examine(model) if health.remark]
    if odd and not notes:
        notes.append(f"{len(odd)} norm layer(s) look odd, e.g. {odd[0].layer}: {odd[0].remark}")
    unknown = [layer for layer in layers if layer.status == "unsupported"]
    if unknown:
        notes.append(
            f"{len(unknown)} norm layer(s) were left alone, e.g. {unknown[0].name}: {unknown[0].reason}"
        )
    return notes + remark_on_inactive(layers, patched)


def remark_on_inactive(layers: Sequence[NormLayer], patched: int) -> list[str]:
    """A remark on which layers do not act, if some do not, and how many are example-weighted."""
    inactive = [layer for layer in layers if layer.status == "inactive"]
    if not inactive:
        return []
    names = ", ".join(layer.name or "(root)" for layer in inactive[:NAMED])
    more = f" and {len(inactive) - NAMED} more" if len(inactive) > NAMED else ""
    return [
        f"{patched} of {len(layers)} norm layers are example-weighted; not acting: {names}{more} "
        f"({inactive[0].reason})"
    ]
