"""α of many units at once, by gradient.

    minimise over θ    avg ℓ(z(α)/T, target) + |θ − θ₀|² / (2σ²n),    α = sigmoid(θ)

by Adam on mini-batches, from a coarser α on. ℓ is the cross-entropy, or for
top-1 and top-5 a smooth error; T is 1, or tuned along. The second term is a
Gaussian prior, worth σ = 2 in θ, that holds every unit near the one α of the
whole model, θ₀: few examples move many units only a little. Part of the
examples take no part and say when to stop; where nothing beats the start on
them the start is what comes back, unchanged.

Everything is drawn from the seed. A journal (journal.py) keeps the state, and
a descent that was interrupted goes on from it to the same result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alphatune.core.errors import ResourceError, is_out_of_memory
from alphatune.core.metrics import INFO, Metric
from alphatune.core.progress import Meter
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import Predictor, evaluation_mode
from alphatune.norms.patching import differentiable_alpha, example_weighted_layers, set_alpha_
from alphatune.tuning.granularity import Units
from alphatune.tuning.journal import Entry, State
from alphatune.tuning.passes import Data
from alphatune.tuning.search import stratified_order
from alphatune.tuning.temperature import TEMPERATURES, score_temperatures

#: optimiser steps at most, and examples of each
STEPS, STEP_EXAMPLES = 48, 256
#: times that an example is seen at most: what few examples can say is soon said
EPOCHS = 4
LEARNING_RATE, TEMPERATURE_RATE = 0.15, 0.05
#: σ of the prior in θ: between α = 0.02 and 0.13, say
PRIOR = 2.0
#: share of the examples that say when to stop, and how many at most
HELD_OUT, MOST_HELD_OUT = 0.2, 1000
#: steps from one look at them to the next, and looks without an improvement that end the descent
EVERY, PATIENCE = 8, 2
#: the sigmoid has no way to 0 or 1: a descent starts this far from them, and ends there when as near
NEAREST, AT_END = 0.01, 0.001


@dataclass(frozen=True)
class Fit:
    """Where a descent ended."""

    alphas: tuple[float, ...]  # of the units
    temperature: float
    steps: int  # after which this was so; 0 is the start
    objective: float  # on the examples that say when to stop


@dataclass
class _State:
    """What a descent goes on from."""

    theta: Tensor  # (U,)
    log_temperature: Tensor  # ()
    optimizer: torch.optim.Adam
    best: Fit
    step: int = 0
    waits: int = 0
    examples: int = 0  # that were looked at

    @classmethod
    def begin(cls, start: Tensor, temperature: bool) -> _State:
        """Before the first step."""
        theta = torch.logit(start.clamp(NEAREST, 1 - NEAREST)).requires_grad_()
        log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=temperature)
        groups: list[dict[str, Any]] = [{"params": [theta]}]
        if temperature:
            groups.append({"params": [log_temperature]})
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
        return cls(theta, log_temperature, optimizer, Fit(tuple(start.tolist()), 1.0, 0, math.inf))

    def fade(self, done: float) -> None:
        """Begin a step: the learning rates along half a cosine, no gradient yet."""
        rates = (LEARNING_RATE, TEMPERATURE_RATE)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
        self.optimizer.zero_grad()

    def to_dict(self) -> State:
        return {
            "theta": self.theta.detach(),
            "log_temperature": self.log_temperature.detach(),
            "optimizer": self.optimizer.state_dict(),
            "best": [list(self.best.alphas), self.best.temperature, self.best.steps, self.best.objective],
            "step": self.step,
            "waits": self.waits,
            "examples": self.examples,
        }

    def load(self, saved: State) -> None:
        with torch.no_grad():
            self.theta.copy_(saved["theta"])
            self.log_temperature.copy_(saved["log_temperature"])
        self.optimizer.load_state_dict(saved["optimizer"])
        alphas, temperature, steps, objective = saved["best"]
        self.best = Fit(tuple(alphas), temperature, steps, objective)
        self.step, self.waits, self.examples = saved["step"], saved["waits"], saved["examples"]


@dataclass(frozen=True)
class _Problem:
    """What a descent works on."""

    predictor: Predictor
    data: Data
    stopping: NDArray[np.int64]  # positions of the examples that say when to stop
    units: Units
    metric: Metric
    temperature: bool
    meter: Meter

    def loss(self, theta: Tensor, log_temperature: Tensor, batch: Batch) -> Tensor:
        """The objective added up over a batch, differentiable."""
        layers = dict(example_weighted_layers(self.predictor.model))
        alphas = {
            layers[name]: alpha.to(layers[name].alpha)
            for name, alpha in self.units.spread(torch.sigmoid(theta)).items()
        }
        with differentiable_alpha(alphas):
            logits = self.predictor.whole(self.predictor.prepare(batch.inputs))
        t = log_temperature.exp().to(logits.device, logits.dtype) if self.temperature else 1.0
        return objective(logits, batch.targets, self.metric, t).sum()

    def look(self, alphas: Tensor, step: int) -> Fit:
        """What some α are worth on the examples that say when to stop."""
        set_alpha_(self.predictor.model, self.units.alphas(alphas))
        totals: Any = np.zeros(1)
        for batch in self.data.take(self.stopping):
            logits = self.predictor(self.predictor.prepare(batch.inputs))
            if self.temperature:  # each α at its best T, or the first T to be tried would decide
                totals = totals + score_temperatures(logits, batch.targets)[0].sum(1, dtype=np.float64)
            else:
                totals += float(objective(logits, batch.targets, self.metric, 1.0).sum())
            self.meter.add(len(batch))
        best = int(totals.argmin())
        t = TEMPERATURES[best] if self.temperature else 1.0
        return Fit(tuple(alphas.tolist()), t, step, float(totals[best]) / len(self.stopping))


def descend(
    predictor: Predictor,
    data: Data,
    positions: NDArray[np.int64],
    units: Units,
    start: Tensor,
    *,
    prior: float,
    metric: Metric,
    temperature: bool,
    seed: int,
    journal: Entry | None = None,
    meter: Meter | None = None,
) -> Fit:
    """Find the α of the units on some examples, as this module's text says.

    Args:
        predictor: runs the patched model; its own α are as before afterwards.
        positions: of the examples to use, in increasing order.
        start: α of the units (U,), float64.
        prior: the α of the whole model that the prior is about.
        metric: what to improve.
        temperature: tune T along.
        journal: where the state is kept.
        meter: told of every batch.

    Raises:
        ResourceError: the gradient of a single example does not fit into memory.
    """
    model = predictor.model
    order = positions[stratified_order(data.targets[positions], seed)]
    held = _held_out(len(order))
    fitting = order[held:]
    # Gradients in float16 would vanish without a scale; a compiled graph has none.
    dtype = torch.float32 if predictor.dtype == torch.float16 else predictor.dtype
    runs = Predictor(model, dtype, predictor.channels_last, outputs=predictor.outputs)
    state = _State.begin(start, temperature)
    meter = meter or Meter()
    before = meter.done
    problem = _Problem(runs, data, np.sort(order[:held]), units, metric, temperature, meter)
    plan = _plan(fitting, seed)
    center = torch.logit(torch.tensor(prior, dtype=torch.float64).clamp(NEAREST, 1 - NEAREST))
    with _unchanged(model), evaluation_mode(model):
        if journal and (saved := journal.read()):
            state.load(saved)
            meter.add(state.examples, resumed=True)
        else:
            state.best = problem.look(start, 0)
            state.log_temperature.data.fill_(math.log(state.best.temperature))
        while state.step < len(plan) and state.waits < PATIENCE:
            state.fade(state.step / len(plan))
            rows = plan[state.step]
            for batch in data.take(np.sort(rows)):
                _backward(problem, state, batch, 1 / len(rows))
                meter.add(len(batch))
            with torch.enable_grad():
                penalty = (state.theta - center).square().sum() / (2 * PRIOR**2 * len(fitting))
            penalty.backward()  # type: ignore[no-untyped-call]
            if state.theta.grad is None or not bool(torch.isfinite(state.theta.grad).all()):
                break  # outputs that are not finite: what was found before stands
            state.optimizer.step()
            state.step += 1
            if state.step % EVERY == 0 or state.step == len(plan):
                found = problem.look(rounded(state.theta.detach()), state.step)
                state.waits += 1
                if found.objective < state.best.objective:
                    state.best, state.waits = found, 0
                state.examples = meter.done - before
                if journal:
                    journal.write_when_due(state.to_dict)
    return state.best


def expected_examples(count: int) -> int:
    """About how many examples a descent on so many looks at: two thirds of what it may, as most end early."""
    held = _held_out(count)
    size, steps = _step_size(count - held)
    return 2 * (steps * size + (-(-steps // EVERY) + 1) * held) // 3


def objective(logits: Tensor, targets: Tensor, metric: Metric, temperature: Tensor | float) -> Tensor:
    """What a descent minimises, for each example of logits (N, classes): (N,).

        loss, ece   −log softmax(z/T)[target]
        top-k       sigmoid(−margin),   margin = z[target] − k-th largest other logit

    ECE is no mean over examples; the cross-entropy, a proper score, stands for it.
    The smooth error counts what lies within about one logit of the border.
    """
    logits = logits.float()
    if INFO[metric].sees_confidence:
        return F.cross_entropy(logits / temperature, targets, reduction="none")
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -math.inf)
    k = 1 if metric == "top1" else min(5, logits.shape[1] - 1)
    return torch.sigmoid(others.topk(k, dim=1).values[:, -1:] - own).squeeze(1)


def rounded(theta: Tensor) -> Tensor:
    """α of θ as numbers that can be written down; what is next to 0 or 1 is that."""
    alpha = torch.sigmoid(theta).mul(1e4).round().div(1e4)
    return alpha.masked_fill(alpha < AT_END, 0.0).masked_fill(alpha > 1 - AT_END, 1.0)


def _plan(positions: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """The examples of each step, all equally often."""
    size, steps = _step_size(len(positions))
    rng = np.random.default_rng(seed)
    stream = np.concatenate([rng.permutation(positions) for _ in range(-(-steps * size // len(positions)))])
    return [stream[i * size : (i + 1) * size] for i in range(steps)]


def _step_size(count: int) -> tuple[int, int]:
    """The examples of a step, and the number of steps."""
    size = max(1, min(STEP_EXAMPLES, count * EPOCHS // STEPS + 1))
    return size, min(STEPS, count * EPOCHS // size)


def _held_out(count: int) -> int:
    return min(int(HELD_OUT * count), MOST_HELD_OUT)


def _backward(problem: _Problem, state: _State, batch: Batch, share: float) -> None:
    """Add up the gradient of a batch, in halves where it does not fit into memory."""
    wanted = [t for t in (state.theta, state.log_temperature) if t.requires_grad]
    try:
        with torch.enable_grad():
            loss = problem.loss(state.theta, state.log_temperature, batch) * share
        # Not loss.backward(), which adds up what it has until memory runs out.
        for tensor, gradient in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
            tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise ResourceError(
                "the gradient of one example does not fit into the device's memory",
                "use a smaller `input_size`, `device=cpu`, or `granularity=global`",
            ) from None
    torch.cuda.empty_cache()
    half = len(batch) // 2
    for rows in (slice(half), slice(half, None)):
        part = Batch(batch.inputs[rows], batch.targets[rows], batch.ids[rows])
        _backward(problem, state, part, share)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Parameters are constants meanwhile; they and α are as before on any exit."""
    wanted = {p: p.requires_grad for p in model.parameters()}
    alphas = {layer: layer.alpha.clone() for _, layer in example_weighted_layers(model)}
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, value in wanted.items():
            parameter.requires_grad_(value)
        for layer, alpha in alphas.items():
            layer.set_alpha(alpha)
