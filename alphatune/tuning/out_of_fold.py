"""Scores of all examples, each by what was fitted on the half that it is not in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alphatune.results.gain import Gain
from alphatune.statistics.scores import Scores, concatenate
from alphatune.tuning.candidate import Candidate, score
from alphatune.tuning.objective import Objective
from alphatune.tuning.passes import Passes
from alphatune.tuning.step_back import Judged, step_back
from alphatune.tuning.temperature import TemperatureScores


@dataclass(frozen=True)
class OutOfFold:
    """All examples out of fold, as they are and with the temperature of the other half."""

    raw: Scores
    calibrated: Scores
    temperatures: tuple[float, ...]
    everything: TemperatureScores  # of the last candidate, for the unpatched model
    share: float = 1.0  # of what was fitted, that keeps the guards

    @classmethod
    def of(
        cls, passes: Passes, halves: Sequence[NDArray[np.int64]], candidates: Sequence[Candidate]
    ) -> OutOfFold:
        """Score each half by the candidate, and the temperature, that the other half chose."""
        everything = np.arange(len(passes.data))
        raw, calibrated, temperatures = [], [], []
        scored = score(passes, everything, candidates[0])
        for place, (half, other) in enumerate(zip(halves, reversed(halves), strict=True)):
            if place and not candidates[place].is_same_number(candidates[0]):
                scored = score(passes, everything, candidates[place])
            t = scored.take(other).best()
            temperatures.append(t)
            raw.append(scored.scores.take(half))
            calibrated.append(scored.take(half).at(t))
        return cls(concatenate(raw), concatenate(calibrated), tuple(temperatures), scored)

    @classmethod
    def within_guards(
        cls,
        passes: Passes,
        objective: Objective,
        halves: Sequence[NDArray[np.int64]],
        candidates: Sequence[Candidate],
        plain: OutOfFold,
    ) -> OutOfFold:
        """The same, as far towards the candidates as each keeps the guards on the half that it has not seen."""
        judged = [Judged(*each) for each in zip(candidates, halves, strict=True)]
        share = step_back(passes, objective, judged, plain.everything.scores).share
        scored = cls.of(passes, halves, [each.nearer(share, passes) for each in candidates])
        return replace(scored, share=share)

    def scores(self, calibrated: bool) -> Scores:
        return self.calibrated if calibrated else self.raw

    def gain_over(
        self, other: OutOfFold, objective: Objective, calibrated: bool, seed: int, comparisons: int
    ) -> Gain:
        after, before = self.scores(calibrated), other.scores(calibrated)
        return objective.gain(after, before, seed=seed, comparisons=comparisons, folds=2)

    def keeps_guards(self, plain: OutOfFold, objective: Objective, calibrated: bool) -> bool:
        judged = objective.judge(self.scores(calibrated), plain.scores(calibrated), "test")
        return all(passed for *_, passed in judged)
