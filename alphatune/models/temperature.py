"""The temperature of a model: what its logits are divided by (tuning/temperature.py).

It is a hook on the model, so that weights and state-dict keys stay what they
are, and it goes along with a copy. Where the logits come out of a linear
layer, ``fold_temperature_`` puts it into that layer's weights instead, for
code that knows nothing of temperatures.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.evaluation.predictor import evaluation_mode, predict
from alphatune.evaluation.reading import kept_reading, reading_of


class _Temperature:
    """The hook."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        return reading_of(module, output).divide(output, self.value)


def set_temperature_(model: nn.Module, temperature: float) -> None:
    """Let a model return logits / T; 1 takes the temperature away.

    Raises:
        ConfigurationError: T is no positive number.
    """
    if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
        raise ConfigurationError(f"a temperature is a positive number, got {temperature!r}")
    for key, hook in list(model._forward_hooks.items()):
        if isinstance(hook, _Temperature):
            del model._forward_hooks[key]
    if temperature != 1:
        # First among the hooks: whatever else looks at the output sees what the model returns.
        model.register_forward_hook(_Temperature(float(temperature)), prepend=True)


@contextlib.contextmanager
def without_temperature(model: nn.Module) -> Iterator[None]:
    """The model returns its own logits for the time of a ``with`` block."""
    temperature = get_temperature(model)
    set_temperature_(model, 1.0)
    try:
        yield
    finally:
        set_temperature_(model, temperature)


def get_temperature(model: nn.Module) -> float:
    """What a model's logits are divided by."""
    return next((h.value for h in model._forward_hooks.values() if isinstance(h, _Temperature)), 1.0)


def fold_temperature_(model: nn.Module, inputs: Tensor) -> str:
    """Divide the weights of the linear layer that gives the logits, and take the hook away.

    Args:
        inputs: a few inputs of the model, to see that its output stays what it is.

    Returns:
        The layer's name.

    Raises:
        UnsupportedModelError: no linear layer gives the logits; the model is unchanged.
    """
    temperature = get_temperature(model)
    with evaluation_mode(model):
        wanted = predict(model, inputs)
        reading = kept_reading(model)
        width = 1 if reading is not None and reading.single else wanted.shape[1]
        for name, layer in reversed(list(model.named_modules())):
            if not isinstance(layer, (nn.Linear, nn.Conv2d)) or len(layer.weight) != width:
                continue
            tensors = [t for t in (layer.weight, layer.bias) if t is not None]
            before = [t.detach().clone() for t in tensors]
            set_temperature_(model, 1.0)
            for tensor in tensors:
                tensor.div_(temperature)
            if torch.allclose(predict(model, inputs), wanted, rtol=1e-4, atol=1e-5):
                return str(name)
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            set_temperature_(model, temperature)
    raise UnsupportedModelError(
        "the temperature cannot be folded: no linear layer's output is the model's",
        "divide the logits by it where they are used",
    )
