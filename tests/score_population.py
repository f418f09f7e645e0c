"""Networks that are made up: scores whose true worth is known, paired and correlated along α as real ones are.

Logits of an example of class y, with the sureness s and the noise u, v ~ N(0, I) of its own:

    z(α) = s·((m_y + b·g(α))·e_y + u·cos φ(α) + v·sin φ(α)),   φ(α) = θ·α/0.3

Classes are of unequal size and difficulty m_y. s is log-normal, so that losses are heavy-tailed where s is large.
u·cos φ + v·sin φ has one distribution for all φ: where b = 0 no α is better or worse than another by any metric,
exactly. θ says how many predictions change on the way; g(α) = t·exp(1 − t), t = α/0.05, how the effect b rises and falls.
With ``rough`` each α has a v of its own: scores along α have nothing in common but those at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphatune.statistics.scores import Scores
from alphatune.tuning.alphas import AUTO
from alphatune.tuning.sweep import Sweep

CLASSES = 10
BEST = 0.05


@dataclass(frozen=True)
class Examples:
    """What is an example's own, at any α."""

    targets: NDArray[np.int32]
    margin: NDArray[np.float32]
    sureness: NDArray[np.float32]
    u: NDArray[np.float32]
    v: NDArray[np.float32]


@dataclass(frozen=True)
class Population:
    """Where examples come from."""

    effect: float = 0.0  # b
    alphas: tuple[float, ...] = AUTO
    margin: float = 2.5  # of an average class
    sureness: float = 1.5  # median of s
    tail: float = 0.3  # standard deviation of log s
    turn: float = 0.5  # θ, radians
    rough: bool = False

    def examples(self, n: int, rng: np.random.Generator) -> Examples:
        size = np.arange(1, CLASSES + 1) ** -0.5
        targets = rng.choice(CLASSES, n, p=size / size.sum()).astype(np.int32)
        margin = (self.margin + np.linspace(-0.75, 0.75, CLASSES)[targets]).astype(np.float32)
        sureness = self.sureness * np.exp(self.tail * rng.standard_normal(n, dtype=np.float32))
        u, v = rng.standard_normal((2, n, CLASSES), dtype=np.float32)
        return Examples(targets, margin, sureness.astype(np.float32), u, v)

    def logits(self, examples: Examples, alpha: float) -> NDArray[np.float32]:
        """z(α), of a v that is smooth in α."""
        phi, t = self.turn * alpha / 0.3, alpha / BEST
        z: NDArray[np.float32] = examples.u * np.float32(np.cos(phi)) + examples.v * np.float32(np.sin(phi))
        rows = np.arange(len(z))
        z[rows, examples.targets] += examples.margin + np.float32(self.effect * t * np.exp(1 - t))
        return z * examples.sureness[:, None]

    def draw(self, n: int, rng: np.random.Generator) -> Sweep:
        """Scores of n examples at every α."""
        examples = self.examples(n, rng)
        scores = []
        for alpha in self.alphas:
            z = self.logits(examples, alpha)
            if self.rough and alpha:
                own = Examples(**{**vars(examples), "v": rng.standard_normal((n, CLASSES), dtype=np.float32)})
                t = alpha / BEST
                still = Population(self.effect * t * np.exp(1 - t), turn=self.turn)
                z = still.logits(own, BEST)
            scores.append(scored(z, examples.targets))
        return Sweep(self.alphas, tuple(scores))


@dataclass(frozen=True)
class Sharpened:
    """Networks that are too sure by a factor of each α; at 1 they know how often they are right, but for a little noise."""

    factors: tuple[float, ...]
    alphas: tuple[float, ...] = (0, 0.05, 0.1, 0.2, 0.3, 0.5)

    def draw(self, n: int, rng: np.random.Generator) -> Sweep:
        """Scores of n examples at every α."""
        z = 2 * rng.standard_normal((n, CLASSES)).astype(np.float32)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        targets = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1).astype(np.int32)
        noise = rng.standard_normal((n, CLASSES)).astype(np.float32)
        at_each = zip(self.alphas, self.factors, strict=True)
        scores = [
            scored((z + 0.3 * alpha * noise) * np.float32(factor), targets) for alpha, factor in at_each
        ]
        return Sweep(self.alphas, tuple(scores))


def scored(z: NDArray[np.float32], targets: NDArray[np.int32]) -> Scores:
    """What ``score_logits`` gives, but for top-5."""
    rows = np.arange(len(z))
    predicted = z.argmax(axis=1).astype(np.int32)
    top, right = z[rows, predicted], predicted == targets
    spread = np.log(np.exp(z - top[:, None]).sum(axis=1))
    return Scores(rows, targets, predicted, top - z[rows, targets] + spread, right, right, np.exp(-spread))
