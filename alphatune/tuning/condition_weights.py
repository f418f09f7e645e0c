"""How examples of several conditions weigh in a descent (descent.py), and the price of a guard.

The objective of a step is a sum over its examples e, of condition k(e), loss
ℓ_e and cost c_e to a guard,

    Σ_e q_k(e)·(n/n_k(e))·ℓ_e  +  Σ_g λ_g·Σ_{e of g} (n/n_k(e))·c_e,    over the step's size

whose mean is Σ_k q_k·mean_k ℓ + Σ_g λ_g·mean c_g, whatever the numbers n_k of
examples. For the mean over conditions q_k = 1/K. For the worst condition the
q_k follow the losses (group DRO, Sagawa et al. 2020, algorithm 1):

    q_k ← (1 − μ)·q_k·exp(η·mean_k ℓ) / Σ_j q_j·exp(η·mean_j ℓ) + μ/K      after each step

The share μ (Herbster & Warmuth 1998) forgets: a condition that was worst by far
at first does not keep the weight once another one is.

A guard's cost is the smooth objective of its metric (descent.py) minus that of
the unpatched network on the same example, and its price λ_g rises while the
cost exceeds the margin (dual ascent with a decay):

    λ_g ← max(0, κ·λ_g + ρ·(mean c_g − margin))              after each step
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alphatune.core.metrics import INFO, Metric
from alphatune.statistics.conditions import Ids, conditions_of
from alphatune.tuning.journal import State
from alphatune.tuning.objective import Guard, Objective

#: η and μ; a descent has a few dozen steps, and losses differ by tenths
WORST_RATE, SHARED = 1.0, 0.1
#: ρ and κ. With a larger ρ, or κ = 1, the noise of each step raises the price, and the descent gains less
PRICE_RATE, KEPT_PRICE = 30.0, 0.9
#: a loss in nats changes about this many times as much as a share of the examples
NATS_TO_SHARE = 5.0


@dataclass(frozen=True)
class StepLosses:
    """What the network made of some examples."""

    ids: Ids  # (n,)
    losses: NDArray[np.float64]  # (n,)
    guarded: tuple[NDArray[np.float64], ...]  # (n,) for each guard: the objective of its metric


@dataclass(frozen=True)
class GuardedValues:
    """What the unpatched network is worth on a guard's condition, example by example."""

    ids: Ids  # (n,), in increasing order
    values: NDArray[np.float64]  # (n,)

    @classmethod
    def joined(cls, parts: Sequence[GuardedValues]) -> GuardedValues:
        """Those of several batches."""
        ids = np.concatenate([np.empty(0, np.int64), *(part.ids for part in parts)])
        values = np.concatenate([np.empty(0), *(part.values for part in parts)])
        order = np.argsort(ids)
        return cls(ids[order], values[order])


