"""The training loop: steps, epochs, and when to save.

    for each step t:  loss = CE(model(xₜ), yₜ) [+ 0.4 · CE(auxiliary heads)]

Everything random in a step (dropout, stochastic depth) is drawn from a
generator that is seeded by the run's seed, the step and the process, so that a
resumed run repeats an uninterrupted one bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn import functional as F

from alphatune.core.distributed import World
from alphatune.core.errors import (
    ConfigurationError,
    NumericError,
    ResourceError,
    is_out_of_memory,
    one_line,
    raise_if_machine_failed,
)
from alphatune.core.metrics import STANDARD
from alphatune.core.progress import Meter, ShowProgress, as_meter
from alphatune.data.augmentation import derived_seed
from alphatune.data.loading import Batch
from alphatune.data.training_batches import TrainingBatches
from alphatune.evaluation.reading import heads_of
from alphatune.results.metrics import Metrics
from alphatune.results.training import Epoch
from alphatune.training.distributed import parallel, share_buffers_
from alphatune.training.interruption import Stopped
from alphatune.training.optimizers import decay_to_one_
from alphatune.training.recipe import Recipe
from alphatune.training.schedule import learning_rate
from alphatune.training.state import TrainingState

#: weight of the loss of auxiliary heads (Inception-v3, GoogLeNet)
AUXILIARY_WEIGHT = 0.4
#: steps between two looks at the loss on a GPU, which has to be waited for
GPU_CHECK_STEPS = 20

#: validates a model: (model, progress) -> metrics
Evaluate = Callable[[nn.Module, Callable[[int, int | None], None]], Metrics]


def train(
    state: TrainingState,
    batches: TrainingBatches,
    recipe: Recipe,
    *,
    evaluate: Evaluate | None = None,
    save: Callable[[], None] = lambda: None,
    save_minutes: float = float("inf"),
    stop: Callable[[], bool] = lambda: False,
    waiting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    world: World = World(),  # noqa: B008
    validation_examples: int = 0,
    progress: ShowProgress = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> bool:
    """Train from wherever the state is to the end of the recipe.

    Args:
        evaluate: validates ``state.evaluated`` after every ``recipe.eval_every`` epochs and the last.
        save: called after every epoch, when ``save_minutes`` have passed, and before stopping.
        stop: asked after every step of the optimiser; True saves and returns.
        waiting: entered to wait for a batch and to validate; ``Stopped`` raised there saves and returns.
        validation_examples: how many ``evaluate`` looks at.
        progress: as for ``alphatune.tune``; images count once an epoch.
        on_epoch: called with the row of every finished epoch.

    Returns:
        True when the run is finished, False when it was asked to stop.

    Raises:
        ConfigurationError: the model fails on a batch.
        NumericError: the loss is NaN or infinite; what was saved before stays as it is.
        ResourceError: a batch does not fit into memory.
    """
    steps = batches.steps_per_epoch
    total = recipe.epochs * steps
    device = batches.device
    model = torch.compile(state.model) if recipe.compile else state.model
    wrapped = parallel(model, world, device)  # type: ignore[arg-type]
    source = batches.between(state.step, total)
    began, saved = time.monotonic() - state.seconds, time.monotonic()
    meter, size = as_meter(progress), batches.sampling.batch_size
    validated = [validation_examples * _is_validated(recipe, 1 + epoch) for epoch in range(recipe.epochs)]
    meter.begin("waiting for the first batch")
    meter.add(size * state.step + sum(validated[: len(state.rows)]), resumed=True)
    meter.expect(size * (total - state.step) + sum(validated[len(state.rows) :]))

    def stopping() -> bool:
        return world.any(stop())

    def keep() -> None:
        nonlocal saved
        meter.phase("saving")
        state.seconds = time.monotonic() - began
        save()
        saved = time.monotonic()

    def interruptible(here: bool = True) -> AbstractContextManager[None]:
        return waiting() if here and world.size == 1 else contextlib.nullcontext()

    boundary, halt = True, stop if world.size == 1 else lambda: False
    while len(state.rows) < recipe.epochs:
        epoch_end = (len(state.rows) + 1) * steps
        wrapped.train()
        while state.step < epoch_end:
            try:
                with interruptible(boundary):  # amid the parts of a step there is nothing to save
                    batch = next(source)
            except Stopped:
                _require_finite(state, weights=True)
                keep()
                return False
            meter.phase(f"training, epoch {len(state.rows) + 1} of {recipe.epochs}")
            boundary = _step(state, wrapped, batch, recipe, steps, world)
            meter.add(size)
            if boundary and state.step < epoch_end:
                stopped = stopping() if world.size == 1 or state.step % 10 == 0 else False
                if stopped or time.monotonic() - saved > 60 * save_minutes:
                    _require_finite(state, weights=True)
                    keep()
                if stopped:
                    return False
        _require_finite(state, weights=True)
        share_buffers_(state.evaluated, world)
        try:
            with interruptible():
                row = _finish_epoch(state, recipe, steps, evaluate, halt, meter, validation_examples)
        except Stopped:
            keep()  # at the end of the epoch, to be evaluated when the run goes on
            return False
        state.seconds = time.monotonic() - began
        row = replace(row, seconds=state.seconds)
        state.rows.append(row)
        state.loss_sum, state.correct, state.seen = 0.0, 0, 0
        keep()
        if on_epoch:
            on_epoch(row)
        if len(state.rows) < recipe.epochs and stopping():
            return False
    return True


def training_loss(
    model: nn.Module, output: object, targets: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, auxiliary heads included, and the logits (N, classes), of what a model returned."""
    logits, others = heads_of(model, output)
    loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    for auxiliary in others:
        loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(auxiliary, targets, label_smoothing=label_smoothing)
    return loss, logits


