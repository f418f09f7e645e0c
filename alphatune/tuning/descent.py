"""Many numbers of a model at once, by gradient: α of many units, or γ and β.

    minimise over θ    avg ℓ(z(θ)/T, target) + |θ − θ₀|² / (2σ²n)

by Adam on mini-batches. What θ stands for is up to the parameters
(parameters.py): for α it is its log-odds (granularity.py), and the descent
goes on from a coarser α; for γ and β their change (affine.py). ℓ is the
cross-entropy, or for top-1 and top-5 a smooth error; T is 1, or tuned along.
The second term is a Gaussian prior of deviation σ that holds every number near
θ₀, that of the one α of the whole model, or of γ and β as stored: few examples
move many numbers only a little. Part of the examples take no part and say when
to stop; where nothing beats the start on them the start is what comes back,
unchanged.

Where examples are images under several conditions, the average is over the
conditions, or the worst of them, within guards (condition_weights.py), and
images are held out under all of their conditions.

Everything is drawn from the seed. A journal (journal.py) keeps the state, and
a descent that was interrupted goes on from it to the same result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
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
from alphatune.models.measurement import unweighted
from alphatune.norms.patching import example_weighted_layers
from alphatune.statistics.conditions import conditions_of, first_of_image, has_conditions, images_of
from alphatune.tuning.condition_weights import ConditionWeights, GuardedValues, HeldOut, StepLosses
from alphatune.tuning.journal import Entry, State
from alphatune.tuning.objective import Objective
from alphatune.tuning.ordering import stratified_order
from alphatune.tuning.parameters import Parameters
from alphatune.tuning.passes import Data
from alphatune.tuning.temperature import TEMPERATURES, score_temperatures

#: steps that few examples are shared out over, and examples of a step at most
STEPS, STEP_EXAMPLES = 48, 256
TEMPERATURE_RATE = 0.05
#: share of the examples, or images, that say when to stop, and how many at most
HELD_OUT, MOST_HELD_OUT = 0.2, 1000
#: steps from one look at them to the next, and looks without an improvement that end the descent
EVERY, PATIENCE = 8, 2


@dataclass(frozen=True)
class Fit:
    """Where a descent ended."""

    values: tuple[float, ...]  # of the parameters
    temperature: float
    steps: int  # after which this was so; 0 is the start
    objective: float  # on the examples that say when to stop
    within: bool = True  # all guards, on those examples

    @property
    def alphas(self) -> tuple[float, ...]:
        """The values, where they are α of units."""
        return self.values

    def beats(self, other: Fit) -> bool:
        """Whether this is the better one: a guard comes first, and what is outside beats nothing."""
        return self.within and (not other.within or self.objective < other.objective)


@dataclass
class _State:
    """What a descent goes on from."""

    theta: Tensor  # (U,)
    log_temperature: Tensor  # ()
    optimizer: torch.optim.Adam
    best: Fit
    conditions: ConditionWeights | None = None
    step: int = 0
    waits: int = 0
    examples: int = 0  # that were looked at

    @classmethod
    def begin(cls, theta: Tensor, temperature: bool, conditions: ConditionWeights | None = None) -> _State:
        """Before the first step."""
        theta = theta.clone().requires_grad_()
        log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=temperature)
        groups: list[dict[str, Any]] = [{"params": [theta]}]
        if temperature:
            groups.append({"params": [log_temperature]})
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
        return cls(theta, log_temperature, optimizer, Fit((), 1.0, 0, math.inf), conditions)

    def fade(self, rate: float, done: float) -> None:
        """Begin a step: the learning rates along half a cosine, no gradient yet."""
        rates = (rate, TEMPERATURE_RATE)
        for group, most in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = most * 0.5 * (1 + math.cos(math.pi * done))
        self.optimizer.zero_grad()

    def to_dict(self) -> State:
        return {
            "theta": self.theta.detach(),
            "log_temperature": self.log_temperature.detach(),
            "optimizer": self.optimizer.state_dict(),
            "best": [list(self.best.values), *astuple(self.best)[1:]],
            "conditions": self.conditions and self.conditions.to_dict(),
            "step": self.step,
            "waits": self.waits,
            "examples": self.examples,
        }

    def load(self, saved: State) -> None:
        with torch.no_grad():
            self.theta.copy_(saved["theta"])
            self.log_temperature.copy_(saved["log_temperature"])
        self.optimizer.load_state_dict(saved["optimizer"])
        values, *others = saved["best"]
        self.best = Fit(tuple(values), *others)
        if self.conditions:
            self.conditions.load(saved["conditions"])
        self.step, self.waits, self.examples = saved["step"], saved["waits"], saved["examples"]


@dataclass(frozen=True)
class _Problem:
    """What a descent works on."""

    predictor: Predictor
    data: Data
    stopping: NDArray[np.int64]  # positions of the examples that say when to stop
    parameters: Parameters
    metric: Metric
    temperature: bool
    meter: Meter

    def loss(self, state: _State, batch: Batch) -> tuple[Tensor, StepLosses | None]:
        """The objective added up over a batch, differentiable; under conditions also what they are to know."""
        with self.parameters.differentiable(self.predictor.model, state.theta):
            logits = self.predictor.whole(self.predictor.prepare(batch.inputs))
        t = state.log_temperature.exp().to(logits.device, logits.dtype) if self.temperature else 1.0
        losses = smooth_objective(logits, batch.targets, self.metric, t)
        if state.conditions is None:
            return losses.sum(), None
        ids = batch.ids.numpy()
        total = (losses * torch.from_numpy(state.conditions.of_losses(ids)).to(losses)).sum()
        guarded = []
        for place, guard in enumerate(state.conditions.objective.guards):
            theirs = smooth_objective(logits, batch.targets, guard.metric, t)
            prices = torch.from_numpy(state.conditions.of_guard(place, ids)).to(theirs)
            total = total + (theirs * prices).sum()
            guarded.append(_numbers(theirs))
        return total, StepLosses(ids, _numbers(losses), tuple(guarded))

    def look(self, values: Tensor, step: int, conditions: ConditionWeights | None = None) -> Fit:
        """What some values are worth on the examples that say when to stop."""
        self.parameters.set_(self.predictor.model, values)
        totals: Any = np.zeros(1)
        held = None if conditions is None else HeldOut(conditions)
        for batch in self.data.take(self.stopping):
            logits = self.predictor(self.predictor.prepare(batch.inputs))
            at_temperatures = None
            if self.temperature:  # each θ at its best T, or the first T to be tried would decide
                at_temperatures = score_temperatures(logits, batch.targets)[0]
            if held is not None:
                found = [
                    at_temperatures
                    if at_temperatures is not None and INFO[metric].sees_confidence
                    else _numbers(smooth_objective(logits, batch.targets, metric, 1.0))[None]
                    for metric in (self.metric, *held.guard_metrics)
                ]
                held.add(batch.ids.numpy(), *found)
            elif at_temperatures is not None:
                totals = totals + at_temperatures.sum(1, dtype=np.float64)
            else:
                totals += float(smooth_objective(logits, batch.targets, self.metric, 1.0).sum())
            self.meter.add(len(batch))
        worth = totals / len(self.stopping) if held is None else held.objective()
        best = int(worth.argmin())
        t = TEMPERATURES[best] if self.temperature else 1.0
        within = held is None or held.is_within(best)
        return Fit(tuple(values.tolist()), t, step, float(worth[best]), within)


def descend(
    predictor: Predictor,
    data: Data,
    positions: NDArray[np.int64],
    parameters: Parameters,
    start: Tensor,
    *,
    prior: float,
    objective: Objective,
    temperature: bool,
    seed: int,
    journal: Entry | None = None,
    meter: Meter | None = None,
) -> Fit:
    """Find the values of some parameters on some examples, as this module's text says.

    Args:
        predictor: runs the patched model, which is as before afterwards.
        data: where it has ``ids``, they are those of its batches.
        positions: of the examples to use, in increasing order.
        parameters: what is tuned.
        start: their values (U,), float64.
        prior: the value that the prior is about: the α of the whole model, or 0 for γ and β.
        objective: what to improve.
        temperature: tune T along.
        journal: where the state is kept.
        meter: told of every batch.

    Raises:
        ResourceError: the gradient of a single example does not fit into memory.
    """
    model = predictor.model
    stopping, fitting, ids = _parted(data, positions, seed)
    runs = differentiable(predictor)
    conditions = None if ids is None else ConditionWeights.begin(objective, ids[fitting])
    state = _State.begin(parameters.to_theta(start), temperature, conditions)
    meter = meter or Meter()
    before = meter.done
    problem = _Problem(runs, data, stopping, parameters, objective.metric, temperature, meter)
    numbers = None if ids is None else conditions_of(ids[fitting])
    plan = _plan(fitting, seed, _step_size(len(fitting), parameters.epochs, parameters.most_steps), numbers)
    center = parameters.to_theta(torch.tensor(prior, dtype=torch.float64))
    deviation = parameters.prior_deviation
    with unchanged(model), evaluation_mode(model), parameters.kept(model):
        parameters.set_(model, start)  # what the parameters leave alone is as unpatched
        if journal and (saved := journal.read()):
            state.load(saved)
            meter.add(state.examples, resumed=True)
        else:
            if conditions and ids is not None:
                conditions.unpatched = _unpatched_values(problem, conditions.objective, positions, ids)
            state.best = problem.look(start, 0, conditions)
            state.log_temperature.data.fill_(math.log(state.best.temperature))
        while state.step < len(plan) and state.waits < PATIENCE:
            rows = plan[state.step]
            state.fade(parameters.learning_rate(len(rows) / STEP_EXAMPLES), state.step / len(plan))
            for batch in data.take(np.sort(rows)):
                _backward(problem, state, batch, 1 / len(rows))
                meter.add(len(batch))
            with torch.enable_grad():
                penalty = (state.theta - center).square().sum() / (2 * deviation**2 * len(fitting))
            penalty.backward()  # type: ignore[no-untyped-call]
            if state.theta.grad is None or not bool(torch.isfinite(state.theta.grad).all()):
                break  # outputs that are not finite: what was found before stands
            state.optimizer.step()
            if conditions:
                conditions.end_step()
            state.step += 1
            if state.step % EVERY == 0 or state.step == len(plan):
                found = problem.look(parameters.to_values(state.theta.detach()), state.step, conditions)
                if not (conditions and conditions.adapts):  # or what is minimised still changes
                    state.waits += 1
                if found.beats(state.best):
                    state.best, state.waits = found, 0
                state.examples = meter.done - before
                if journal:
                    journal.write_when_due(state.to_dict)
    return state.best


def expected_examples(count: int, conditions: int = 1, epochs: int = 4, most: int = STEPS) -> int:
    """About how many examples a descent on so many looks at: two thirds of what it may, as most end early."""
    held = conditions * _held_out(count // conditions)
    size, steps = _step_size(count - held, epochs, most)
    return 2 * (steps * size + (-(-steps // EVERY) + 1) * held) // 3


def differentiable(predictor: Predictor) -> Predictor:
    """The same for gradients: they would vanish in float16 without a scale, and a compiled graph has none."""
    dtype = torch.float32 if predictor.dtype == torch.float16 else predictor.dtype
    return Predictor(predictor.model, dtype, predictor.channels_last, outputs=predictor.outputs)


def smooth_objective(logits: Tensor, targets: Tensor, metric: Metric, temperature: Tensor | float) -> Tensor:
    """What a descent minimises, for each example of logits (N, classes): (N,).

        loss, ece   −log softmax(z/T)[target]
        top-k       sigmoid(−margin),   margin = z[target] − k-th largest other logit

    ECE is no mean over examples; the cross-entropy, a proper score, stands for it.
    The smooth error counts what lies within about one logit of the border.
    """
    logits = logits.float()
    if INFO[metric].follows_loss:
        return F.cross_entropy(logits / temperature, targets, reduction="none")
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -math.inf)
    k = 1 if metric == "top1" else min(5, logits.shape[1] - 1)
    return torch.sigmoid(others.topk(k, dim=1).values[:, -1:] - own).squeeze(1)


def _parted(
    data: Data, positions: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Positions that say when to stop, in increasing order; those that are fitted to; ids of all, under conditions.

    Images are held out under all of their conditions.
    """
    ids: NDArray[np.int64] | None = getattr(data, "ids", None)
    if ids is None or not has_conditions(ids):
        order = positions[stratified_order(data.targets[positions], seed)]
        held = _held_out(len(order))
        return np.sort(order[:held]), order[held:], None
    images = images_of(ids[positions])
    first = first_of_image(ids[positions])
    # Data sets of one's own share no images: each gives its part.
    kinds = np.stack([conditions_of(ids[positions][first]), data.targets[positions][first]])
    order = first[stratified_order(np.unique(kinds, axis=1, return_inverse=True)[1].reshape(-1), seed)]
    is_held = np.isin(images, images[order[: _held_out(len(order))]])
    return positions[is_held], positions[~is_held], ids


