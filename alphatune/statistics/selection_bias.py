"""How far a cross-fitted gain strays from what its choices are worth.

Divided by its standard error the gain of one α that nobody chose is normal.
That of α chosen fold by fold is not where several α do about as well, as each
fold's examples have a say in what the *others* are scored at. An α that is
lucky on the whole is chosen in all folds and scored on its luck; where two are
level, a fold is scored at the one that its own examples spoke against. The
folds' errors then depend on each other, with any number of examples: the
stability under which a plain interval around a cross-validated mean is right
(Bayle, Bayle, Janson & Mackey 2020) is not given there.

So the whole procedure is repeated on made-up sums of differences, correlated
over α as the real ones are: choose on the other folds, score, subtract the true
worth of what was chosen. The sums are normal (the central limit theorem over
many α: Chernozhukov, Chetverikov & Kato 2013), or where a few examples changed
sides, in whose counts ties are frequent, those of the real differences with
random signs. Only the true means have to be supposed:

- to test whether there is any effect, all are 0;
- for the interval, α within sqrt(log n) standard errors of the best are taken to
  be level with it and the others to be as far below as they were measured (Andrews &
  Soares 2010). Where one α is clearly the best nothing is left of the
  dependence, and the limits are those of the normal distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

FloatArray = NDArray[np.float64]

REPEATS = 4000
#: of these at a time, so that memory stays small
_PART = 250
#: with no more examples that change sides random signs are drawn for each
_FEW = 2000
#: so many α stand for more of them: neighbours hardly differ
_MOST_ALPHAS = 200


@dataclass(frozen=True)
class Limits:
    """Of (gain − worth)/error, as if it were a normal variable."""

    low: float
    high: float
    #: p is to be multiplied by it, as if so many independent α had been tried
    effective_tests: float

    @classmethod
    def without_choice(cls, confidence: float) -> Limits:
        """For what had no choice, or chose on other examples than it was scored on."""
        z = float(ndtri(0.5 + confidence / 2))
        return cls(-z, z, 1.0)


def limits_of_choosing(
    differences: FloatArray,
    fold: NDArray[np.int64],
    chosen: NDArray[np.int64],
    confidence: float,
    rng: np.random.Generator,
    confirming: int = 0,
) -> Limits:
    """Limits for the gain of the best α by the other folds, and what choosing does to its p.

    Args:
        differences: scores less those of the unpatched model (alphas, n); the first row is 0.
        fold: of each example (n,), counted from 0.
        chosen: index of the α of each fold (folds,).
        confirming: further examples, scored at the best α by all folds, that had no say in any choice.
    """
    if len(differences) > _MOST_ALPHAS:
        some = np.linspace(0, len(differences) - 1, _MOST_ALPHAS).astype(np.int64)
        differences = differences[np.union1d(some, chosen)]
    n, sizes = len(fold), np.bincount(fold)
    means = differences.mean(axis=1)
    centred = differences - means[:, None]
    covariance = centred @ centred.T / (n - 1)
    below = means.max() - means
    leader, spread = int(means.argmax()), covariance.diagonal()
    error = np.sqrt(np.maximum(spread[leader] + spread - 2 * covariance[leader], 0) / n)
    level = below <= np.sqrt(np.log(n)) * error
    suppositions = np.stack([np.zeros_like(means), np.where(level, 0.0, -below)])

    moved = differences.any(axis=0)
    all_sizes = np.append(sizes, confirming) if confirming else sizes
    if moved.sum() <= _FEW and np.isin(differences, (-1, 0, 1)).all():
        parts = [differences[:, moved & (fold == k)].T for k in range(len(sizes))]
        if confirming:  # as many of them change sides, as far as these tell
            like = np.concatenate(parts)
            count = round(len(like) * confirming / n)
            parts.append(like[rng.choice(len(like), count, replace=count > len(like))])
        draw, squares = _signed(parts, rng)
    else:
        draw, squares = _normal(covariance, all_sizes, rng)
    strays = [_strays(draw(), squares, sizes, suppositions) for _ in range(REPEATS // _PART)]
    no_effect, measured = np.concatenate(strays, axis=1)

    plain, tail = Limits.without_choice(confidence), (1 - confidence) / 2
    # Of counts many are equal: one that was drawn is a limit, and inside whatever rounding does.
    low, high = np.quantile(measured, [tail, 1 - tail], method="inverted_cdf")
    low, high = low - 1e-9, high + 1e-9
    limit = np.quantile(no_effect, 1 - tail, method="inverted_cdf")
    effective_tests = max(1.0, tail / float(ndtr(-limit)))
    return Limits(min(float(low), plain.low), max(float(high), plain.high), effective_tests)


def _normal(
    covariance: FloatArray, sizes: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Callable[[], FloatArray], FloatArray]:
    """Draws sums over folds (repeats, folds, alphas); and their variances (folds, alphas)."""
    values, vectors = np.linalg.eigh(covariance)
    real = values > 1e-12 * values[-1]
    root = (vectors[:, real] * np.sqrt(values[real])).T

    def draw() -> FloatArray:
        sums: FloatArray = rng.standard_normal((_PART, len(sizes), len(root))) @ root
        return sums * np.sqrt(sizes)[:, None]

    return draw, sizes[:, None] * covariance.diagonal()


def _signed(
    parts: Sequence[FloatArray], rng: np.random.Generator
) -> tuple[Callable[[], FloatArray], FloatArray]:
    """The same of each fold's differences (n, alphas) with random signs."""
    parts = [part.astype(np.float32) for part in parts]

    def draw() -> FloatArray:
        sums = [(2 * rng.integers(0, 2, (_PART, len(part))) - 1).astype(np.float32) @ part for part in parts]
        return np.stack(sums, axis=1).astype(np.float64)

    return draw, np.stack([(part**2).sum(axis=0) for part in parts]).astype(np.float64)


def _strays(
    sums: FloatArray, squares: FloatArray, sizes: NDArray[np.int64], suppositions: FloatArray
) -> FloatArray:
    """(gain − worth)/error (suppositions, repeats), 0 where all folds chose what has no error.

    Args:
        sums, squares: of each fold, and of the confirming examples if there are any.
        sizes: of the folds, which choose for each other, and all together for the confirming examples.
    """
    left_out, counts = sums, sizes
    if len(sums[0]) > len(sizes):  # nothing is left out for those that confirm
        left_out = np.concatenate([sums[:, :-1], np.zeros_like(sums[:, -1:])], axis=1)
        counts = np.append(sizes, 0)
    others = (left_out.sum(axis=1, keepdims=True) - left_out) / (sizes.sum() - counts)[:, None]
    strays = np.zeros((len(suppositions), len(sums)))
    for stray, means in zip(strays, suppositions, strict=True):
        chosen = (others + means).argmax(axis=2)
        error = np.sqrt(squares[np.arange(len(squares)), chosen].sum(axis=1))
        gain = np.take_along_axis(sums, chosen[:, :, None], axis=2).sum(axis=(1, 2))
        np.divide(gain, error, out=stray, where=error > 0)
    return strays
