"""α beside what is free at inference, all fitted on the same images and scored out of fold in the same way.

    plain         the network as it is
    temperature   its logits divided by one number; where confidence counts
    averages      running statistics measured anew on the images, without labels
    affine        γ and β of the patched layers, by the descent that finds α (descent.py)
    α             the level that won (refinement.py)

All but the last fold into the convolutions, or are a division: they cost nothing.
The *best* is the one with the highest objective among those that keep the guards.
What is deployed is the first of this list that the best does not beat
significantly, with the interval widened for the number of repairs (Bonferroni).
So the plain network is kept unless something beats it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphatune.core.metrics import INFO
from alphatune.results.gain import Gain
from alphatune.results.metrics import Metrics
from alphatune.results.repairs import NAMES, Choose, Repair, RepairName, Repairs
from alphatune.statistics.conditions import conditions_of, has_conditions
from alphatune.statistics.scores import Scores, plain_scores, summarise
from alphatune.tuning.fits import Fits
from alphatune.tuning.objective import Objective
from alphatune.tuning.out_of_fold import OutOfFold

#: in the order in which they are preferred: what costs nothing first, then by how many numbers are tuned
ORDER: tuple[RepairName, ...] = (
    "plain", "temperature", "averages", "affine", "global", "stage", "layer", "channel",
)  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """A repair with its scores."""

    name: RepairName
    numbers: int  # tuned by labels
    scored: OutOfFold
    calibrated: bool  # whether it is judged with a temperature
    seconds: float = 0.0

    @property
    def is_free(self) -> bool:
        """Whether it costs nothing at inference."""
        return ORDER.index(self.name) <= ORDER.index("affine")


def try_free(
    fits: Fits, halves: Sequence[NDArray[np.int64]], plain: OutOfFold, *, calibrated: bool
) -> list[Tried]:
    """Fit each free repair on either half, and score it on the other.

    Args:
        calibrated: whether each is judged with a temperature.
    """
    sees_confidence = INFO[fits.objective.metric].sees_confidence
    tried = [Tried("temperature", 1, plain, True)] if sees_confidence else []
    for name, fit in fits.free().items():
        started = time.perf_counter()
        fits.passes.meter.phase(NAMES[name])
        found = [fit(half, str(fold)) for fold, half in enumerate(reversed(halves))]
        scored = OutOfFold.within_guards(fits.passes, fits.objective, halves, found, plain)
        tried.append(Tried(name, fits.numbers(name), scored, calibrated, time.perf_counter() - started))
    return tried


def compare_repairs(
    plain: OutOfFold,
    tried: Sequence[Tried],
    objective: Objective,
    *,
    choose: Choose,
    seed: int,
    names: Sequence[str] = (),
) -> Repairs:
    """Which repair is best, and which is the cheapest that it does not beat.

    Args:
        plain: the network as it is.
        tried: all others, the α that won among them if one did.
        names: of the conditions.
    """
    everything = [Tried("plain", 0, plain, False), *tried]
    everything.sort(key=lambda each: ORDER.index(each.name))
    comparisons = max(1, len(everything) - 1)

    def value(each: Tried) -> float:
        scores = each.scored.scores(each.calibrated)
        return float(objective.totals(getattr(scores, objective.metric)[None], scores.ids)[0])

    def gain(after: Tried, before: Tried) -> Gain:
        return objective.gain(
            after.scored.scores(after.calibrated),
            before.scored.scores(before.calibrated),
            seed=seed,
            comparisons=comparisons,
            folds=2,
        )

    def guarded(each: Tried) -> bool:
        judged = objective.judge(each.scored.scores(each.calibrated), plain.scores(False), "test")
        return each.name != "plain" and not all(passed for *_, passed in judged)

    ruled_out = {each.name: guarded(each) for each in everything}
    best = max((e for e in everything if not ruled_out[e.name]), key=value)
    behind = {each.name: None if each is best else gain(best, each) for each in everything}
    over_plain = {
        each.name: None if each.name == "plain" else gain(each, everything[0]) for each in everything
    }
    pool = [each for each in everything if not ruled_out[each.name]]
    if choose == "alpha":  # with a temperature beside it, if that is asked for
        pool = [each for each in pool if each.name not in ("averages", "affine")]
    top = max(pool, key=value)
    chosen = next(each for each in pool if each is top or not gain(top, each).significant)
    return Repairs(
        choose=choose,
        chosen=chosen.name,
        best=best.name,
        reason=_reason(chosen, best, behind[chosen.name], objective, choose),
        tried=tuple(
            Repair(
                name=each.name,
                numbers=each.numbers,
                free=each.is_free,
                with_temperature=each.calibrated,
                metrics=summarise(each.scored.scores(each.calibrated)),
                objective=value(each),
                by_condition=_by_condition(each.scored.scores(each.calibrated), names),
                over_plain=over_plain[each.name],
                behind_best=behind[each.name],
                guarded=ruled_out[each.name],
                seconds=each.seconds,
            )
            for each in everything
        ),
    )


def _by_condition(scores: Scores, names: Sequence[str]) -> dict[str, Metrics]:
    if not has_conditions(scores.ids):
        return {}
    number = conditions_of(scores.ids)
    return {
        name: summarise(plain_scores(scores.take(number == k)))
        for k, name in enumerate(names, 1)
        if (number == k).any()
    }


def _reason(chosen: Tried, best: Tried, behind: Gain | None, objective: Objective, choose: Choose) -> str:
    name = INFO[objective.metric].name
    if chosen.name == "plain":
        return f"no repair has a significant out-of-fold gain in {name}"
    what = NAMES[chosen.name][0].upper() + NAMES[chosen.name][1:]
    if chosen is best:
        return f"{what} has the best {name} out of fold" + (", and costs nothing" if chosen.is_free else "")
    if choose == "alpha" and behind is not None and behind.significant:
        return f"{what} was asked for (`choose=alpha`); {NAMES[best.name]} is better"
    return f"{what} is cheaper than {NAMES[best.name]} and not significantly worse in {name}"
