"""What a repair is worth on a shift that it was not tuned on.

Each shift is left out in turn. The repair is fitted on one half of the images
under all other conditions, and scored on the other half under the one left out:
neither these images nor this shift had a part in it. The first condition, of
clean images, is never left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alphatune.core.metrics import Metric
from alphatune.results.gain import Gain
from alphatune.results.shift import Unseen
from alphatune.statistics.conditions import conditions_of
from alphatune.statistics.gain import paired_gain
from alphatune.statistics.scores import Scores, concatenate
from alphatune.tuning.candidate import Candidate, FitOn, exact_scores, score
from alphatune.tuning.passes import Passes
from alphatune.tuning.temperature import TemperatureScores


class UnseenGains(NamedTuple):
    """The gain on each shift that was left out, and their mean; nothing where none was."""

    each: tuple[Unseen, ...] = ()
    mean: Gain | None = None


def unseen_gains(
    passes: Passes,
    halves: Sequence[NDArray[np.int64]],
    plain: Scores,
    fit: FitOn,
    metric: Metric,
    *,
    tempered: TemperatureScores | None = None,
    known: Sequence[tuple[Candidate, Scores]] = (),
    seed: int,
) -> UnseenGains:
    """The gain on each shift without it, and their mean; none with fewer than two shifts.

    Args:
        plain: of all examples by the network as it is.
        fit: fits the repair on some examples.
        tempered: the same at every temperature, where both are compared with one, fitted on the same examples.
        known: scores of all examples that need not be measured again.
    """
    ids, names = passes.data.ids, passes.data.names
    condition = conditions_of(ids)
    shifts = [k for k in range(2, len(names) + 1) if (condition == k).any()]
    if len(shifts) < 2:
        return UnseenGains()
    fitted, tested = halves
    found, after, before = [], [], []
    for k in shifts:
        seen = fitted[condition[fitted] != k]
        left_out = tested[condition[tested] == k]
        candidate = fit(seen, f"without-{names[k - 1]}")
        if tempered is not None:
            t, own = score(passes, seen, candidate).best(), tempered.take(seen).best()
            pair = score(passes, left_out, candidate).at(t), tempered.take(left_out).at(own)
        else:
            measured = [scores for each, scores in known if candidate.is_same_number(each)]
            scored = measured[0].take(left_out) if measured else exact_scores(passes, left_out, candidate)
            pair = scored, plain.take(left_out)
        found.append(Unseen(condition=names[k - 1], gain=paired_gain(*pair, metric, seed=seed)))
        after.append(pair[0])
        before.append(pair[1])
    return UnseenGains(tuple(found), paired_gain(concatenate(after), concatenate(before), metric, seed=seed))
