"""What a model's output is, decided before any figure is believed.

    which      of several outputs holds the logits (reading.py)
    what       logits, or probabilities, whose logarithms are taken; one number an example tells two classes
               apart; sigmoids for several classes are refused
    whether    it depends on the example alone (stability.py)

The decision stays with the model as its ``Reading``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError, UnsupportedModelError, is_out_of_memory
from alphatune.evaluation.predictor import evaluation_mode, input_dtype
from alphatune.evaluation.reading import (
    NAMES,
    NOT_A_CLASSIFIER,
    Reading,
    are_probabilities,
    choose,
    first_is_main,
    keep_reading_,
    kept_reading,
    log_of,
    tensors_of,
)
from alphatune.models.stability import preserved, require_stable
from alphatune.models.temperature import without_temperature

#: autograd's names of what changes the shape of values only, and of what gives logits: layers and averages
_SHAPES = (
    "View",
    "Unsafe",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "ToCopy",
    "Clone",
    "Alias",
    "Slice",
    "Select",
    "T",
)
_LAYERS = (
    "Addmm",
    "Mm",
    "Linear",
    "Convolution",
    "MkldnnConvolution",
    "Mean",
    "Add",
    "Sub",
    "NativeBatchNorm",
)
#: what changes the scale of values only, such as a temperature in the model's own code
_SCALES = ("Mul", "Div")
#: images that are looked at
EXAMPLES = 8


def choose_output_(
    model: nn.Module, output: object, examples: int, *, widths: Sequence[int] = (), wanted: str | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Decide which part of an output holds the logits, of a classifier or not, and keep that on the model.

    Args:
        output: what the model returned for so many examples.
        widths: numbers of classes that are wanted, the likeliest first.
        wanted: the output that the caller chose, by number or name.

    Returns:
        That part, and what is worth saying.

    Raises:
        ConfigurationError: no tensor, or several could be meant.
    """
    tensors, known = tensors_of(output), kept_reading(model)
    if wanted is None and known is not None and known.path in tensors:
        reading = known
    else:
        own = (*widths, *_own_widths(model))
        reading = Reading(choose(tensors, own, wanted, examples, first_is_main(model)))
    values = reading.take(output)
    keep_reading_(model, replace(reading, single=values.numel() == examples))
    if reading.path in ((), NAMES[:1]):
        return values, ()
    columns = f" ({values.shape[1]} columns)" if values.ndim == 2 else ""
    count = f"{len(tensors)} output{'s' * (len(tensors) > 1)}"
    return values, (f"the model returns {count}; took output {reading.name}{columns}",)


def find_reading_(
    model: nn.Module, output: object, examples: int, *, widths: Sequence[int] = (), wanted: str | None = None
) -> tuple[int, tuple[str, ...]]:
    """``choose_output_`` of a classifier: the number of its classes, and what is worth saying.

    Raises:
        ConfigurationError: as there; or no row of logits an example.
        UnsupportedModelError: one number an example, and more than two classes.
    """
    values, notes = choose_output_(model, output, examples, widths=widths, wanted=wanted)
    if values.numel() == examples:
        if any(width > 2 for width in widths):
            raise UnsupportedModelError(
                f"the model returns one number an example, which tells two classes apart, and the data has {widths[0]}",
                "give it data of two classes; tune with `score` takes any model, by a score of your own",
            )
        return 2, (
            *notes,
            "the model returns one number an example: it is taken for class 1, against class 0",
        )
    if values.ndim != 2 or len(values) != examples:
        raise ConfigurationError(
            f"expected one row of logits per example, got an output of shape {tuple(values.shape)}",
            NOT_A_CLASSIFIER,
        )
    return values.shape[1], notes


def check_outputs_(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Look at what a model gives for a few images, of which the reading is known already.

    Args:
        images: (N, C, H, W), prepared for the model, on its device; real ones tell more than noise.

    Returns:
        What is worth saying: that logarithms of probabilities are taken, that an output depends on the batch.

    Raises:
        UnsupportedModelError: sigmoids for several classes, or outputs that change from call to call.
    """
    reading = kept_reading(model) or Reading()
    images = images[:EXAMPLES].to(input_dtype(model))
    notes: tuple[str, ...] = ()
    try:
        with evaluation_mode(model), preserved(model), without_temperature(model):
            values = reading.take(model(images)).clone()
    except RuntimeError as error:
        if is_out_of_memory(error):  # whatever runs next takes fewer at a time
            return ()
        raise
    if not bool(torch.isfinite(values).all()):
        return ()  # which is said where examples are scored, with their number
    if reading.single:
        probabilities = _are_sigmoids(model, images, values)
    else:
        probabilities = values.ndim == 2 and are_probabilities(values)
    if values.ndim == 2 and not probabilities and not reading.single and _are_sigmoids(model, images, values):
        raise UnsupportedModelError(
            "the model returns a probability for each class by itself (all values in [0, 1], rows do not sum to 1), "
            "as sigmoids do: it is no classifier into one of its classes",
            "let it return its logits if its classes exclude each other; multi-label models: tune with `score`, by a "
            "score of your own",
        )
    if probabilities:
        smallest = float(log_of(torch.zeros(1, 1, dtype=values.dtype)).exp())
        seen = "a sigmoid" if reading.single else "rows sum to 1"
        notes = (
            f"the model returns probabilities, not logits ({seen}): their logarithms are taken as logits, "
            f"a probability of 0 as {smallest:.2g}",
        )
    keep_reading_(model, replace(reading, probabilities=probabilities))
    return notes + require_stable(model, images)


def _are_sigmoids(model: nn.Module, images: Tensor, values: Tensor) -> bool:
    """Whether an output is a probability for each class by itself.

    Small logits may all lie in [0, 1] by chance, but they come out of a layer: what was computed last
    says so, where autograd knows it.
    """
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        return False
    unless_known = low < 0.5 < high
    reading = kept_reading(model) or Reading()
    try:
        with evaluation_mode(model), preserved(model), without_temperature(model), torch.enable_grad():
            node = reading.take(model(images.clone().requires_grad_())).grad_fn
    except RuntimeError:  # a model that cannot be differentiated, or has no room to
        return unless_known
    while node is not None and node.name().startswith((*_SHAPES, *_SCALES)):
        computed = [each for each, _ in node.next_functions if each is not None and each.next_functions]
        if not computed:
            break
        node = computed[0]  # others are parameters
    probabilities = ("Sigmoid", "Hardsigmoid", *(("Softmax", "Exp") if reading.single else ()))
    if node is None or node.name().startswith(probabilities):
        return node is not None or unless_known
    return unless_known and not node.name().startswith(_LAYERS)


def _own_widths(model: nn.Module) -> tuple[int, ...]:
    """The number of classes that a model itself names, as timm's and transformers' do."""
    found = (getattr(model, "num_classes", None), getattr(getattr(model, "config", None), "num_labels", None))
    return tuple(n for n in found if isinstance(n, int) and n > 1)