@dataclass
class ConditionWeights:
    """The weights q of the conditions and the prices λ of the guards, as a descent goes on.

    Args:
        counts: n_k, examples of each condition that are fitted to, in the order of their numbers.
    """

    objective: Objective
    counts: dict[int, int]
    log_q: NDArray[np.float64]  # (K,)
    prices: NDArray[np.float64]  # (guards,)
    unpatched: tuple[GuardedValues, ...] = ()  # for each guard
    seen: list[StepLosses] = field(default_factory=list)  # of this step

    @classmethod
    def begin(cls, objective: Objective, ids: Ids) -> ConditionWeights:
        """Equal weights, and no price yet.

        Args:
            ids: of the examples that are fitted to.
        """
        numbers, counts = np.unique(conditions_of(ids), return_counts=True)
        k = len(numbers)
        weights = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        return cls(objective, weights, np.full(k, -np.log(k)), np.zeros(len(objective.guards)))

    @property
    def weights(self) -> dict[int, float]:
        """q of each condition; they add up to 1."""
        return dict(zip(self.counts, np.exp(self.log_q).tolist(), strict=True))

    @property
    def adapts(self) -> bool:
        """Whether weights, or the price of a guard, follow what the descent finds now."""
        return self.objective.over == "worst" or bool(self.prices.any())

    def of_losses(self, ids: Ids) -> NDArray[np.float64]:
        """What each example's loss is multiplied by (n,)."""
        total, q = sum(self.counts.values()), self.weights
        share = {k: q[k] * total / count for k, count in self.counts.items()}
        return np.array([share[k] for k in conditions_of(ids).tolist()])

    def of_guard(self, place: int, ids: Ids) -> NDArray[np.float64]:
        """What each example's objective of a guard is multiplied by (n,); 0 outside its condition."""
        condition = self.objective.guards[place].condition
        share = sum(self.counts.values()) / max(1, self.counts.get(condition, 0))
        return np.where(conditions_of(ids) == condition, self.prices[place] * share, 0.0)

    def costs(self, place: int, ids: Ids, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a guard's condition loses, on those of some examples (..., n) that are of it."""
        of_it = conditions_of(ids) == self.objective.guards[place].condition
        unpatched = self.unpatched[place]
        costs: NDArray[np.float64] = (
            values[..., of_it] - unpatched.values[np.searchsorted(unpatched.ids, ids[of_it])]
        )
        return costs

    def see(self, losses: StepLosses) -> None:
        """Take note of some examples of the present step."""
        self.seen.append(losses)

    def end_step(self) -> None:
        """Follow the losses and costs of the step."""
        if self.objective.over == "worst":
            numbers = np.concatenate([conditions_of(part.ids) for part in self.seen])
            losses = np.concatenate([part.losses for part in self.seen])
            for row, k in enumerate(self.counts):
                if (of_k := numbers == k).any():
                    self.log_q[row] += WORST_RATE * losses[of_k].mean()
            self.log_q -= np.logaddexp.reduce(self.log_q)
            self.log_q = np.log((1 - SHARED) * np.exp(self.log_q) + SHARED / len(self.counts))
        for place, guard in enumerate(self.objective.guards):
            costs = np.concatenate([self.costs(place, part.ids, part.guarded[place]) for part in self.seen])
            if len(costs):
                excess = costs.mean() - margin_of(guard)
                rate = _price_rate(self.objective.metric, guard.metric)
                self.prices[place] = max(0.0, KEPT_PRICE * self.prices[place] + rate * excess)
        self.seen.clear()

    def to_dict(self) -> State:
        """Plain values and tensors, for a journal."""
        return {
            "log_q": self.log_q.tolist(),
            "prices": self.prices.tolist(),
            "unpatched": [[torch.from_numpy(u.ids), torch.from_numpy(u.values)] for u in self.unpatched],
        }

    def load(self, saved: State) -> None:
        """Go on from ``to_dict``."""
        self.log_q, self.prices = np.array(saved["log_q"]), np.array(saved["prices"])
        self.unpatched = tuple(GuardedValues(i.numpy(), v.numpy()) for i, v in saved["unpatched"])


class HeldOut:
    """What the held-out examples say of some parameters: the objective, and whether the guards hold."""

    def __init__(self, conditions: ConditionWeights) -> None:
        self._conditions = conditions
        self._totals: dict[int, NDArray[np.float64]] = {}  # of each condition, at each temperature
        self._counts: Counter[int] = Counter()
        self._costs: list[list[NDArray[np.float64]]] = [[] for _ in conditions.objective.guards]

    @property
    def guard_metrics(self) -> tuple[Metric, ...]:
        return tuple(guard.metric for guard in self._conditions.objective.guards)

    def add(self, ids: Ids, losses: NDArray[Any], *guarded: NDArray[Any]) -> None:
        """Take up a batch.

        Args:
            losses: (T, n), at each temperature; or (1, n).
            guarded: the same of each guard's metric.
        """
        numbers = conditions_of(ids)
        for k in np.unique(numbers).tolist():
            of_k = losses[:, numbers == k]
            self._totals[k] = self._totals.get(k, 0.0) + of_k.sum(1, dtype=np.float64)
            self._counts[k] += of_k.shape[1]
        for place, values in enumerate(guarded):
            self._costs[place].append(self._conditions.costs(place, ids, values))

    def objective(self) -> NDArray[np.float64]:
        """The mean over the conditions, or the worst of them, at each temperature."""
        means = np.stack([total / self._counts[k] for k, total in self._totals.items()])
        worst: NDArray[np.float64] = means.max(0)
        return worst if self._conditions.objective.over == "worst" else means.mean(0)

    def is_within(self, temperature: int) -> bool:
        """Whether all guards hold at one of the temperatures, by its number."""
        for guard, parts in zip(self._conditions.objective.guards, self._costs, strict=True):
            costs = np.concatenate(parts, axis=1)
            if not is_within(guard, costs[min(temperature, len(costs) - 1)]):
                return False
        return True


def _price_rate(objective: Metric, guard: Metric) -> float:
    """ρ, in units of the objective per unit of the guard's metric."""
    unit = {metric: NATS_TO_SHARE if INFO[metric].sees_confidence else 1.0 for metric in (objective, guard)}
    return PRICE_RATE * unit[objective] / unit[guard]


def margin_of(guard: Guard) -> float:
    """What a guard's condition may lose; without a margin nothing, as the test that follows wants."""
    return 0.0 if guard.margin is None else guard.margin


def is_within(guard: Guard, costs: NDArray[np.float64]) -> bool:
    """Whether a guard's costs (n,) are within its margin but for one standard error of their mean.

    So loose, because the test that decides comes afterwards, on other examples:
    here a small held-out set should not throw away what would pass it.
    """
    if len(costs) == 0:
        return True
    error = costs.std(ddof=1) / np.sqrt(len(costs)) if len(costs) > 1 else 0.0
    return bool(costs.mean() - margin_of(guard) <= error)
