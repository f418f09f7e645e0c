"""Measure a list of α, or search for the best one and measure that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alphatune.results.gain import Gain
from alphatune.statistics.scores import Scores, concatenate
from alphatune.tuning.candidate import Candidate
from alphatune.tuning.choosing import Choices
from alphatune.tuning.objective import Objective
from alphatune.tuning.passes import Passes
from alphatune.tuning.search import Search, search
from alphatune.tuning.selection import Confirmed, cross_fitted_gain
from alphatune.tuning.step_back import Judged, step_back
from alphatune.tuning.sweep import Sweep


def measure_list(passes: Passes, alphas: tuple[float, ...], limit: float) -> Sweep:
    """Measure all examples at those α that are within a limit of the unpatched model's."""
    ts = [t for t in (abs(passes.baseline - alpha) for alpha in alphas) if t <= limit]
    passes.meter.phase("sweeping alpha")
    passes.expect(len(passes.data) * len(ts))
    scores = passes.measure(np.arange(len(passes.data)), ts)
    return Sweep(alphas[: len(ts)], tuple(scores))


def search_and_confirm(
    passes: Passes,
    objective: Objective,
    full: bool,
    tolerance: float,
    race_delta: float,
    seed: int,
    limit: float,
) -> tuple[Search, Sweep, Gain, str]:
    """Search for α, measure it on all examples, and tell what choosing it in this way is worth.

    Args:
        full: whether all examples choose.
        tolerance, race_delta, limit: as for ``search``.

    Returns:
        The search, exact scores of all examples at the unpatched model and at what was chosen, the gain, and what
        a guard has against it ("" for nothing).
    """
    found = search(
        passes, objective, tolerance=tolerance, race_delta=race_delta, seed=seed, full=full, limit=limit
    )
    passes.meter.phase("confirming")
    others, baseline = found.confirming, found.baseline
    together = found.t != 0 and not objective.guards  # guards have to see the baseline first
    measured = passes.measure(others, [0.0, found.t] if together else [0.0]) if len(others) else []
    baseline = concatenate([found.baseline, *measured[:1]])
    known: Scores | None = None
    if objective.guards and found.t != 0:
        chosen = Candidate(passes.alpha(found.t))
        share, known = step_back(passes, objective, [Judged(chosen, np.arange(len(passes.data)))], baseline)
        t = abs(passes.baseline - chosen.nearer(share, passes).single_alpha)
        found = replace(found, t=t, share=share)
    swept, alpha = Sweep((passes.baseline,), (baseline,)), passes.alpha(found.t)
    if found.t != 0:
        parts = [found.choosing] if together and len(others) else [np.arange(len(passes.data))]
        passes.expect(sum(map(len, parts)))
        scores = concatenate([*measured[1:], *(_measured(passes, part, found.t, known) for part in parts)])
        swept = Sweep((passes.baseline, alpha), (baseline, scores))
    # Ids are in the order of positions.
    after = swept.scores[-1]
    confirmed = Confirmed(
        alpha, after.take(found.choosing), baseline.take(others), after.take(others), found.share
    )
    choices = Choices(tuple(map(passes.alpha, found.grid)), found.curve, found.baseline)
    gain = cross_fitted_gain(choices, objective, confirmed=confirmed, seed=seed)
    return found, swept, gain, objective.objection(after, baseline, passes.data.names)


def _measured(passes: Passes, positions: NDArray[np.int64], t: float, known: Scores | None) -> Scores:
    """Exact scores of some examples, of which some may be known."""
    ids = passes.data.ids[positions]
    if known is None:
        return passes.measure(positions, [t])[0]
    found = [known.take(np.isin(known.ids, ids))]
    left = positions[~np.isin(ids, known.ids)]
    return concatenate([*found, *passes.measure(left, [t])]) if len(left) else found[0]
