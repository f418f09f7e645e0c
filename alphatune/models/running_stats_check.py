"""Are a norm layer's moving averages fit to be mixed with?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from alphatune.core.errors import NumericError
from alphatune.norms.survey import moving_averages


@dataclass(frozen=True)
class Health:
    """What the moving averages of one layer look like."""

    layer: str
    problem: str  # "" | impossible values: not finite, negative variance, all zero
    remark: str  # "" | suspicious, but possible


def examine(model: nn.Module) -> tuple[Health, ...]:
    """Look at the moving averages of every layer that has them.

    A variance that is negative (arithmetic on averaged weights makes them) or
    a value that is NaN (training with one value per channel does) is a
    problem: inference is undefined. So are mean 0 and variance 0 in every
    channel, which sums over no example leave. Mean 0 and variance 1 in every
    channel is a remark: the layer was never trained, or its statistics were
    folded into its weights, and α > 0 would mix with numbers that mean nothing.
    """
    reports = []
    for name, module in model.named_modules():
        if (averages := moving_averages(module)) is not None:
            reports.append(Health(name, _problem(*averages), _remark(*averages)))
    return tuple(reports)


def untouched(model: nn.Module) -> int:
    """How many layers keep moving averages, where all are as they were made, mean 0 and variance 1; else 0."""
    averages = [found for module in model.modules() if (found := moving_averages(module)) is not None]
    return len(averages) if all(_is_initial(*each) for each in averages) else 0


def require_health(model: nn.Module) -> None:
    """Raise NumericError, naming the layer, if any moving average is impossible."""
    for health in examine(model):
        if health.problem:
            raise NumericError(
                f"layer {health.layer or '(root)'}: {health.problem}",
                "recompute the moving averages, or use another checkpoint",
            )


def _problem(mean: torch.Tensor, variance: torch.Tensor) -> str:
    for what, values in (("running_mean", mean), ("running_var", variance)):
        if bad := int((~torch.isfinite(values)).sum()):
            return f"{what} is NaN or infinite in {bad} of {values.numel()} channels"
    if bad := int((variance < 0).sum()):
        return f"running_var is negative in {bad} of {variance.numel()} channels (lowest {variance.min().item():.3g})"
    if bool((mean == 0).all()) and bool((variance == 0).all()):
        return "running statistics are all zero: computed over no examples"
    return ""


def _remark(mean: torch.Tensor, variance: torch.Tensor) -> str:
    if _is_initial(mean, variance):
        return "mean 0 and variance 1 in all channels: never trained, or folded into the weights"
    if dead := int((variance < 1e-12).sum()):
        return f"running_var is zero in {dead} of {variance.numel()} channels: they were constant in training"
    return ""


def _is_initial(mean: torch.Tensor, variance: torch.Tensor) -> bool:
    return bool((mean == 0).all()) and bool((variance == 1).all())
