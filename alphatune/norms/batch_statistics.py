"""Mix the moving averages with the moments of the test batch: what example weighting is compared with.

    mean     = N/(N+n)·m + n/(N+n)·m_batch
    variance = N/(N+n)·v + n/(N+n)·v_batch

with n the examples of the batch and N how many examples the moving averages
count for; m_batch and v_batch (biased) are taken over batch and space. N = 0
is BatchNorm in training mode, N = ∞ in eval mode.

What an example comes out as depends on the other examples of its batch. So this
serves comparison only: nothing of it is ever written into a model.

Source: Schneider et al. 2020, "Improving robustness against common corruptions
by covariate shift adaptation", Eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.kernels.moments import average_over_groups
from alphatune.norms.example_weighted import ExampleWeighted
from alphatune.norms.grouping import batch_moments
from alphatune.norms.patching import patched
from alphatune.norms.training_norm import drop_and_act, only_argument

#: N: a lone example has 1/17 of the weight, about what α would give it, and a batch of 32 two thirds
PSEUDO_COUNT = 16.0


@contextmanager
def batch_statistics(
    model: nn.Module,
    pseudo_count: float = PSEUDO_COUNT,
    *,
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
) -> Iterator[tuple[str, ...]]:
    """Let the BatchNorm layers of a model mix in the test batch's moments for the time of a ``with`` block.

    In eval mode they normalise as this module's text says, whatever their α; in
    training mode as ever. The moving averages are read and never written, and
    all is undone on any exit. GroupNorm layers, which infer by no moving
    averages, stay as they are.

    Args:
        pseudo_count: N, from 0 to infinity.
        exclude, skip_unknown: as for ``patch_``.

    Yields:
        The names of the layers, in model order.

    Raises:
        ConfigurationError: N is negative or no number; an exclude pattern that matches nothing.
        UnsupportedModelError: no BatchNorm layer, or one of unknown kind.
    """
    if not pseudo_count >= 0:
        raise ConfigurationError(f"a pseudo-count is a number from 0 to infinity, got {pseudo_count!r}")
    with patched(model, exclude=exclude, skip_unknown=skip_unknown) as names:
        modules: dict[str, Any] = dict(model.named_modules())
        layers = {name: modules[name] for name in names if modules[name].unpatched_alpha == 0}
        if not layers:
            raise UnsupportedModelError(
                "expected a BatchNorm layer, which infers by moving averages, found only GroupNorm",
                "leave out `batch_stats`",
            )
        # On the instance, as hook libraries do it: the class is example weighting's.
        before = {layer: layer.__dict__.get("forward") for layer in layers.values()}
        try:
            for layer in before:
                layer.__dict__["forward"] = _forward(layer, pseudo_count)
            yield tuple(layers)
        finally:
            for layer, forward in before.items():
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.__dict__["forward"] = forward


def batch_statistics_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pseudo_count: float,
    num_groups: int | None = None,
) -> Tensor:
    """Normalise a batch by a mixture of its own and the moving moments.

        y = γ · (x − mean) / sqrt(variance + ε) + β,   mean, variance as in this module's text

    Args:
        x: activations (N, C, *).
        running_mean, running_var: moving averages (C,).
        weight, bias: γ and β (C,), or None.
        eps: ε.
        pseudo_count: how many examples the moving averages count for.
        num_groups: groups of contiguous channels over which both moments are averaged; None keeps channels apart.

    Returns:
        (N, C, *), in the dtype and memory format of ``x``; computed in float32 or better.
    """
    mean, variance = batch_moments(x)
    moving_mean, moving_variance = running_mean.to(mean.dtype), running_var.to(mean.dtype)
    if num_groups is not None:
        mean, variance = average_over_groups(mean, variance, num_groups)
        moving_mean, moving_variance = average_over_groups(moving_mean, moving_variance, num_groups)
    share = len(x) / (pseudo_count + len(x)) if len(x) else 0.0
    # lerp is exact at both ends: shares of 0 and 1 are eval and training mode.
    mean, variance = moving_mean.lerp(mean, share), moving_variance.lerp(variance, share)
    weight = None if weight is None else weight.to(mean.dtype)
    bias = None if bias is None else bias.to(mean.dtype)
    return F.batch_norm(x.to(mean.dtype), mean, variance, weight, bias, False, 0.0, eps).to(x.dtype)


def _forward(layer: ExampleWeighted, pseudo_count: float) -> Callable[..., Tensor]:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        x = only_argument(args, kwargs)
        if layer.training:
            return type(layer).forward(layer, x)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer._check_input_dim(x)  # type: ignore[no-untyped-call]
        y = batch_statistics_norm(
            x,
            layer.running_mean,
            layer.running_var,
            layer.weight,
            layer.bias,
            layer.eps,
            pseudo_count,
            layer.num_groups,
        )
        return drop_and_act(layer, y)

    return forward
