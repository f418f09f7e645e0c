"""What the runs of a study say together: means and intervals over seeds, and which claims hold.

Differences are paired by seed: the networks of a seed start from the same
weights where they can, and see the same batches. Intervals are Student's,
95 %, over the seeds. With α means with the α that was best, by top-1, on images
that are not reported on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from alphatune.results.study import Estimate, StudyRun, TestedClaim, Variant, Verdict
from alphatune.studies.experiment import Claim, Study
from alphatune.studies.runs import Key, of_experiment


def summarise_variants(
    study: Study, runs: dict[Key, StudyRun], scale: str, seeds: Sequence[int]
) -> tuple[Variant, ...]:
    """Each variant that has been trained, compared with the first of the study."""
    found = {
        name: of_experiment(runs, scale, experiment.to_dict(), seeds)
        for name, experiment in study.variants.items()
    }
    first = next(iter(found.values()))
    return tuple(
        Variant(
            name=name,
            seeds=tuple(run.seed for run in each),
            plain=estimate([plain(run) for run in each]),
            weighted=estimate([weighted(run) for run in each]),
            gain=estimate([weighted(run) - plain(run) for run in each]),
            difference=None if each is first else _paired(each, first, False, False),
            alphas=tuple(run.alphas[_best(run)] for run in each),
            curve=tuple(np.mean([run.reporting.top1 for run in each], axis=0).tolist()),
            diverged=sum(run.diverged for run in each),
        )
        for name, each in found.items()
        if each
    )


def check_claims(
    study: Study, runs: dict[Key, StudyRun], scale: str, seeds: Sequence[int]
) -> tuple[TestedClaim, ...]:
    """Whether the claims of a study hold; those whose networks are trained."""
    return tuple(
        claim for each in study.claims if (claim := _test(each, study, runs, scale, seeds)) is not None
    )


def _test(
    claim: Claim, study: Study, runs: dict[Key, StudyRun], scale: str, seeds: Sequence[int]
) -> TestedClaim | None:
    if not {claim.better, claim.than} <= study.variants.keys():
        return None
    better, than = (
        of_experiment(runs, scale, study.variants[name].to_dict(), seeds)
        for name in (claim.better, claim.than)
    )
    difference = _paired(better, than, claim.better_weighted, claim.than_weighted)
    if difference is None:
        return None
    return TestedClaim(
        text=claim.text,
        better=claim.better + " with α" * claim.better_weighted,
        than=claim.than + " with α" * claim.than_weighted,
        difference=difference,
        verdict=_verdict(difference),
    )


def plain(run: StudyRun) -> float:
    """Top-1 by inference as trained: α = 0, or 1 of a GroupNorm."""
    return run.reporting.top1[-1 if run.experiment["norm"]["kind"] == "group" else 0]


def weighted(run: StudyRun) -> float:
    """Top-1 with the α that was best on other images."""
    return run.reporting.top1[_best(run)]


def _best(run: StudyRun) -> int:
    return int(np.argmax(run.choosing.top1))


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values, and its 95 % interval by Student's t."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean=mean, interval=None)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / n**0.5
    return Estimate(mean=mean, interval=(mean - half, mean + half))


def _paired(
    better: Sequence[StudyRun], than: Sequence[StudyRun], better_weighted: bool, than_weighted: bool
) -> Estimate | None:
    """Differences of top-1 of the runs that have a seed in common."""
    other = {run.seed: (weighted if than_weighted else plain)(run) for run in than}
    differences = [
        (weighted if better_weighted else plain)(run) - other[run.seed] for run in better if run.seed in other
    ]
    return estimate(differences) if differences else None


def _verdict(difference: Estimate) -> Verdict:
    if difference.interval is None or difference.interval[0] <= 0 <= difference.interval[1]:
        return "cannot be told"
    return "holds" if difference.mean > 0 else "does not"
