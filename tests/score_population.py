"""Networks that are made up: scores whose true worth is known, paired and correlated along α as real ones are.

Logits of an example of class y, at a distance α from the unpatched model:

    z(α) = s·((m + b·g(α))·e_y + u·cos φ(α) + v·sin φ(α)),   φ(α) = θ·(α/α_K)^ρ

with noise u, v ~ N(0, I) and a sureness s that is log-normal, so that the loss of what is wrong is
heavy-tailed; m differs by class, and classes are of unequal size. As u·cos φ + v·sin φ has the same distribution
at every φ, no α is better or worse than 0 by any metric where b = 0: an exact null. θ says
how many predictions change, ρ < 1 how much of that at small α already, g how the effect b rises and falls. With
``rough`` each α has a v of its own: scores along α then have nothing but u in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alphatune.evaluation import Scores
from alphatune.tuning.sweep import Sweep

METRIC_SIGN = {"top1": 1, "loss": -1, "ece": -1}


@dataclass(frozen=True)
class Population:
    """Where examples come from."""

    alphas: tuple[float, ...] = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
    classes: int = 10
    margin: float = 2.5  # m of an average class
    sureness: float = 1.5  # median of s
    tail: float = 0.3  # standard deviation of log s
    turn: float = 0.5  # θ, radians
    bend: float = 1.0  # ρ
    effect: float = 0.0  # b
    best: float = 0.05  # where g is 1
    rough: bool = False

    def draw(self, n: int, rng: np.random.Generator) -> Sweep:
        """Scores of n examples at every α."""
        size = 1 / np.arange(1, self.classes + 1) ** 0.5
        targets = rng.choice(self.classes, n, p=size / size.sum()).astype(np.int32)
        m = self.margin + np.linspace(-0.5, 0.5, self.classes)[targets] * 1.5
        s = (self.sureness * np.exp(self.tail * rng.standard_normal(n))).astype(np.float32)
        shape = n, self.classes
        u, v = rng.standard_normal(shape, dtype=np.float32), rng.standard_normal(shape, dtype=np.float32)
        rows, ids = np.arange(n), np.arange(n)
        scores = []
        for alpha in self.alphas:
            phi = (
                0.0
                if alpha == 0
                else self.turn * (1.0 if self.rough else (alpha / self.alphas[-1]) ** self.bend)
            )
            if self.rough and alpha:
                v = rng.standard_normal(shape, dtype=np.float32)
            z = u * np.float32(np.cos(phi)) + v * np.float32(np.sin(phi))
            z[rows, targets] += m + self.effect * self.shape(alpha)
            z *= s[:, None]
            predicted = z.argmax(1).astype(np.int32)
            top = z[rows, predicted]
            spread = np.log(np.exp(z - top[:, None]).sum(1))
            right = predicted == targets
            loss = top - z[rows, targets] + spread
            scores.append(Scores(ids, targets, predicted, loss, right, right, np.exp(-spread)))
        return Sweep(self.alphas, tuple(scores))

    def shape(self, alpha: float) -> float:
        """g: from 0 at 0 to 1 at the best α and down again."""
        t = alpha / self.best
        return float(t * np.exp(1 - t))

    def worth(self, n: int = 2_000_000, seed: int = 12345) -> dict[str, np.ndarray]:
        """The true gain of each α by metric, from n independent examples, drawn in parts."""
        rng, total, part = np.random.default_rng(seed), None, 100_000
        for _ in range(n // part):
            sweep = self.draw(part, rng)
            sums = np.array([[s.top1.mean(dtype=float), -s.loss.mean(dtype=float)] for s in sweep.scores])
            total = sums if total is None else total + sums
        total = (total - total[0]) / (n // part)
        return {"top1": total[:, 0], "loss": total[:, 1]}
