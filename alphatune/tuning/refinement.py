"""Finer α and temperature, told apart and cross-fitted.

The examples are halved, class by class. On each half a candidate is fitted:
the α of the whole model, then one α for each stage, each layer, each channel
(granularity.py, descent.py), every level starting from the last one that was
worth it; and at each of them the temperature (temperature.py). Each goes back
towards the unpatched network until the guards are kept (step_back.py), and is
scored, exactly, on the half that it has not seen. So every example is scored
once, out of fold, by every level, with and without temperature.

A finer level is accepted if its out-of-fold gain over the level before it is
significant, with the interval widened for the number of levels looked at
(Bonferroni); else the coarser one stands. With ``temperature`` the levels are
compared with a temperature each: what α is worth beyond calibration.

What is deployed comes of a last descent, on all examples, from the average of
the two halves' α (in log-odds), and is measured on all of them.

Where layers have a price, α may be left out of some (front.py): from the level
that won, or one α, to a set of layers that is worth it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from alphatune.core.metrics import INFO, Metric
from alphatune.norms.patching import Alpha
from alphatune.results.alpha import common_alpha
from alphatune.results.front import Front
from alphatune.results.gain import Gain
from alphatune.results.repairs import Choose, RepairName, Repairs, Rivals
from alphatune.results.shift import LabelCurve
from alphatune.results.tune import Level, LevelName
from alphatune.statistics.conditions import has_conditions
from alphatune.statistics.gain import FEWEST_EXAMPLES, paired_gain
from alphatune.statistics.scores import Scores, summarise
from alphatune.tuning.candidate import Candidate, score
from alphatune.tuning.descent import Fit
from alphatune.tuning.descent import expected_examples as examples_of_descent
from alphatune.tuning.fits import ChooseGlobal, Fits
from alphatune.tuning.front import ChosenSet, Fitted, find_front, settle
from alphatune.tuning.granularity import GRANULARITIES, Granularity, Units, units_of
from alphatune.tuning.journal import Journal
from alphatune.tuning.label_curve import label_curve
from alphatune.tuning.layers import LayerPrices, name_of_set
from alphatune.tuning.objective import Objective
from alphatune.tuning.ordering import halves_of
from alphatune.tuning.out_of_fold import OutOfFold
from alphatune.tuning.passes import Passes
from alphatune.tuning.repairs import Tried, compare_repairs, try_free
from alphatune.tuning.selection import Accept
from alphatune.tuning.step_back import within_guards
from alphatune.tuning.unseen import UnseenGains, unseen_gains


@dataclass(frozen=True)
class Refinement:
    """What came of it."""

    levels: tuple[Level, ...]
    chosen: LevelName
    candidate: Candidate  # what is deployed: α of the level that was accepted, or a free repair
    repairs: Repairs | None  # where α was compared with what is free
    unseen: UnseenGains
    label_curve: LabelCurve | None
    temperature: float
    baseline: Scores  # of all examples, unpatched
    scores: Scores  # of all examples at what was chosen, temperature included
    temperature_gain: Gain | None  # in loss, out of fold, at the chosen level
    reason: str
    joint: bool  # whether levels were compared with a temperature each
    front: Front | None = None  # where layers have a price

    @property
    def alpha(self) -> float | dict[str, Alpha]:
        """One number where all layers have the same, else one, or one a channel, for each layer."""
        alphas = self.candidate.alpha
        if isinstance(alphas, float):
            return alphas
        numbers = {name: value for name, value in alphas.items() if isinstance(value, float)}
        common = common_alpha(numbers) if len(numbers) == len(alphas) else None
        return common if isinstance(common, float) else dict(alphas)

    @property
    def level(self) -> Level:
        return next(level for level in self.levels if level.name == self.chosen)

    @property
    def gain(self) -> Gain | None:
        """Over the plain network, out of fold, of what was chosen; of the coarsest level where none was."""
        if self.front is not None and self.front.chosen is not None:
            return self.front.sets[self.front.chosen].gain
        return self.level.over_plain or self.levels[1].over_plain


def refine(
    passes: Passes,
    choose_global: ChooseGlobal,
    overall: float,
    granularity: Granularity,
    *,
    objective: Objective,
    temperature: bool,
    accept: Accept,
    keep_global: bool,
    seed: int,
    rivals: Rivals = "free",
    choose: Choose = "cheapest",
    label_counts: Sequence[int] = (),
    prices: LayerPrices | None = None,
    parts: Sequence[NDArray[np.int64]] = (),
    journal: Journal | None = None,
) -> Refinement:
    """Fit and compare the levels down to a granularity, as this module's text says.

    Args:
        passes: the patched model and its data.
        choose_global: the best α of the whole model by the examples at some positions.
        overall: the same by all of them, for the deployed model.
        granularity: the finest level to try.
        objective: what to improve; a level whose guards fail out of fold is not accepted.
        temperature: compare with temperatures, and tune the one to deploy.
        keep_global: whether ``overall`` has earned its place already (``selection``).
        prices: what α costs in each layer, to leave it out of some; None: it may be everywhere.
        journal: where descents keep their state.
    """
    n = len(passes.data)
    everything = np.arange(n)
    halves = halves_of(passes.data.targets, passes.data.ids, seed)
    model = passes.predictor.model
    first = next(iter(passes.data.take(everything[:1])))
    inputs = passes.predictor.prepare(first.inputs)
    names = levels_of(granularity)
    units = {name: units_of(model, name, inputs) for name in names}
    metric = objective.metric
    joint = is_joint(metric, temperature)
    meter = passes.meter

    meter.phase("unpatched model")
    passes.expect(expected_examples(n, granularity, joint))
    plain = OutOfFold.of(passes, halves, [Candidate(passes.baseline)] * 2)
    fits = Fits(passes, objective, joint, seed, journal, choose_global, units)
    compared = _compare_levels(fits, halves, plain, overall, accept=accept, keep_global=keep_global)
    chosen, current = compared.chosen, compared.scored
    front: Front | None = None
    part: ChosenSet | None = None
    if prices is not None:
        meter.phase("which layers")
        front, part = find_front(fits, halves, plain, compared.fitted, prices, accept=accept)
        front = settle(front, part, fits, prices)
        if front.chosen is None:
            chosen, current, part = "plain", plain, None
        elif part is not None:
            chosen, current = compared.fitted.level, part.scored
    limited = fits if part is None else replace(fits, limit=part.limit)
    repairs: Repairs | None = None
    won: RepairName = chosen
    if rivals == "free" and (has_conditions(passes.data.ids) or chosen not in ("plain", "global")):
        passes.expect(6 * n + 8 * examples_of_descent(n // 2))
        tried = try_free(fits, halves, plain, calibrated=joint)
        if chosen != "plain":
            numbers = fits.numbers(chosen) if part is None else part.numbers
            tried.append(Tried(chosen, numbers, current, joint))
        repairs = compare_repairs(plain, tried, objective, choose=choose, seed=seed, names=passes.data.names)
        won = repairs.chosen
        current = next((each.scored for each in tried if each.name == won), plain)
    meter.phase("confirming")
    if part is not None and front is not None and won == chosen:
        candidate = _fit_part(fits, part, front, overall, current.share, plain)
    else:
        candidate = _fit_all(fits, won, compared.alphas, overall, current.share, plain)
    unchanged = candidate.is_same_number(Candidate(passes.baseline))
    passes.expect(0 if unchanged else n)
    final = plain.everything if unchanged else score(passes, everything, candidate)
    t, temperature_gain = 1.0, None
    if temperature or won == "temperature":
        temperature_gain = paired_gain(current.calibrated, current.raw, "loss", seed=seed)
        if temperature_gain.significant or (accept == "best" and temperature_gain.delta > 0):
            t = final.best()
    unseen = UnseenGains()
    if won != "plain" and has_conditions(passes.data.ids):
        meter.phase("shifts that are left out")
        passes.expect(n if won == "global" else n + n * len(passes.data.names))
        everywhere = plain.everything
        tempered = everywhere if joint or won == "temperature" else None
        one_alpha = won == "global" and not joint and part is None

        def fit_without(positions: NDArray[np.int64], name: str) -> Candidate:
            fitted = limited.named(won)(positions, name)
            if not one_alpha:
                fitted = fitted.nearer(current.share, passes)
            return within_guards(passes, objective, fitted, positions, everywhere.scores)

        unseen = unseen_gains(
            passes,
            parts if parts and one_alpha else halves,
            everywhere.scores,
            fit_without,
            metric,
            tempered=tempered,
            known=[(candidate, final.scores)],
            seed=seed,
        )
    labels: LabelCurve | None = None
    if label_counts:
        meter.phase("numbers of labels")
        passes.expect(len(label_counts) * 2 * 8 * n)
        labels = label_curve(
            passes, halves, plain, fits.shown(), label_counts, metric, calibrated=joint, seed=seed
        )
    return Refinement(
        levels=compared.levels,
        chosen=chosen,
        candidate=candidate,
        repairs=repairs,
        unseen=unseen,
        label_curve=labels,
        temperature=t,
        baseline=plain.everything.scores,
        scores=final.at(t),
        temperature_gain=temperature_gain,
        reason=_reason(compared.levels, chosen, metric, joint, repairs, front),
        joint=joint,
        front=front,
    )


def levels_of(granularity: Granularity) -> tuple[Granularity, ...]:
    """The levels that are tried, from one α for all to this one."""
    return GRANULARITIES[: GRANULARITIES.index(granularity) + 1]


def is_joint(metric: Metric, temperature: bool) -> bool:
    """Whether levels are compared with a temperature each."""
    return temperature and INFO[metric].sees_confidence


def expected_examples(n: int, granularity: Granularity, joint: bool) -> int:
    """About how many examples a refinement on n looks at."""
    return n + _expected(n, levels_of(granularity), joint)


def _expected(n: int, levels: Sequence[Granularity], joint: bool) -> int:
    """The same of some levels, and of what follows them."""
    fitted = [name != "global" or joint for name in levels]
    folds = sum(2 * n + 2 * fits * examples_of_descent(n // 2) for fits in fitted)
    return folds + n + any(fitted) * examples_of_descent(n)


@dataclass(frozen=True)
class _Compared:
    """The levels of α, and which won."""

    levels: tuple[Level, ...]
    chosen: LevelName
    scored: OutOfFold  # of the one that won
    alphas: dict[str, Alpha]  # between those of the halves
    fitted: Fitted  # each half's α of that one, or of one α where none did


def _compare_levels(
    fits: Fits,
    halves: Sequence[NDArray[np.int64]],
    plain: OutOfFold,
    overall: float,
    *,
    accept: Accept,
    keep_global: bool,
) -> _Compared:
    """Fit every level on either half, from the last one that was worth it, and score it on the other."""
    passes, objective, units, joint, seed = (
        fits.passes,
        fits.objective,
        fits.units,
        fits.temperature,
        fits.seed,
    )
    n, names, meter = len(passes.data), tuple(units), passes.meter
    comparisons = len(names) if joint else max(1, len(names) - 1)
    levels = [_level(plain, "plain")]
    current = plain
    chosen: LevelName = "plain"
    alphas = units["global"].alphas([passes.baseline])
    before: list[dict[str, Alpha]] = []
    kept: Fitted | None = None
    for place, name in enumerate(names):
        started, done = time.perf_counter(), meter.done
        meter.phase("temperature" if name == "global" else f"descent: {name}")
        passes.expect(_expected(n, names[place:], joint))
        unit = units[name]
        descents: list[Fit] = []
        if name == "global":
            singles = [fits.choose_global(half) for half in reversed(halves)]
            found = [unit.alphas([alpha]) for alpha in singles]
        else:
            found = before
        if name != "global" or joint:
            descents = _fit_folds(fits, halves, unit, found, singles)
            found = [unit.alphas(fit.alphas) for fit in descents]
        candidates = [Candidate(each) for each in found]
        if descents:
            scored = OutOfFold.within_guards(passes, objective, halves, candidates, plain)
        else:  # one number does not fit the very images that it was chosen on
            candidates = [
                within_guards(passes, objective, Candidate(alpha), half, plain.everything.scores)
                for alpha, half in zip(singles, reversed(halves), strict=True)
            ]
            singles = [each.single_alpha for each in candidates]
            scored = OutOfFold.of(passes, halves, candidates)
        fitted, found = found, [_nearer(each, scored.share, unit, passes) for each in candidates]
        over_coarser = scored.gain_over(current, objective, joint, seed, comparisons)
        over_plain = scored.gain_over(plain, objective, joint, seed, comparisons)
        if name == "global" and not joint:
            accepted = keep_global
        else:
            wins = all(gain.significant for gain in (over_coarser, over_plain))
            accepted = n >= FEWEST_EXAMPLES and (wins or (accept == "best" and over_coarser.delta > 0))
            accepted = accepted and scored.keeps_guards(plain, objective, joint)
        levels.append(
            _level(
                scored,
                name,
                len(unit),
                over_coarser=over_coarser,
                over_plain=over_plain,
                accepted=accepted,
                steps=tuple(fit.steps for fit in descents),
                seconds=time.perf_counter() - started,
                passes=sum(passes.world.gather(meter.done - done)) / n,
            )
        )
        if name == "global" or accepted:
            before = found  # a finer level starts from it
            temperatures = [fit.temperature for fit in descents] or [1.0, 1.0]
            kept = Fitted(name, accepted, fitted, temperatures, singles, scored)
        if accepted:
            chosen, current = name, scored
            if name == "global" and not joint:
                alphas = unit.alphas([overall])
            else:
                alphas = unit.alphas(_average(unit, fitted))
    if kept is None:
        raise AssertionError("one α for all layers is always tried")
    return _Compared(tuple(levels), chosen, current, alphas, kept)


def _nearer(candidate: Candidate, share: float, units: Units, passes: Passes) -> dict[str, Alpha]:
    """The α of a level at a share of the way to a candidate."""
    alpha = candidate.nearer(share, passes).alpha
    return units.alphas([alpha] * len(units)) if isinstance(alpha, float) else dict(alpha)


def _level(
    scored: OutOfFold,
    name: LevelName,
    units: int = 0,
    *,
    over_coarser: Gain | None = None,
    over_plain: Gain | None = None,
    accepted: bool = False,
    steps: tuple[int, ...] = (),
    seconds: float = 0.0,
    passes: float = 0.0,
) -> Level:
    return Level(
        name=name,
        units=units,
        metrics=summarise(scored.raw),
        calibrated=summarise(scored.calibrated),
        temperatures=scored.temperatures,
        over_coarser=over_coarser,
        over_plain=over_plain,
        accepted=accepted,
        steps=steps,
        seconds=seconds,
        passes=passes,
    )


def _fit_folds(
    fits: Fits,
    halves: Sequence[NDArray[np.int64]],
    units: Units,
    starts: Sequence[Mapping[str, Alpha]],
    priors: Sequence[float],
) -> list[Fit]:
    """A descent for each half, on the other one; processes share the halves out."""
    return fits.passes.world.share_out(
        lambda fold: fits.descend(
            halves[1 - fold],
            units,
            units.gather(starts[fold]),
            priors[fold],
            f"{units.granularity}-{fold}",
            fold,
        ),
        2,
    )


def _fit_all(
    fits: Fits, won: RepairName, alphas: Mapping[str, Alpha], overall: float, share: float, plain: OutOfFold
) -> Candidate:
    """What won, fitted on all examples: α from what the halves found, by one process; as far as the guards allow.

    The share is what the guards left of the halves' fits, on images that these had not seen. A fit on all examples
    may go farther than they did, so it is judged once more, by the examples that it was fitted on.
    """
    passes, objective = fits.passes, fits.objective
    everything = np.arange(len(passes.data))
    passes.expect(len(everything) + examples_of_descent(len(everything)))
    if won in ("plain", "temperature"):
        return Candidate(passes.baseline)
    if won == "global" and not fits.temperature:
        return Candidate(alphas)  # which the guards have let pass
    if won in ("averages", "affine"):
        found = fits.named(won)(everything, "all")
    else:
        level: Granularity = won  # type: ignore[assignment]
        units = fits.units[level]
        fit = fits.passes.world.share_out(
            lambda _: fits.descend(everything, units, units.gather(alphas), overall, f"{level}-all"), 1
        )[0]
        found = Candidate(units.alphas(fit.values))
    found = found.nearer(share, passes)
    return within_guards(passes, objective, found, everything, plain.everything.scores)


def _fit_part(
    fits: Fits, part: ChosenSet, front: Front, overall: float, share: float, plain: OutOfFold
) -> Candidate:
    """α of the layers that were chosen, fitted on all examples in the same way; the others keep that of the plain."""
    passes, start = fits.passes, part.start(fits.passes)
    everything = np.arange(len(passes.data))
    units = part.units.only(front.layers)
    name = f"{units.granularity}-{name_of_set(front.layers)}-all"
    passes.expect(len(everything) + examples_of_descent(len(everything)))
    fit = passes.world.share_out(
        lambda _: fits.descend(everything, units, units.gather(start), overall, name), 1
    )[0]
    found = Candidate(dict.fromkeys(start, passes.baseline) | units.alphas(fit.values)).nearer(share, passes)
    return within_guards(passes, fits.objective, found, everything, plain.everything.scores)


def _average(units: Units, alphas: Sequence[Mapping[str, Alpha]]) -> list[float]:
    """α unit by unit between those of the halves: their mean in log-odds; 0 and 1 stay where both say so."""
    values = torch.stack([units.gather(each) for each in alphas])
    inner = values.clamp(1e-4, 1 - 1e-4)
    mean = units.to_values(torch.logit(inner).mean(0))
    mean = torch.where((values == 0).all(0), 0.0, mean)
    return torch.where((values == 1).all(0), 1.0, mean).tolist()


def _reason(
    levels: Sequence[Level],
    chosen: LevelName,
    metric: Metric,
    joint: bool,
    repairs: Repairs | None,
    front: Front | None,
) -> str:
    """Why this is deployed, in a sentence."""
    beyond = " beyond temperature" if joint else ""
    gain = f"out-of-fold gain in {INFO[metric].name}{beyond}"
    if front is not None and front.chosen is None:
        within = "" if front.budget is None else " within the budget"
        return f"no set of layers has a significant {gain}{within}" + (
            f"; {repairs.reason}" if repairs else ""
        )
    some = ""
    if front is not None and chosen != "plain":
        total = front.sets[0].layers[0]
        cost = front.predicted if front.measured is None else front.measured
        some = f"α in {len(front.layers)} of {total} layers takes {cost:.2f} times the folded network"
    if repairs:
        return "; ".join(filter(None, (repairs.reason, some if repairs.chosen == chosen else "")))
    if chosen == "plain":
        return f"no α has a significant {gain}"
    if front is not None:
        level = "one α" if chosen == "global" else f"one α a {chosen}"
        return f"{level} wins out of fold in {INFO[metric].name}{beyond}; {some}"
    place = [level.name for level in levels].index(chosen)
    text = "one α for all layers" if chosen == "global" else f"one α a {chosen}"
    text += f" wins out of fold in {INFO[metric].name}{beyond}"
    finer = ", ".join(level.name for level in levels[place + 1 :])
    return text + (f"; finer ({finer}) does not win over it" if finer else "")