def _unpatched_values(
    problem: _Problem, objective: Objective, positions: NDArray[np.int64], ids: NDArray[np.int64]
) -> tuple[GuardedValues, ...]:
    """How the unpatched network scores on each guard's metric, for every example of its condition."""
    wanted = [guard.condition for guard in objective.guards]
    rows = positions[np.isin(conditions_of(ids[positions]), wanted)]
    parts: list[list[GuardedValues]] = [[] for _ in objective.guards]
    if len(rows):
        with unweighted(problem.predictor.model):
            for batch in problem.data.take(rows):
                logits = problem.predictor(problem.predictor.prepare(batch.inputs))
                own = batch.ids.numpy()
                for part, guard in zip(parts, objective.guards, strict=True):
                    of_it = conditions_of(own) == guard.condition
                    values = _numbers(smooth_objective(logits, batch.targets, guard.metric, 1.0))
                    part.append(GuardedValues(own[of_it], values[of_it]))
                problem.meter.add(len(batch))
    return tuple(map(GuardedValues.joined, parts))


def _numbers(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy()


def _plan(
    positions: NDArray[np.int64],
    seed: int,
    shape: tuple[int, int],
    conditions: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """The examples of each step, all equally often; conditions are spread evenly over the steps."""
    size, steps = shape
    rng = np.random.default_rng(seed)
    rounds = range(-(-steps * size // len(positions)))
    if conditions is None:
        stream = np.concatenate([rng.permutation(positions) for _ in rounds])
    else:
        seeds = rng.integers(2**32, size=len(rounds))
        stream = np.concatenate([positions[stratified_order(conditions, s)] for s in seeds.tolist()])
    return [stream[i * size : (i + 1) * size] for i in range(steps)]


def _step_size(count: int, epochs: int, most: int) -> tuple[int, int]:
    """The examples of a step, and the number of steps."""
    size = max(1, min(STEP_EXAMPLES, count * epochs // STEPS + 1))
    return size, min(most, count * epochs // size)


def _held_out(count: int) -> int:
    return min(int(HELD_OUT * count), MOST_HELD_OUT)


def _backward(problem: _Problem, state: _State, batch: Batch, share: float) -> None:
    """Add up the gradient of a batch, in halves where it does not fit into memory."""
    wanted = [t for t in (state.theta, state.log_temperature) if t.requires_grad]
    try:
        with torch.enable_grad():
            loss, seen = problem.loss(state, batch)
            loss = loss * share
        # Not loss.backward(), which adds up what it has until memory runs out.
        for tensor, gradient in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
            tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        if state.conditions and seen:
            state.conditions.see(seen)
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
def unchanged(model: nn.Module) -> Iterator[None]:
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
