"""Finer α and temperature, told apart and cross-fitted.

The examples are halved, class by class. On each half a candidate is fitted:
the α of the whole model, then one α for each stage, each layer, each channel
(granularity.py, descent.py), every level starting from the last one that was
worth it; and at each of them the temperature (temperature.py). Each is scored,
exactly, on the half that it has not seen. So every example is scored once,
out of fold, by every level, with and without temperature.

A finer level is accepted if its out-of-fold gain over the level before it is
significant, with the interval widened for the number of levels looked at
(Bonferroni); else the coarser one stands. With ``temperature`` the levels are
compared with a temperature each: what α is worth beyond calibration.

What is deployed comes of a last descent, on all examples, from the average of
the two halves' α (in log-odds), and is measured on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from alphatune.core.metrics import INFO, Metric
from alphatune.data.prefetch import Batch
from alphatune.norms.patching import Alpha
from alphatune.results.alpha import common_alpha
from alphatune.results.gain import Gain
from alphatune.results.tune import Level, LevelName
from alphatune.statistics.gain import FEWEST_EXAMPLES, paired_gain
from alphatune.statistics.scores import Scores, concatenate, summarise
from alphatune.tuning.descent import Fit, descend, rounded
from alphatune.tuning.descent import expected_examples as examples_of_descent
from alphatune.tuning.granularity import GRANULARITIES, Granularity, Units, units_of
from alphatune.tuning.journal import Journal
from alphatune.tuning.passes import Passes
from alphatune.tuning.search import stratified_order
from alphatune.tuning.selection import Accept
from alphatune.tuning.sweep import score_at
from alphatune.tuning.temperature import (
    TemperatureScores,
    concatenate_temperatures,
    score_temperatures,
)

#: chooses the α of the whole model on some examples
ChooseGlobal = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True)
class Refinement:
    """What came of it."""

    levels: tuple[Level, ...]
    chosen: LevelName
    alphas: dict[str, Alpha]  # of the level that was accepted, or tried last with ``accept="best"``
    temperature: float
    baseline: Scores  # of all examples, unpatched
    scores: Scores  # of all examples at what was chosen, temperature included
    temperature_gain: Gain | None  # in loss, out of fold, at the chosen level
    reason: str
    joint: bool  # whether levels were compared with a temperature each

    @property
    def alpha(self) -> float | dict[str, Alpha]:
        """One number where all layers have the same, else one, or one a channel, for each layer."""
        numbers = {name: value for name, value in self.alphas.items() if isinstance(value, float)}
        common = common_alpha(numbers) if len(numbers) == len(self.alphas) else None
        return common if isinstance(common, float) else self.alphas

    @property
    def level(self) -> Level:
        return next(level for level in self.levels if level.name == self.chosen)


def refine(
    passes: Passes,
    choose_global: ChooseGlobal,
    overall: float,
    granularity: Granularity,
    *,
    metric: Metric,
    temperature: bool,
    accept: Accept,
    keep_global: bool,
    seed: int,
    journal: Journal | None = None,
) -> Refinement:
    """Fit and compare the levels down to a granularity, as this module's text says.

    Args:
        passes: the patched model and its data.
        choose_global: the best α of the whole model by the examples at some positions.
        overall: the same by all of them, for the deployed model.
        granularity: the finest level to try.
        metric: what to improve.
        temperature: compare with temperatures, and tune the one to deploy.
        keep_global: whether ``overall`` has earned its place already (``selection``).
        journal: where descents keep their state.
    """
    n = len(passes.data)
    everything = np.arange(n)
    order = stratified_order(passes.data.targets, seed)
    halves = tuple(np.sort(order[k::2]) for k in (0, 1))
    model = passes.predictor.model
    first = next(iter(passes.data.take(everything[:1])))
    inputs = passes.predictor.prepare(first.inputs)
    names = levels_of(granularity)
    units = {name: units_of(model, name, inputs) for name in names}
    joint = is_joint(metric, temperature)
    meter = passes.meter

    meter.phase("unpatched model")
    passes.expect(expected_examples(n, granularity, joint))
    comparisons = len(names) if joint else max(1, len(names) - 1)

    plain = _Scored.of(passes, halves, [passes.baseline] * 2)
    levels = [plain.level("plain")]
    current = plain
    chosen: LevelName = "plain"
    alphas = units["global"].alphas([passes.baseline])
    before: list[dict[str, Alpha]] = []
    for place, name in enumerate(names):
        started, done = time.perf_counter(), meter.done
        meter.phase("temperature" if name == "global" else f"descent: {name}")
        passes.expect(_expected(n, names[place:], joint))
        unit = units[name]
        fits: list[Fit | None] = [None, None]
        if name == "global":
            singles = [choose_global(half) for half in reversed(halves)]
            found = [unit.alphas([alpha]) for alpha in singles]
        else:
            found = before
        if name != "global" or joint:
            fits = _fit_folds(passes, halves, unit, found, singles, metric, joint, seed, journal)
            found = [unit.alphas(fit.alphas) for fit in fits if fit]
        scored = _Scored.of(passes, halves, found)
        over_coarser = scored.gain_over(current, metric, joint, seed, comparisons)
        over_plain = scored.gain_over(plain, metric, joint, seed, comparisons)
        if name == "global" and not joint:
            accepted = keep_global
        else:
            wins = all(gain.significant for gain in (over_coarser, over_plain))
            accepted = n >= FEWEST_EXAMPLES and (wins or (accept == "best" and over_coarser.delta > 0))
        levels.append(
            scored.level(
                name,
                len(unit),
                over_coarser=over_coarser,
                over_plain=over_plain,
                accepted=accepted,
                steps=tuple(fit.steps for fit in fits if fit),
                seconds=time.perf_counter() - started,
                passes=sum(passes.world.gather(meter.done - done)) / n,
            )
        )
        if name == "global" or accepted:
            before = found  # a finer level starts from it
        if accepted:
            chosen, current = name, scored
            if name == "global" and not joint:
                alphas = unit.alphas([overall])
            else:
                alphas = unit.alphas(_average(unit, found))
    meter.phase("confirming")
    if chosen not in ("plain", "global") or (chosen == "global" and joint):
        passes.expect(n + examples_of_descent(n))
        unit = next(each for each in units.values() if each.granularity == chosen)
        alphas = _fit_all(passes, unit, alphas, overall, metric, joint, seed, journal)
    passes.expect(0 if chosen == "plain" else n)
    final = plain.everything if chosen == "plain" else _score(passes, everything, alphas)
    t, temperature_gain = 1.0, None
    if temperature:
        temperature_gain = paired_gain(current.calibrated, current.raw, "loss", seed=seed)
        if temperature_gain.significant or (accept == "best" and temperature_gain.delta > 0):
            t = final.best()
    return Refinement(
        levels=tuple(levels),
        chosen=chosen,
        alphas=alphas,
        temperature=t,
        baseline=plain.everything.scores,
        scores=final.at(t),
        temperature_gain=temperature_gain,
        reason=_reason(levels, chosen, metric, joint),
        joint=joint,
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
class _Scored:
    """All examples out of fold at one level."""

    raw: Scores
    calibrated: Scores
    temperatures: tuple[float, ...]
    everything: TemperatureScores  # of the last α, for the unpatched model

    @classmethod
    def of(
        cls,
        passes: Passes,
        halves: Sequence[NDArray[np.int64]],
        alphas: Sequence[float | Mapping[str, Alpha]],
    ) -> _Scored:
        """Score each half at the α, and the temperature, that the other half chose."""
        everything = np.arange(len(passes.data))
        raw, calibrated, temperatures = [], [], []
        scored = _score(passes, everything, alphas[0])
        same = isinstance(alphas[0], float) and alphas[0] == alphas[1]
        for place, (half, other) in enumerate(zip(halves, reversed(halves), strict=True)):
            if place and not same:
                scored = _score(passes, everything, alphas[place])
            t = scored.take(other).best()
            temperatures.append(t)
            raw.append(scored.scores.take(half))
            calibrated.append(scored.take(half).at(t))
        return cls(concatenate(raw), concatenate(calibrated), tuple(temperatures), scored)

    def gain_over(
        self, other: _Scored, metric: Metric, calibrated: bool, seed: int, comparisons: int
    ) -> Gain:
        pair = (self.calibrated, other.calibrated) if calibrated else (self.raw, other.raw)
        return paired_gain(*pair, metric, seed=seed, comparisons=comparisons, folds=2)

    def level(
        self,
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
            metrics=summarise(self.raw),
            calibrated=summarise(self.calibrated),
            temperatures=self.temperatures,
            over_coarser=over_coarser,
            over_plain=over_plain,
            accepted=accepted,
            steps=steps,
            seconds=seconds,
            passes=passes,
        )


def _fit_folds(
    passes: Passes,
    halves: Sequence[NDArray[np.int64]],
    units: Units,
    starts: Sequence[Mapping[str, Alpha]],
    priors: Sequence[float],
    metric: Metric,
    temperature: bool,
    seed: int,
    journal: Journal | None,
) -> list[Fit | None]:
    """A descent for each half, on the other one; processes share the halves out."""

    def mine() -> dict[int, Fit]:
        return {
            fold: descend(
                passes.predictor,
                passes.data,
                halves[1 - fold],
                units,
                units.gather(starts[fold]),
                prior=priors[fold],
                metric=metric,
                temperature=temperature,
                seed=seed + fold,
                journal=journal.entry(f"{units.granularity}-{fold}") if journal else None,
                meter=passes.meter,
            )
            for fold in (0, 1)
            if fold % passes.world.size == passes.world.rank
        }

    fits: dict[int, Fit] = {}
    for part in passes.world.run_on_all_ranks(mine):
        fits |= part
    return [fits[0], fits[1]]


def _fit_all(
    passes: Passes,
    units: Units,
    start: Mapping[str, Alpha],
    prior: float,
    metric: Metric,
    temperature: bool,
    seed: int,
    journal: Journal | None,
) -> dict[str, Alpha]:
    """A last descent on all examples, from what the halves found; one process does it."""

    def mine() -> Fit | None:
        if not passes.world.first:
            return None
        return descend(
            passes.predictor,
            passes.data,
            np.arange(len(passes.data)),
            units,
            units.gather(start),
            prior=prior,
            metric=metric,
            temperature=temperature,
            seed=seed,
            journal=journal.entry(f"{units.granularity}-all") if journal else None,
            meter=passes.meter,
        )

    fit = next(fit for fit in passes.world.run_on_all_ranks(mine) if fit)
    return units.alphas(fit.alphas)


def _score(
    passes: Passes, positions: NDArray[np.int64], alphas: float | Mapping[str, Alpha]
) -> TemperatureScores:
    """Exact scores of some examples, at every temperature as well."""

    def scores(batch: Batch, logits: list[torch.Tensor]) -> TemperatureScores:
        at_alphas = score_at(alphas, logits[0], batch)
        return TemperatureScores(at_alphas, *score_temperatures(logits[0], batch.targets))

    return concatenate_temperatures(passes.run("temperatures", positions, [alphas], scores))


def _average(units: Units, alphas: Sequence[Mapping[str, Alpha]]) -> list[float]:
    """α unit by unit between those of the halves: their mean in log-odds; 0 and 1 stay where both say so."""
    values = torch.stack([units.gather(each) for each in alphas])
    inner = values.clamp(1e-4, 1 - 1e-4)
    mean = rounded(torch.logit(inner).mean(0))
    mean = torch.where((values == 0).all(0), 0.0, mean)
    return torch.where((values == 1).all(0), 1.0, mean).tolist()


def _reason(levels: Sequence[Level], chosen: LevelName, metric: Metric, joint: bool) -> str:
    beyond = " beyond temperature" if joint else ""
    if chosen == "plain":
        return f"no α has a significant out-of-fold gain in {INFO[metric].name}{beyond}"
    place = [level.name for level in levels].index(chosen)
    text = "one α for all layers" if chosen == "global" else f"one α a {chosen}"
    text += f" wins out of fold in {INFO[metric].name}{beyond}"
    finer = ", ".join(level.name for level in levels[place + 1 :])
    return text + (f"; finer ({finer}) does not win over it" if finer else "")
