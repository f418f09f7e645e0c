"""Draw examples at random, class by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def sample(targets: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of ``count`` examples: every class keeps its share to within one example."""
    members = [np.flatnonzero(targets == c) for c in np.unique(targets)]
    share = np.array([len(m) for m in members]) * count / len(targets)
    take = np.floor(share).astype(int)
    extra = rng.permutation(len(members))
    extra = extra[np.argsort(-(share - take)[extra], kind="stable")][: count - take.sum()]
    take[extra] += 1
    return np.concatenate([rng.choice(m, size=k, replace=False) for m, k in zip(members, take, strict=True)])


def partition(
    targets: np.ndarray, sizes: Callable[[int], Sequence[int]], seed: int
) -> tuple[np.ndarray, ...]:
    """Disjoint parts, each as increasing positions: of a class of n examples, ``sizes(n)`` go to the parts.

    What the sizes leave over is in no part. The same on every machine for the
    same targets and seed.

    Raises:
        ValueError: a class has fewer examples than its sizes add up to.
    """
    rng = np.random.default_rng(seed)
    pieces = []
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        cuts = np.cumsum(sizes(len(members)))
        if cuts[-1] > len(members):
            raise ValueError(f"expected at least {cuts[-1]} examples of class {label}, got {len(members)}")
        pieces.append(np.split(members, cuts)[:-1])
    return tuple(np.sort(np.concatenate(part)) for part in zip(*pieces, strict=True))


def hold_out(fraction: float) -> Callable[[int], tuple[int, int]]:
    """Sizes (kept, held out) of a class of n: the nearest whole number to n·fraction, at least 1.

    A class of two or more is in both parts; a single example is kept.
    """

    def sizes(n: int) -> tuple[int, int]:
        held_out = min(max(int(n * fraction + 0.5), 1), n - 1)
        return n - held_out, held_out

    return sizes