def _step(
    state: TrainingState, model: nn.Module, batch: Batch, recipe: Recipe, steps: int, world: World
) -> bool:
    """One batch forward and backward; True when the optimiser has moved, too."""
    torch.manual_seed(derived_seed(recipe.seed, state.step, world.rank))
    in_epoch = state.step % steps
    first = in_epoch - in_epoch % recipe.accumulate
    parts = min(recipe.accumulate, steps - first)  # the last step of an epoch may have fewer
    boundary = in_epoch + 1 == first + parts
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    device = batch.inputs.device
    inputs = batch.inputs.contiguous(memory_format=layout) if batch.inputs.ndim == 4 else batch.inputs
    low_precision = recipe.dtype != torch.float32
    waits = model.no_sync() if world.size > 1 and not boundary else contextlib.nullcontext()  # type: ignore[operator]
    try:
        with waits:
            with torch.autocast(device.type, recipe.dtype, enabled=low_precision):
                output = model(inputs)
                loss, logits = training_loss(state.model, output, batch.targets, recipe.label_smoothing)
            state.scaler.scale(loss / parts).backward()  # type: ignore[no-untyped-call]
        if boundary:
            _move(state, recipe, learning_rate(recipe, state.step, steps))
    except (RuntimeError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"a batch of {len(batch)} does not fit into the memory of {device}",
                "use a smaller `batch_size` with `accumulate`, or `dtype=bfloat16`",
            ) from None
        raise_if_machine_failed(error)
        if state.step:
            raise  # what has worked before is not for the user to mend
        raise ConfigurationError(
            f"the model cannot be trained on images of size {'x'.join(map(str, inputs.shape[1:]))} "
            f"in batches of {len(batch)}: {one_line(error)}"
        ) from error
    state.step += 1
    state.seen += len(batch)
    state.loss_sum += loss.detach().float() * len(batch)  # stays on the device
    state.correct += (logits.detach().argmax(1) == batch.targets).sum()
    if device.type == "cpu" or state.step % GPU_CHECK_STEPS == 0:
        _require_finite(state)
    return boundary


def _move(state: TrainingState, recipe: Recipe, rate: float) -> None:
    """A step of the optimiser on the gradients that have gathered."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.scaler.unscale_(state.optimizer)
    if recipe.clip_grad:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad)
    scale = state.scaler.get_scale()
    decay_to_one_(state.optimizer, coupled=True)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.get_scale() >= scale:  # it shrinks when float16 overflowed and the step was left out
        decay_to_one_(state.optimizer, coupled=False)
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(state.model, step=state.step // recipe.accumulate + 1)


def _require_finite(state: TrainingState, *, weights: bool = False) -> None:
    """Bring the sums of the epoch to the CPU; raise NumericError unless the loss is finite.

    With ``weights`` all that is to be saved must be, too: the last step may have spoilt it.
    """
    state.loss_sum, state.correct = float(state.loss_sum), int(state.correct)
    bad = "" if math.isfinite(state.loss_sum) else "the training loss"
    if weights and not bad:
        tensors = state.model.state_dict().items()
        bad = next((name for name, t in tensors if not bool(torch.isfinite(t).all())), "")
    if bad:
        raise NumericError(
            f"{bad} is NaN or infinite at step {state.step}",
            "try a smaller `lr`, `warmup_epochs=1`, `clip_grad=1` or `dtype=bfloat16`; the last checkpoint is kept",
        )


def _is_validated(recipe: Recipe, epoch: int) -> bool:
    return epoch % recipe.eval_every == 0 or epoch == recipe.epochs


def _finish_epoch(
    state: TrainingState,
    recipe: Recipe,
    steps: int,
    evaluate: Evaluate | None,
    stop: Callable[[], bool],
    meter: Meter,
    validation_examples: int,
) -> Epoch:
    """The row of the log: training figures of the epoch, and validation where it is due."""
    epoch = len(state.rows) + 1
    row = Epoch(
        epoch=epoch,
        step=state.step,
        learning_rate=learning_rate(recipe, state.step - 1, steps),
        train_loss=state.loss_sum / state.seen,
        train_top1=state.correct / state.seen,
        seconds=state.seconds,
    )

    began = meter.done

    def watch(done: int, _total: int | None) -> None:
        meter.add(began + done - meter.done)
        if stop():  # by a signal whose exception was dropped
            raise Stopped

    if evaluate and _is_validated(recipe, epoch):
        meter.phase("validating")
        metrics = evaluate(state.evaluated, watch)
        meter.add(began + validation_examples - meter.done)  # what other processes did
        row = replace(row, **{f"val_{name}": metrics[name] for name in STANDARD})
    return row
