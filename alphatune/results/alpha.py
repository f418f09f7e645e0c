"""α of a model: one number for all layers, or by layer, where it may also be one number per channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from alphatune.results.values import Fraction

LayerAlpha = Fraction | Annotated[list[Fraction], Meta(min_length=1)]
ModelAlpha = Annotated[
    Fraction | dict[str, LayerAlpha],
    Meta(description="One number for all layers, or by layer name; a list holds one number per channel."),
]


def common_alpha(alphas: Mapping[str, LayerAlpha]) -> ModelAlpha:
    """The α of a model from those of its layers: one number where all have the same; 0 where there are none."""
    first = next(iter(alphas.values()), 0.0)
    if isinstance(first, list) or any(alpha != first for alpha in alphas.values()):
        return dict(alphas)
    return first


def alpha_text(alpha: ModelAlpha) -> str:
    """α in a few words: a number, or the range of those of the layers."""
    if not isinstance(alpha, dict):
        return f"{alpha:g}"
    numbers = [v for value in alpha.values() for v in (value if isinstance(value, list) else [value])]
    kind = "channel" if len(numbers) > len(alpha) else "layer"
    return f"{min(numbers):g} to {max(numbers):g} by {kind}"
