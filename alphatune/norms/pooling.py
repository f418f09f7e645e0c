"""Moments of a whole data set from its batches, as if it had come as one.

Two sets of n₁ and n₂ values, with means and sums of squared deviations S₁ and
S₂ from them, make one of n = n₁ + n₂ with

    δ = mean₂ − mean₁
    mean = mean₁ + δ·n₂/n
    S    = S₁ + S₂ + δ²·n₁·n₂/n

The last term is the variance *between* the sets. Averages of the batches'
variances, which is what training leaves in ``running_var``, are without it.
Batches count by their size, so neither it nor a ragged last one matters.

Within a batch deviations are taken from its mean in float32 or better and
corrected for that mean's own rounding; from then on everything is float64.

Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm
for computing sample variances".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and sum of squared deviations of ``count`` values in each channel: (C,), float64, on the CPU."""

    count: int
    mean: Tensor
    deviations: Tensor

    @property
    def variance(self) -> Tensor:
        """Biased: of these values and no others."""
        return self.deviations / self.count

    @property
    def unbiased_variance(self) -> Tensor:
        """Of the population they were drawn from; needs two values or more."""
        return self.deviations / (self.count - 1)


@torch.no_grad()
def moments_of(x: Tensor) -> Moments:
    """Moments of each channel of (N, C, *) over batch and space; an empty batch is an error of the caller's."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.ndim == 2:
        x = x[..., None]
    space = tuple(range(2, x.ndim))
    centre = x.mean((0, *space), keepdim=True)
    centred = x - centre
    count = x.numel() // x.shape[1]
    # To float64 while they are sums over one example, before many are added up; MPS has none.
    first = centred.sum(space).cpu().double().sum(0)
    second = centred.square_().sum(space).cpu().double().sum(0)
    mean = centre.flatten().cpu().double() + first / count
    return Moments(count, mean, (second - first.square() / count).clamp_min_(0))


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of two sets taken together; see the module's text."""
    count = first.count + second.count
    delta = second.mean - first.mean
    between = delta.square() * (first.count * second.count / count)
    return Moments(
        count, first.mean + delta * (second.count / count), first.deviations + second.deviations + between
    )
