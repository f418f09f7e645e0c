"""What a model does with its input size: outputs, and positions each norm layer sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphatune.errors import AlphatuneError, ConfigurationError, one_line, raise_if_machine_failed
from alphatune.evaluation import evaluation_mode, predict
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
    """Run two blank images through the model and watch its norm layers.

    Raises:
        ConfigurationError: the model does not take this input size, or its
            output is not one row of logits an example.
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
            try:
                logits = predict(model, torch.zeros((EXAMPLES, *input_size), device=device))
            except AlphatuneError:
                raise
            except Exception as error:  # a model that gets an input it was not made for raises anything
                raise_if_machine_failed(error)
                raise ConfigurationError(
                    f"the model does not take an input of size {'x'.join(map(str, input_size))}: {one_line(error)}",
                    "see --input-size",
                ) from None
    if logits.ndim != 2 or len(logits) != EXAMPLES:
        raise ConfigurationError(
            f"expected one row of logits per example, got an output of shape {tuple(logits.shape)}",
            "alphatune tunes classifiers",
        )
    return Probe(logits.shape[1], seen)
