"""Which gains so many examples can tell from luck, as a result says it: measured, or before a run by what is usual."""

from __future__ import annotations

import math
from collections.abc import Iterable

from alphatune.core.metrics import INFO, SCORE, Measure, Metric
from alphatune.results.power import Choice, Known, Needed, Power
from alphatune.statistics.gain import CONFIDENCE
from alphatune.statistics.power import POWER, Spread, examples_needed, share_spread, smallest_gain

#: gains whose numbers of examples are told, of an accuracy
SHARES = (0.001, 0.002, 0.005, 0.01)
#: Before a run: the least and the most that was measured of ResNet-20 and ResNet-56 on CIFAR-10 test images at α of
#: 0.02 to 0.1. Of right and wrong the share that turns, of loss and ECE the deviation.
USUAL: dict[Metric, tuple[Spread, Spread]] = {
    "top1": (share_spread(0.008, 0.008), share_spread(0.0335, 0.0335)),
    "top5": (share_spread(0.001, 0.001), share_spread(0.00325, 0.00325)),
    "loss": (Spread(0.28), Spread(1.2)),
    "ece": (Spread(0.38), Spread(0.56)),
}


def planned_power(
    metric: Measure,
    n: int,
    choice: Choice,
    earlier: Power | None,
    wished: float | None,
    confidence: float = CONFIDENCE,
) -> tuple[Power, ...]:
    """What n examples will be able to tell: by an earlier result, or for the least and the most usual spread.

    Args:
        earlier: of the same model and data.
        wished: a gain that is asked for.
    """
    if earlier is not None:
        spreads: tuple[Spread, ...] = (Spread(earlier.deviation, earlier.discordant),)
        known: Known = "earlier result"
    elif metric == SCORE or metric not in USUAL:
        return ()
    else:
        spreads, known = USUAL[metric], "assumed"
    gains = _usual_gains(metric, smallest_gain(spreads[0], n, choice, confidence))
    gains |= {wished} if wished and wished > 0 else set()
    alpha = earlier.alpha if earlier else None
    return tuple(
        power_of(metric, n, choice, known, spread, alpha=alpha, confidence=confidence, gains=gains)
        for spread in spreads
    )


def images_for(power: Power, gain: float) -> int:
    """How many examples tell a gain from luck as surely as a ``Power`` says, ``MOST_EXAMPLES`` at most."""
    spread = Spread(power.deviation, power.discordant)
    return examples_needed(spread, gain, power.choice, power.confidence)


def power_of(
    metric: Measure,
    n: int,
    choice: Choice,
    known: Known,
    spread: Spread,
    *,
    alpha: float | None = None,
    confidence: float = CONFIDENCE,
    gains: Iterable[float] | None = None,
) -> Power:
    """The smallest gain that n examples can tell, and how many others need.

    Args:
        alpha: where the spread was measured.
        gains: the others; None: round ones, near the smallest.
    """
    smallest = smallest_gain(spread, n, choice, confidence)
    gains = _usual_gains(metric, smallest) if gains is None else gains
    return Power(
        metric=metric,
        examples=n,
        choice=choice,
        known=known,
        alpha=alpha,
        deviation=spread.deviation,
        discordant=spread.discordant,
        confidence=confidence,
        power=POWER,
        smallest_gain=smallest,
        needed=tuple(
            Needed(gain=gain, examples=max(1, examples_needed(spread, gain, choice, confidence)))
            for gain in sorted(gains)
        ),
    )


def _usual_gains(metric: Measure, smallest: float) -> set[float]:
    """Round gains: of an accuracy always the same, of anything else four, the largest near the smallest that can be told."""
    if INFO[metric].is_share:
        return set(SHARES)
    if smallest <= 0:
        return set()
    gains = [_round_down(smallest)]
    while len(gains) < 4:
        gains.append(_round_down(gains[-1] * 0.51))
    return set(gains)


def _round_down(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    tenth = 10.0 ** math.floor(math.log10(value) + 1e-9)
    step = max(step for step in (1, 2, 5) if step * tenth <= value * (1 + 1e-9))
    return float(f"{step * tenth:.1g}")
