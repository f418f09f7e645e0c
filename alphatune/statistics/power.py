"""How small a gain some examples can tell from luck, and how many examples a gain needs.

"Can tell" means: of 100 runs on new examples, 80 find the gain significant (two-sided, 95 %). With α fixed beforehand
that needs, of the mean of a paired difference with standard deviation σ,

    n = (z₁ + z₂)²·σ² / gain²,   z₁ = Φ⁻¹(0.975), z₂ = Φ⁻¹(0.8)

Of right and wrong only the examples count that turn from one to the other, a share ψ. McNemar's exact test looks at how
many of them, m, turn for the better; before the run m is random as well. So its power is (Duffy 1984, Biometrics 40)

    Σ_m Bin(m; n, ψ)·P(B ≥ c(m)),   B ~ Bin(m, (ψ + gain)/(2ψ)),   P(Bin(m, 1/2) ≥ c(m)) ≤ 0.025

computed as it stands. With many examples that is n = (z₁·√ψ + z₂·√(ψ − gain²))²/gain² (``connor``).

But α is not fixed: it is chosen, from some of the examples or fold by fold, and the test allows for that. This costs
as much as if only a share of the examples counted (``EFFECTIVE``), which was counted in simulations of the whole
procedure where the gain rises to its best and is lost again at 2.7 times that α. "Gain" is that of the best α. At the
gain that is said to be found in 80 % of runs, 78 to 90 % found it, 85 % on average, by the kind of differences
(tests/statistics/test_power.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, ndtri

from alphatune.results.power import MOST_EXAMPLES, Choice
from alphatune.statistics.calibration_error import ECE_BINS, calibration_bins, calibration_shares
from alphatune.statistics.gain import CONFIDENCE, Calibration

POWER = 0.8
#: examples that count, as a share of all: for right and wrong, and for other means (tests/statistics/test_power.py)
EFFECTIVE: dict[Choice, tuple[float, float]] = {
    "cross-fitted": (0.68, 1.0),
    "part": (0.6, 0.5),
    "progressive": (0.6, 0.5),
    "halves": (1.0, 1.0),
}
#: with more examples that turn the normal distribution will do
_MANY = 2000
#: halvings of the range of gains, or of numbers of examples, that are enough
_HALVINGS = 40


@dataclass(frozen=True)
class Spread:
    """How much the paired difference varies from example to example.

    Args:
        deviation: its standard deviation, in the metric's unit.
        discordant: share of the examples that turn from right to wrong or back; None for other metrics.
    """

    deviation: float
    discordant: float | None = None


def smallest_gain(spread: Spread, n: int, choice: Choice, confidence: float = CONFIDENCE) -> float:
    """The smallest gain that n examples can tell from luck, in the metric's unit; 1 for a share that none can."""
    counted = n * _effective(spread, choice)
    if spread.discordant is None:
        return _quantiles(confidence) * spread.deviation / math.sqrt(counted)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        gain = (low + high) / 2
        enough = _finds(counted, spread.discordant, gain, confidence)
        low, high = (low, gain) if enough else (gain, high)
    return high


def examples_needed(spread: Spread, gain: float, choice: Choice, confidence: float = CONFIDENCE) -> int:
    """How many examples can tell a gain from luck, ``MOST_EXAMPLES`` at most."""
    if spread.discordant is None:
        needed = (_quantiles(confidence) * spread.deviation / max(gain, 1e-12)) ** 2
    else:
        needed, most = 1.0, float(MOST_EXAMPLES)
        for _ in range(_HALVINGS):
            n = math.sqrt(needed * most)
            enough = _finds(n, spread.discordant, gain, confidence)
            needed, most = (needed, n) if enough else (n, most)
    return math.ceil(min(needed / _effective(spread, choice), MOST_EXAMPLES))


