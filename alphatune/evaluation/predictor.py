"""One pass over batches gives a score per example; averages come later.

Knows nothing of α: the sweep calls ``score_logits`` once per α and batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alphatune.core.errors import (
    AlphatuneError,
    ConfigurationError,
    NumericError,
    ResourceError,
    is_out_of_memory,
    one_line,
    raise_if_machine_failed,
)
from alphatune.core.progress import ShowProgress, as_meter, shows_progress
from alphatune.data.loading import Batch
from alphatune.evaluation.full_precision import full_precision
from alphatune.evaluation.reading import NOT_A_CLASSIFIER, logits_of
from alphatune.statistics.scores import Scores, concatenate


def score_logits(logits: Tensor, batch: Batch, where: str = "") -> Scores:
    """Score one batch of logits (N, classes) against its targets.

    Args:
        where: appended to the error message, e.g. "at α = 0.1".

    Raises:
        ConfigurationError: the output is not (N, classes), or a label does not fit.
        NumericError: a logit that is NaN or infinite.
    """
    if logits.ndim != 2 or logits.shape[0] != len(batch):
        raise ConfigurationError(
            f"expected logits of shape ({len(batch)}, classes), got {tuple(logits.shape)}",
            NOT_A_CLASSIFIER,
        )
    logits, targets = logits.float(), batch.targets
    classes = logits.shape[1]
    if bool((targets >= classes).any()) or bool((targets < 0).any()):
        wrong = int(targets[(targets >= classes) | (targets < 0)][0])
        raise ConfigurationError(
            f"the data has label {wrong}, the model {classes} outputs",
            "give `class_map`, or the checkpoint that belongs to these classes",
        )
    if not bool(torch.isfinite(logits).all()):
        bad = batch.ids[~torch.isfinite(logits).all(dim=1).cpu()]
        raise NumericError(
            f"the model's output is NaN or infinite for example {int(bad[0])}{where and ' ' + where}"
        )
    log_probabilities = torch.log_softmax(logits, dim=1)
    best, predicted = log_probabilities.max(dim=1)
    own = log_probabilities.gather(1, targets[:, None]).squeeze(1)
    # Rank by counting, so that ties are broken the same way on every device:
    # the lower class index wins, as it does in max.
    index = torch.arange(classes, device=logits.device)
    target_logits = logits.gather(1, targets[:, None])
    ahead = (logits > target_logits) | ((logits == target_logits) & (index < targets[:, None]))
    return Scores(
        ids=batch.ids.numpy(),
        targets=targets.to(torch.int32).cpu().numpy(),
        predicted=predicted.to(torch.int32).cpu().numpy(),
        loss=(-own).cpu().numpy(),
        top1=(predicted == targets).cpu().numpy(),
        top5=(ahead.sum(dim=1) < 5).cpu().numpy(),
        confidence=best.exp().cpu().numpy(),
        margin=(logits[:, 1] - logits[:, 0]).cpu().numpy() if classes == 2 else None,
    )


@shows_progress
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    dtype: torch.dtype = torch.float32,
    predictor: Predictor | None = None,
    total: int | None = None,
    progress: ShowProgress = None,
) -> Scores:
    """Score a model, as it is, on every example; it is in eval mode meanwhile.

    Args:
        predictor: how to run the model, if not as ``Predictor(model, dtype)`` does.
        total: examples there are, if that is known.
        progress: as for ``tune``.

    Raises:
        NumericError, ConfigurationError, DataError: as ``score_logits`` and the batches do.
        ResourceError: one example does not fit into memory.
    """
    parts: list[Scores] = []
    meter = as_meter(progress)
    meter.phase("evaluating")
    meter.expect(total)
    predictor = predictor or Predictor(model, dtype)
    with evaluation_mode(model):
        for batch in batches:
            parts.append(score_logits(predictor(predictor.prepare(batch.inputs)), batch))
            meter.add(len(batch))
    return concatenate(parts)


def predict(model: nn.Module, inputs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """One forward pass; see ``Predictor``."""
    predictor = Predictor(model, dtype)
    return predictor(predictor.prepare(inputs))


@dataclass
class Predictor:
    """Forward passes of one model; a batch that does not fit into memory is cut up, no example lost.

    ``float16`` and ``bfloat16`` mean autocast: weights and moving averages stay
    as they are. What is taken of several outputs is said in reading.py.

    Args:
        channels_last: inputs in the channels-last memory format; the model's weights are the caller's.
        compile: run the model through ``torch.compile`` (on CUDA as CUDA graphs). Batches are
            filled up to the first one's size, so that it compiles once; rows do not depend on each other.
        outputs: the model's outputs that are scored, in the order of the labels; None: all of them.
    """

    model: nn.Module
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compile: bool = False
    #: the most examples that are known to fit, once something did not
    max_batch: int | None = None
    outputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._forward: Callable[..., object] = self.model
        self._full = 0
        if self.compile:
            mode = "reduce-overhead" if _on_cuda(self.model) else "default"
            self._forward = torch.compile(self.model, mode=mode, dynamic=False)

    def prepare(self, inputs: Tensor) -> Tensor:
        """The inputs in the model's dtype and memory format, once for any number of passes."""
        inputs = inputs.to(input_dtype(self.model))
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits (N, classes) of prepared inputs.

        Raises:
            ResourceError: one example does not fit into memory.
        """
        if self.max_batch is not None and len(inputs) > self.max_batch:
            return torch.cat([self(part) for part in torch.split(inputs, self.max_batch)])
        try:
            return self.whole(inputs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(inputs) == 1:
                raise ResourceError(
                    f"one example of shape {tuple(inputs.shape[1:])} does not fit into the device's memory",
                    "use a smaller `input_size`, `dtype=bfloat16` or `device=cpu`",
                ) from None
        torch.cuda.empty_cache()
        self.max_batch = len(inputs) // 2  # later batches need not run out of memory to find out
        self._full = min(self._full, self.max_batch)  # nor be filled up to what does not fit
        return self(inputs)

    def whole(self, inputs: Tensor) -> Tensor:
        """The same without cutting a batch up: for gradients, whose graph would keep all parts in memory."""
        low_precision = self.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(inputs.device.type, self.dtype) if low_precision else contextlib.nullcontext():
            logits = self._run(inputs)
        if self.outputs is None:
            return logits
        return logits.index_select(1, torch.tensor(self.outputs, device=logits.device))

    def _run(self, inputs: Tensor) -> Tensor:
        if not self.compile:
            return logits_of(self.model, self.model(inputs))
        self._full = max(self._full, len(inputs))
        missing = self._full - len(inputs)
        if missing == 0:
            return self._copied(inputs)
        filled = torch.cat([inputs, inputs[:1].expand(missing, *inputs.shape[1:])])
        return self._copied(self.prepare(filled))[: len(inputs)]

    def _copied(self, inputs: Tensor) -> Tensor:
        """The logits of compiled code in memory of their own: a CUDA graph writes every result to the same place."""
        return logits_of(self.model, self._forward(inputs)).clone()


@contextlib.contextmanager
def explaining_failure(inputs: Tensor) -> Iterator[None]:
    """Turn whatever a model raises on the inputs of a user's own loader into a ConfigurationError."""
    try:
        yield
    except AlphatuneError:
        raise
    except Exception as error:  # a model that gets inputs it was not made for raises anything
        raise_if_machine_failed(error)
        shape = tuple(inputs.shape)
        channels_last = len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
        raise ConfigurationError(
            f"the model failed on inputs of shape {shape}: {type(error).__name__}: {one_line(error)}",
            "expected images (N, C, H, W); these look like (N, H, W, C): images.permute(0, 3, 1, 2) turns them"
            if channels_last
            else "images come as (N, C, H, W)",
        ) from error


def _on_cuda(model: nn.Module) -> bool:
    return any(p.device.type == "cuda" for p in model.parameters())


def input_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating parameter: a half-precision model takes half-precision images."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, float32 that is float32; all undone on any exit."""
    training = {module: module.training for module in model.modules()}
    try:
        with full_precision(), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
