"""What a model does with its input size: outputs, and positions each norm layer sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphatune.errors import (
    AlphatuneError,
    ConfigurationError,
    is_out_of_memory,
    one_line,
    raise_if_machine_failed,
)
from alphatune.evaluation import NOT_A_CLASSIFIER, evaluation_mode, input_dtype, logits_of, predict
from alphatune.norms.calibrated import channel_groups
from alphatune.norms.survey import survey

EXAMPLES = 2  # more than one, to see layers whose rows are not examples


@dataclass(frozen=True)
class Seen:
    """The input of one norm layer."""

    rows: int  # size of its batch dimension
    spatial: tuple[int, ...]
    pooled: bool = False  # moments are over groups of channels, too

    @property
    def positions(self) -> int:
        return math.prod(self.spatial)

    @property
    def remark(self) -> str:
        if self.rows != EXAMPLES:
            return (
                f"{self.rows // EXAMPLES} rows an example: each row is weighed in by itself, not the example"
            )
        alone = self.positions == 1 and not self.pooled
        return "one position: the example's variance is 0" if alone else ""


@dataclass(frozen=True)
class Probe:
    """``num_classes`` outputs, and what each norm layer that ran has seen."""

    num_classes: int
    layers: Mapping[str, Seen]


def probe(model: nn.Module, input_size: tuple[int, int, int], device: torch.device) -> Probe:
    """Run two blank images through a classifier and watch its norm layers.

    Raises:
        ConfigurationError: the model does not take this input size, or its
            output is not one row of logits an example.
    """
    output, seen = watch_layers(model, input_size, device)
    logits = logits_of(output)
    if (classes := count_classes(logits)) is None:
        raise ConfigurationError(
            f"expected one row of logits per example, got an output of shape {tuple(logits.shape)}",
            NOT_A_CLASSIFIER,
        )
    return Probe(classes, seen)


def count_classes(output: object) -> int | None:
    """How many logits an example a model's output for two images has; None if it is no classifier's."""
    try:
        logits = logits_of(output)
    except ConfigurationError:
        return None
    return logits.shape[1] if logits.ndim == 2 and len(logits) == EXAMPLES else None


def watch_layers(
    model: nn.Module, input_size: tuple[int, int, int], device: torch.device
) -> tuple[object, dict[str, Seen]]:
    """Run two blank images through any model: what it returns, and what each norm layer that ran has seen.

    Raises:
        ConfigurationError: the model does not take this input size.
    """
    seen: dict[str, Seen] = {}
    modules = dict(model.named_modules())

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x, groups = inputs[0], channel_groups(layer)
            seen[name] = Seen(x.shape[0], tuple(x.shape[2:]), groups is not None and groups < x.shape[1])

        return hook

    with ExitStack() as stack:
        for layer in survey(model):
            handle = modules[layer.name].register_forward_pre_hook(watch(layer.name))
            stack.callback(handle.remove)
        with evaluation_mode(model):
            images = torch.zeros((EXAMPLES, *input_size), device=device, dtype=input_dtype(model))
            try:
                return _run(model, images), seen
            except AlphatuneError:
                raise
            except Exception as error:  # a model that gets an input it was not made for raises anything
                raise_if_machine_failed(error)
                raise ConfigurationError(
                    f"the model does not take an input of size {'x'.join(map(str, input_size))}: {one_line(error)}",
                    "see --input-size",
                ) from None


def _run(model: nn.Module, images: Tensor) -> object:
    try:
        return model(images)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return predict(model, images)  # one by one, or an error that says what to do
