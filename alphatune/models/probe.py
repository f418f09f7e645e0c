"""What a model does with its input size: outputs, and positions each norm layer sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alphatune.core.errors import (
    AlphatuneError,
    ConfigurationError,
    is_out_of_memory,
    one_line,
    raise_if_machine_failed,
)
from alphatune.evaluation.predictor import evaluation_mode, input_dtype, predict
from alphatune.models.outputs import find_reading_
from alphatune.models.stability import preserved
from alphatune.norms.calibrated import channel_groups
from alphatune.norms.watching import Watched, watched

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
    """``num_classes`` outputs, what each norm layer that ran has seen, which do not act, and what is worth saying."""

    num_classes: int
    layers: Mapping[str, Seen]
    watched: Watched = field(default_factory=Watched)  # which of them act
    warnings: tuple[str, ...] = ()


def probe(
    model: nn.Module,
    input_size: tuple[int, int, int],
    device: torch.device,
    *,
    widths: Sequence[int] = (),
    wanted: str | None = None,
) -> Probe:
    """Run two blank images through a classifier and watch its norm layers; how its output is read stays with it.

    Args:
        widths, wanted: of its output, as for ``find_reading_``.

    Raises:
        ConfigurationError: the model does not take this input size, or its
            output is not one row of logits an example.
        UnsupportedModelError: one number an example, and more than two classes.
    """
    output, seen, watched = watch_layers(model, input_size, device)
    classes, notes = find_reading_(model, output, EXAMPLES, widths=widths, wanted=wanted)
    return Probe(classes, seen, watched, notes)


def watch_layers(
    model: nn.Module, input_size: tuple[int, int, int], device: torch.device
) -> tuple[object, dict[str, Seen], Watched]:
    """Run two blank images through any model: what it returns, what each norm layer that ran has seen, and which act.

    Raises:
        ConfigurationError: the model does not take this input size.
    """
    with evaluation_mode(model), preserved(model):
        images = torch.zeros((EXAMPLES, *input_size), device=device, dtype=input_dtype(model))
        try:
            with watched(model) as watch:
                output = _run(model, images)
        except AlphatuneError:
            raise
        except Exception as error:  # a model that gets an input it was not made for raises anything
            raise_if_machine_failed(error)
            raise ConfigurationError(
                f"the model does not take an input of size {'x'.join(map(str, input_size))}: {one_line(error)}",
                "see `input_size`",
            ) from None
    seen = {}
    for name, shape in watch.shapes.items():
        if len(shape) > 1:
            groups = channel_groups(model.get_submodule(name))
            seen[name] = Seen(shape[0], shape[2:], groups is not None and groups < shape[1])
    return output, seen, watch


def _run(model: nn.Module, images: Tensor) -> object:
    try:
        return model(images)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return predict(model, images)  # one by one, or an error that says what to do
