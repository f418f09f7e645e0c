"""Exact scores of what a list or a search chose, and the gain on examples that had no part in choosing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alphatune.results.gain import Gain
from alphatune.statistics.scores import Scores, concatenate
from alphatune.tuning.candidate import Candidate
from alphatune.tuning.objective import Objective
from alphatune.tuning.passes import Passes
from alphatune.tuning.search import Search, search
from alphatune.tuning.selection import Accept, progressive_gain
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
    accept: Accept,
    full: bool,
    tolerance: float,
    race_delta: float,
    seed: int,
    limit: float,
) -> tuple[Search, Sweep, Gain, str]:
    """Search, measure the gain on examples that did not choose, and what will be deployed on all.

    Args:
        full: whether the curve is to be of all examples.
        tolerance, race_delta, limit: as for ``search``.

    Returns:
        The search, exact scores of all examples at the unpatched model and at what was chosen, the gain, and what
        a guard has against it ("" for nothing).
    """
    found = search(
        passes, objective, tolerance=tolerance, race_delta=race_delta, seed=seed, full=full, limit=limit
    )
    known: Scores | None = None
    if objective.guards and found.t != 0:
        baseline = found.baseline
        if not full:
            baseline = concatenate([baseline, *passes.measure(found.confirming, [0.0])])
        chosen = Candidate(passes.alpha(found.t))
        share, known = step_back(passes, objective, [Judged(chosen, np.arange(len(passes.data)))], baseline)
        t = abs(passes.baseline - chosen.nearer(share, passes).single_alpha)
        found = replace(found, t=t, share=share)
        left = _without(found.confirming, known, passes)
        confirmed = concatenate([*passes.measure(left, [t]), *_among(known, found.confirming, passes)])
    else:
        to_measure = [*([] if full else [0.0]), *([found.t] if found.t else [])]
        measured = passes.measure(found.confirming, to_measure) if to_measure else []
        baseline = found.baseline if full else concatenate([found.baseline, measured[0]])
        # Ids are in the order of positions.
        confirmed = measured[-1] if found.t else baseline.take(found.confirming)
    alpha, other = passes.alpha(found.t), found.t != 0
    # Every lot at the α that was best before it, and what chose none at the last one.
    alphas = tuple(passes.alpha(t) for t in (*found.leaders[: len(found.challenged)], found.t))
    gain = progressive_gain([*found.challenged, confirmed], baseline, alphas, objective, seed=seed)
    swept = Sweep((passes.baseline,), (baseline,))
    measures = other and (gain.significant or accept == "best")
    passes.expect(len(found.choosing) * measures)
    if measures:
        left = _without(found.choosing, known, passes)
        parts = [*passes.measure(left, [found.t]), confirmed, *_among(known, found.choosing, passes)]
        swept = Sweep((passes.baseline, alpha), (baseline, concatenate(parts)))
    return found, swept, gain, objective.objection(swept.scores[-1], baseline, passes.data.names)


def _without(positions: NDArray[np.int64], known: Scores | None, passes: Passes) -> NDArray[np.int64]:
    """The positions whose examples have no score yet."""
    return positions if known is None else positions[~np.isin(passes.data.ids[positions], known.ids)]


def _among(known: Scores | None, positions: NDArray[np.int64], passes: Passes) -> list[Scores]:
    """The known scores of the examples at some positions."""
    return [] if known is None else [known.take(np.isin(known.ids, passes.data.ids[positions]))]