def mcnemar_power(n: int, discordant: float, gain: float, confidence: float = CONFIDENCE) -> float:
    """Probability that McNemar's exact test finds a gain; as this module's text says.

    Args:
        discordant: share of the examples that turn from right to wrong or back; at least ``gain`` of them do.
    """
    discordant = min(max(discordant, gain), 1.0)
    if discordant == 0:
        return 0.0
    middle, reach = n * discordant, 6 * math.sqrt(n * discordant * (1 - discordant)) + 6
    m = np.arange(max(0, math.floor(middle - reach)), min(n, math.ceil(middle + reach)) + 1)
    weight = np.diff(bdtr(np.concatenate([[m[0] - 1], m]), n, discordant), prepend=0.0)[1:] if m[0] else (
        np.diff(bdtr(m, n, discordant), prepend=0.0)
    )  # fmt: skip
    tail = (1 - confidence) / 2
    critical = np.ceil(m / 2 - ndtri(tail) * np.sqrt(m) / 2) - 2
    for _ in range(5):  # bdtrc(k) is the probability of more than k
        critical += (bdtrc(critical - 1, m, 0.5) > tail) & (critical <= m)
    better = (discordant + gain) / (2 * discordant)
    found = np.where(critical > m, 0.0, bdtrc(np.minimum(critical, m) - 1, m, better))
    return float((weight * found).sum())


def _finds(n: float, discordant: float, gain: float, confidence: float) -> bool:
    """Whether n examples are enough for a gain."""
    if n * max(discordant, gain) > _MANY:  # the exact test has to see one more example turn
        return n >= connor(discordant, gain, confidence) + 1 / gain
    return mcnemar_power(round(n), discordant, gain, confidence) >= POWER


def connor(discordant: float, gain: float, confidence: float = CONFIDENCE, power: float = POWER) -> float:
    """About how many examples find a gain by McNemar's test with a given power.

    Source: Connor 1987, Biometrics 43, page 209.
    """
    discordant = max(discordant, gain)  # that many have to turn
    z1, z2 = float(ndtri(0.5 + confidence / 2)), float(ndtri(power))
    return (z1 * math.sqrt(discordant) + z2 * math.sqrt(discordant - gain**2)) ** 2 / gain**2


def share_spread(better: float, worse: float) -> Spread:
    """Of right and wrong, from the shares of the examples that turn each way."""
    discordant = better + worse
    return Spread(math.sqrt(max(discordant - (better - worse) ** 2, 0.0)), discordant)


def spread_of(difference: NDArray[np.float64], counts: bool) -> Spread:
    """Of paired differences (n,).

    Args:
        counts: whether each is −1, 0 or 1.
    """
    if counts:
        return share_spread(float((difference > 0).mean()), float((difference < 0).mean()))
    return Spread(float(difference.std()))


def calibration_spread(after: Calibration, before: Calibration) -> Spread:
    """Of the calibration error, which is no mean: its error to first order, and what noise hides of a gain.

        ECE = mean of sᵢ·(confidenceᵢ − rightᵢ),  sᵢ the sign of its bin's sum

    In a bin that is well calibrated noise alone leaves √(2·v_b/(π·n_b)) on average, v_b being the variance in the bin.
    An ECE cannot be seen to fall below their mean, which shrinks with √n as errors do; it is added to the deviation.
    """
    confidence, correct = after
    bins, gaps = calibration_bins(confidence), confidence.astype(np.float64) - correct
    counts = np.bincount(bins, minlength=ECE_BINS)
    means = np.bincount(bins, gaps, ECE_BINS) / np.maximum(counts, 1)
    squares = np.bincount(bins, (gaps - means[bins]) ** 2, ECE_BINS)
    hidden = math.sqrt(2 / math.pi) * float(np.sqrt(squares).sum()) / math.sqrt(len(gaps))
    difference = calibration_shares(*before) - calibration_shares(*after)
    return Spread(float(difference.std()) + hidden / _quantiles(CONFIDENCE))


def _effective(spread: Spread, choice: Choice) -> float:
    return EFFECTIVE[choice][0 if spread.discordant is not None else 1]


def _quantiles(confidence: float) -> float:
    """z₁ + z₂."""
    return float(ndtri(0.5 + confidence / 2) + ndtri(POWER))
