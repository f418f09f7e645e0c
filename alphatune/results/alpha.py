"""α of a model: one number for all layers, or by layer, where it may also be one number per channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from alphatune.results.values import Fraction

LayerAlpha = Fraction | Annotated[list[Fraction], Meta(min_length=1)]
Alpha = Annotated[
    LayerAlpha | dict[str, LayerAlpha],
    Meta(description="One number for all layers, or by layer name; a list holds one number per channel."),
]


def common_alpha(alphas: Mapping[str, LayerAlpha]) -> Alpha:
    """The α of a model from those of its layers: one where all have the same; 0 where there are none."""
    if not alphas:
        return 0.0
    first = next(iter(alphas.values()))
    return first if all(alpha == first for alpha in alphas.values()) else dict(alphas)


def alpha_text(alpha: Alpha) -> str:
    """α in a few words: a number, or the range of those of the layers."""
    if isinstance(alpha, float | int):
        return f"{alpha:g}"
    layers = list(alpha.values()) if isinstance(alpha, dict) else [alpha]
    numbers = [v for layer in layers for v in (layer if isinstance(layer, list) else [layer])]
    kind = "channel" if len(numbers) > len(layers) else "layer"
    return f"{min(numbers):g} to {max(numbers):g} by {kind}"
