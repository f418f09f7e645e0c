"""What α costs layer by layer where nothing can be timed: from multiply-adds and bytes moved.

    time of a convolution  ~  max(multiply-adds / MACS_PER_BYTE, bytes of its input, output and weights)
    α in a layer           ~  three passes over its activation: two that read it, one that writes

in bytes moved (the roofline model; Williams et al. 2009). A folded norm layer and
the activation after it cost nothing. docs/benchmarks/budget.md says how far this
is from measured times.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from alphatune.core.errors import UnsupportedModelError
from alphatune.evaluation.predictor import evaluation_mode, input_dtype
from alphatune.export.layer_costs import LayerCosts, LayerKind, group_alike
from alphatune.models.copying import stock_copy

#: multiply-adds that take as long as moving one byte, as on the CPU core of docs/benchmarks/budget.md
MACS_PER_BYTE = 12
#: passes over an activation that α in a layer adds, and bytes of a number
PASSES, BYTES = 3, 4


def counted_costs(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    input_size: tuple[int, int, int],
    batch_size: int,
) -> LayerCosts:
    """Count what the network does for a batch, and what α adds to it.

    Args:
        model: patched or not; it is not touched.
        shapes: (C, H, W) of an example's activation by layer that may take an α.
        input_size: (C, H, W) of an image.

    Raises:
        UnsupportedModelError: no convolution or linear layer is run, or the model cannot be copied.
    """
    folded = _bytes_moved(stock_copy(model), input_size, batch_size)
    if not folded or not shapes:
        raise UnsupportedModelError(
            "the forward pass reaches no convolution with a norm layer that takes an α"
        )
    kinds = tuple(
        LayerKind(layers, shapes[layers[0]], PASSES * BYTES * prod(shapes[layers[0]]) / folded)
        for layers in group_alike(list(shapes), shapes, same_channels=True)
    )
    everywhere = 1 + sum(kind.share * len(kind.layers) for kind in kinds)
    return LayerCosts(batch_size, 0.0, kinds, everywhere)


def _bytes_moved(model: nn.Module, input_size: tuple[int, int, int], batch_size: int) -> float:
    """Of an image: what takes as long as its convolutions and linear layers do in a batch."""
    total = 0.0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if isinstance(layer, _ConvNd) and layer.transposed:
            multiply_adds = inputs[0][0].numel() * weight[0].numel()
        else:
            multiply_adds = output[0].numel() * weight[0].numel()
        moved = BYTES * (inputs[0][0].numel() + output[0].numel() + weight.numel() / batch_size)
        total += max(multiply_adds / MACS_PER_BYTE, moved)

    for layer in model.modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            layer.register_forward_hook(count)
    tensor = next(model.parameters())
    images = torch.zeros(1, *input_size, device=tensor.device, dtype=input_dtype(model))
    with evaluation_mode(model):
        model(images)
    return total
