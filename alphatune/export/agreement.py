"""Whether what was exported computes what the model computes, on the same images.

    largest difference of a logit   <=  tolerance · largest |logit| of the model
    prediction (largest logit)          identical

A difference within the tolerance leaves room for another class only where the
model's own best two logits are as near to each other. In one row of logits an
example that, too, is refused; of the thousands of positions of a dense output
(segmentation) such ties are counted, and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alphatune.core.errors import AlphatuneError, NumericError, one_line
from alphatune.evaluation.predictor import evaluation_mode
from alphatune.evaluation.reading import kept_reading, output_of
from alphatune.kernels.dispatch import use_kernel

#: numbers of images in a batch: one, which exporters like to freeze, and one that they have not seen
BATCH_SIZES = (1, 3)

#: normalised images (N, C, H, W) -> logits (N, classes, ...)
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Expected:
    """Batches of images and the model's logits for them.

    Args:
        border: of a model of one number an example, where its two classes meet.
    """

    batches: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]
    border: float | None = None

    def predicted(self, logits: Tensor) -> Tensor:
        """The class of each example, or position."""
        return logits.argmax(1) if self.border is None else logits > self.border

    @property
    def largest_logit(self) -> float:
        return max(float(logits.abs().max()) for logits in self.logits)


@dataclass(frozen=True)
class Agreement:
    """How near an export came, over all batches of one size."""

    batch_size: int
    size: tuple[int, int]  # height and width
    images: int
    largest_difference: float
    largest_logit: float
    bound: float  # what the difference may be at most
    predictions: int
    different: int


def expect(model: nn.Module, images: Tensor, batch_size: int) -> Expected:
    """Run a model, as it is, in plain operations over images in batches.

    Raises:
        NumericError: its output is not finite.
    """
    batches = torch.split(images, batch_size)
    with evaluation_mode(model), use_kernel("eager"):
        logits = tuple(output_of(model, model(batch)).float() for batch in batches)
    if not all(bool(torch.isfinite(part).all()) for part in logits):
        raise NumericError("the model's output is NaN or infinite, so that an export cannot be checked")
    reading = kept_reading(model)
    border = (0.5 if reading.probabilities else 0.0) if reading is not None and reading.single else None
    return Expected(batches, logits, border)


def compare(run: Run, expected: Expected, tolerance: float) -> Agreement:
    """Compare an export with the model.

    Args:
        tolerance: allowed difference, in units of the largest |logit|.

    Raises:
        NumericError: it does not run, gives another shape or NaN, or disagrees.
    """
    differences, predictions, different = [], 0, 0
    for batch, wanted in zip(expected.batches, expected.logits, strict=True):
        where = f"batches of {len(batch)} at {batch.shape[2]}x{batch.shape[3]}"
        try:
            with torch.no_grad():
                got = run(batch).float()
        except AlphatuneError:
            raise
        except Exception as error:  # a runtime raises what it likes
            raise NumericError(f"the export does not run with {where}: {one_line(error)}") from None
        if got.shape != wanted.shape:
            raise NumericError(
                f"the export gives an output of shape {tuple(got.shape)} with {where}, the model "
                f"{tuple(wanted.shape)}"
            )
        if not bool(torch.isfinite(got).all()):
            raise NumericError(f"the export's output is NaN or infinite with {where}")
        differences.append(float((got - wanted).abs().max()))
        same = expected.predicted(got) == expected.predicted(wanted)
        predictions += same.numel()
        different += int((~same).sum())
    first = expected.batches[0]
    result = Agreement(
        batch_size=len(first),
        size=(first.shape[2], first.shape[3]),
        images=sum(map(len, expected.batches)),
        largest_difference=max(differences),
        largest_logit=expected.largest_logit,
        bound=tolerance * expected.largest_logit,
        predictions=predictions,
        different=different,
    )
    _require(result, dense=expected.border is None and expected.logits[0].ndim > 2)
    return result


def compare_all(run: Run, expected: Sequence[Expected], tolerance: float) -> tuple[Agreement, ...]:
    """``compare`` for every batch size."""
    return tuple(compare(run, part, tolerance) for part in expected)


def _require(found: Agreement, *, dense: bool) -> None:
    where = f"batches of {found.batch_size} at {found.size[0]}x{found.size[1]}"
    if found.largest_difference > found.bound:
        raise NumericError(
            f"the export computes something else than the model: with {where} logits differ by up to "
            f"{found.largest_difference:.3g}, where {found.bound:.3g} is allowed",
            "nothing was written",
        )
    if found.different and not dense:
        raise NumericError(
            f"the export predicts another class than the model for {found.different} of {found.predictions} "
            f"images with {where}",
            "nothing was written",
        )
