"""Go back towards the unpatched network until the guards are kept.

What is fitted sees the cost to a guarded condition only roughly: on part of the
images, or through a smooth stand-in. So the guarded conditions are measured at
what was fitted and at smaller shares of the way to it, and the largest share
that was found to keep every guard is taken; none is the unpatched network. Where it was
fitted on some examples only, only these have a say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alphatune.statistics.conditions import conditions_of
from alphatune.statistics.scores import Scores
from alphatune.tuning.candidate import Candidate, exact_scores
from alphatune.tuning.objective import Objective
from alphatune.tuning.passes import Passes

#: of the way from the unpatched network to what was fitted
SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)


def step_back(
    passes: Passes,
    objective: Objective,
    candidate: Candidate,
    positions: NDArray[np.int64],
    unpatched: Scores | None = None,
) -> tuple[Candidate, Scores | None]:
    """The largest share of a candidate that keeps the guards on some examples, and the guarded ones' scores there.

    Args:
        unpatched: scores of at least these examples by the unpatched network, where they are known.

    Returns:
        The candidate itself, and None, where there are no guards or nothing changes.
    """
    plain = Candidate(passes.baseline)
    if not objective.guards or candidate.is_same_number(plain):
        return candidate, None
    guarded = [guard.condition for guard in objective.guards]
    ids = passes.data.ids
    rows = positions[np.isin(conditions_of(ids[positions]), guarded)]
    if unpatched is None:
        before = exact_scores(passes, rows, plain)
    else:
        before = unpatched.take(np.isin(unpatched.ids, ids[rows]))
    kept: tuple[Candidate, Scores] = plain, before
    in_sequence = any(guard.margin is not None for guard in objective.guards)
    left = sorted(SHARES, reverse=not in_sequence)
    while left:
        # The whole way first; then halving, as a smaller share seldom costs more. A sequence goes outwards.
        place = len(left) // 2 if len(left) < len(SHARES) and not in_sequence else 0
        nearer = candidate.nearer(left[place], passes)
        after = exact_scores(passes, rows, nearer)
        passed = all(judged.passed for judged in objective.judge(after, before, "deploy"))
        if passed:
            kept = nearer, after
        if in_sequence:
            left = left[1:] if passed else []
        else:
            left = left[:place] if passed else left[place + 1 :]
    return kept
