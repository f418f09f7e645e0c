"""Go back towards the unpatched network until the guards are kept.

What is fitted sees the cost to a guarded condition only roughly: on part of the
images, or through a smooth stand-in. So the guarded conditions are measured at
what was fitted and at smaller shares of the way to it, and the largest share
that was found to keep every guard is taken; none is the unpatched network.

Many numbers fit the very images they were tuned on: on these they cost less than
on others. They are fitted on either half for that, each judged on the other one,
and both halves' images decide about one share together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alphatune.statistics.conditions import conditions_of
from alphatune.statistics.scores import Scores, concatenate
from alphatune.tuning.candidate import Candidate, exact_scores
from alphatune.tuning.objective import Objective
from alphatune.tuning.passes import Passes

#: of the way from the unpatched network to what was fitted
SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)


class Judged(NamedTuple):
    """A candidate, and the positions of the examples that judge it."""

    candidate: Candidate
    positions: NDArray[np.int64]


class Kept(NamedTuple):
    """How far the guards let candidates go."""

    share: float  # 0: not at all
    scores: Scores | None  # of the guarded examples there; None where there are no guards or nothing changes


def step_back(
    passes: Passes, objective: Objective, judged: Sequence[Judged], unpatched: Scores | None = None
) -> Kept:
    """The largest share of the way that keeps the guards, on the images of all who judge together.

    Args:
        unpatched: scores of at least these examples by the unpatched network, where they are known.
    """
    plain = Candidate(passes.baseline)
    if not objective.guards or all(each.candidate.is_same_number(plain) for each in judged):
        return Kept(1.0, None)
    guarded = [guard.condition for guard in objective.guards]
    ids = passes.data.ids
    rows = [each.positions[np.isin(conditions_of(ids[each.positions]), guarded)] for each in judged]

    def scores_at(share: float) -> Scores:
        found = [
            exact_scores(passes, own, each.candidate.nearer(share, passes))
            for each, own in zip(judged, rows, strict=True)
        ]
        return concatenate(found)

    if unpatched is None:
        before = scores_at(0)
    else:
        before = concatenate([unpatched.take(np.isin(unpatched.ids, ids[own])) for own in rows])
    kept = Kept(0.0, before)
    in_sequence = any(guard.margin is not None for guard in objective.guards)
    left = sorted(SHARES, reverse=not in_sequence)
    while left:
        # The whole way first; then halving, as a smaller share seldom costs more. A sequence goes outwards.
        place = len(left) // 2 if len(left) < len(SHARES) and not in_sequence else 0
        share = left[place]
        after = scores_at(share)
        passed = all(each.passed for each in objective.judge(after, before, "deploy"))
        if passed:
            kept = Kept(share, after)
        if in_sequence:
            left = left[1:] if passed else []
        else:
            left = left[:place] if passed else left[place + 1 :]
    return kept


def within_guards(
    passes: Passes,
    objective: Objective,
    candidate: Candidate,
    positions: NDArray[np.int64],
    unpatched: Scores | None = None,
) -> Candidate:
    """One α, as far as the guards are kept on the images that it was chosen on."""
    return candidate.nearer(
        step_back(passes, objective, [Judged(candidate, positions)], unpatched).share, passes
    )
