"""The library's main job: sweep a model over α, choose, and say whether it helps."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import alphatune
from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError, DataError, one_line
from alphatune.core.metrics import INFO, METRICS, Metric
from alphatune.core.progress import ShowProgress, as_meter, shows_progress
from alphatune.data.custom_loader import LoaderBatches
from alphatune.data.examples import Examples
from alphatune.data.label_order import ENOUGH, check_label_order, is_ambiguous, near_chance
from alphatune.data.loading import Batches
from alphatune.evaluation.predictor import (
    Predictor,
    evaluation_mode,
    explaining_failure,
    input_dtype,
    predict,
)
from alphatune.kernels.dispatch import COMPILED_FROM, Kernel, build_seconds, resolve_kernel, use_kernel
from alphatune.models.outputs import EXAMPLES, check_outputs_, find_reading_
from alphatune.models.running_stats_check import require_health
from alphatune.models.stability import preserved
from alphatune.norms.batch_statistics import batch_statistics
from alphatune.norms.patching import Alpha, patched, unpatched_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.norms.watching import Watched, leave_inactive, watched
from alphatune.results.gain import Gain
from alphatune.results.metrics import Metrics
from alphatune.statistics.gain import FEWEST_TO_REFINE
from alphatune.statistics.scores import Scores, concatenate, summarise
from alphatune.tuning.alphas import resolve_alphas
from alphatune.tuning.batch_stats_baseline import BatchStatistics, compare_batch_statistics
from alphatune.tuning.curve import CurvePoint, interpolated_curve, measured_curve
from alphatune.tuning.granularity import GRANULARITIES, Granularity
from alphatune.tuning.journal import Journal
from alphatune.tuning.passes import Data, Passes
from alphatune.tuning.refinement import Refinement, is_joint, refine
from alphatune.tuning.refinement import expected_examples as examples_of_refinement
from alphatune.tuning.remarks import remark_on_end, remark_on_layers
from alphatune.tuning.search import FEWEST_TO_SEARCH, Search, best_on, search, within_finite_range
from alphatune.tuning.search import expected_examples as examples_of_search
from alphatune.tuning.selection import Accept, Decision, best_index, decide, progressive_gain, select
from alphatune.tuning.sweep import Sweep

Curve = Literal["auto", "full"]

#: error of the interpolated curve, in nats and as a fraction, that nodes are added until
CURVE_TOLERANCE = 0.002
#: probability that the race drops the α that is best on the choosing part
RACE_DELTA = 0.05
#: images that show which norm layers a model runs
WATCHED_EXAMPLES = 8


@dataclass(frozen=True, repr=False)
class TuneResult:
    """Everything a tune found out; ``alpha`` is the one to deploy."""

    metric: Metric
    accept: Accept
    seed: int
    curve: tuple[CurvePoint, ...]
    decision: Decision
    sweep: Sweep  # exact scores of all examples, at each α or at those a search measured
    search: Search | None  # None for an exact sweep
    refinement: Refinement | None  # with a finer granularity or a temperature
    layers: tuple[NormLayer, ...]
    patched: tuple[str, ...]
    kernel: Kernel  # the code that normalised
    kernel_build_seconds: float  # what compiling it took this time
    seconds: float  # of all passes
    passes: float  # forward passes, as multiples of the number of examples
    warnings: tuple[str, ...]
    batch_statistics: BatchStatistics | None = None  # for comparison, where asked for

    @property
    def alpha(self) -> float | dict[str, Alpha]:
        """What to deploy, as ``patch_`` takes it."""
        return self.decision.alpha

    @property
    def temperature(self) -> float:
        """What to divide the logits by."""
        return self.refinement.temperature if self.refinement else 1.0

    @property
    def changes_model(self) -> bool:
        """Whether there is anything to deploy."""
        return self.alpha != self.baseline_alpha or self.temperature != 1

    @property
    def baseline_alpha(self) -> float:
        """The α of the unpatched model: 0, or 1 where all layers are GroupNorm."""
        return self.sweep.baseline_alpha

    @property
    def baseline(self) -> Metrics:
        return self.curve[0].metrics

    @property
    def chosen(self) -> Metrics:
        """Metrics of what is deployed, measured on all examples."""
        return summarise(self.chosen_scores)

    @property
    def chosen_scores(self) -> Scores:
        """Scores of all examples by what is deployed."""
        if self.refinement:
            return self.refinement.scores
        return self.sweep.scores[self.sweep.alphas.index(self.decision.alpha)]

    def at(self, alpha: float | dict[str, Alpha]) -> Metrics:
        """Metrics measured at one of the α of the curve.

        Raises:
            ConfigurationError: the curve has no such α.
        """
        for point in self.curve:
            if point.alpha == alpha:
                return point.metrics
        listed = one_line(", ".join(f"{point.alpha:g}" for point in self.curve))
        raise ConfigurationError(f"the curve has no α {alpha}", f"it has {listed}")

    def __repr__(self) -> str:
        return alphatune.to_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return alphatune.to_html(self)


@shows_progress
def tune(
    model: nn.Module,
    data: Batches | Iterable[Any],
    *,
    alphas: str | Sequence[float] = "auto",
    metric: Metric = "top1",
    accept: Accept = "significant",
    curve: Curve = "auto",
    curve_tolerance: float = CURVE_TOLERANCE,
    race_delta: float = RACE_DELTA,
    granularity: Granularity = "global",
    temperature: bool = False,
    batch_stats: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    kernel: Kernel = "auto",
    predictor: Predictor | None = None,
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
    logits: int | str | None = None,
    world: World | None = None,
    journal: Journal | None = None,
    progress: ShowProgress = None,
) -> TuneResult:
    """Sweep α over labelled data, choose one, and decide whether it helps.

    The model is patched for the time of the call and comes back as it was;
    ``patch_(model, result.alpha)`` makes the choice take effect.

    Args:
        model: a classifier with BatchNorm layers, on the device to run on.
        data: any iterable of (inputs, class indices) batches, e.g. a DataLoader
            that does not shuffle or augment. It is read once and kept in memory,
            or read again for every pass if it takes more than 2 GiB.
        alphas: ``"auto"`` searches (search.py; with fewer than 1000 examples it is a list);
            ``"0,0.01,0.02"``, ``"0:0.3:31"`` or numbers are measured exactly; the unpatched model's
            (0, but 1 for GroupNorm) is always added.
        metric: what to choose by: top1, top5, loss or ece.
        accept: ``"significant"`` keeps α = 0 unless the gain is; ``"best"`` takes the optimum.
        curve: ``"full"`` interpolates between nodes measured on all examples, not on a part of them.
        curve_tolerance: error of the interpolated curve, in nats and as a fraction.
        race_delta: probability that the race drops the best α; 0: no race.
        granularity: ``"stage"``, ``"layer"`` or ``"channel"`` try finer α than one for all, too
            (refinement.py); what does not win out of fold is not taken.
        temperature: tune a temperature, too, and compare what α is worth beyond it;
            ``set_temperature_(model, result.temperature)`` makes it take effect.
        batch_stats: compare with inference by the test batch's statistics (batch_stats_baseline.py), in two more passes.
        dtype: float32, or float16/bfloat16 for autocast.
        kernel: ``kernels.dispatch``.
        predictor: how to run the model, if not as ``Predictor(model, dtype)`` does; its outputs were checked.
        exclude, skip_unknown: as for ``patch_``.
        logits: which output of a model that returns several holds them, by number or name; the model
            remembers it, for ``set_temperature_`` and ``save``.
        world: the processes that share the work; every one of them gets the same result.
        journal: where passes and descents keep what they found, to go on from after an interruption.
        progress: True shows a tqdm bar; a function is called with (examples done, examples to do or None), an
            example counting once a pass; or a ``core.progress.Display``. By default a bar in notebooks only.

    Raises:
        UnsupportedModelError: no BatchNorm layer, or one of unknown kind.
        NumericError: impossible moving averages, or an output that is not finite.
        ConfigurationError: α outside [0, 1], an unknown metric, labels that do not fit.
        DataError: an unreadable image, or no data.
    """
    check_choices(metric, accept, curve, curve_tolerance, race_delta, granularity)
    resolve_alphas(alphas)  # an error in them should not wait for the model
    tensor = next(iter((*model.parameters(), *model.buffers())), torch.zeros(()))
    meter = as_meter(progress)
    batches = data if isinstance(data, Batches) else LoaderBatches(data, tensor.device, meter)
    examples = data.examples if isinstance(data, Batches) else None
    fresh = predictor is None  # the commands have looked at the outputs already
    predictor = predictor or Predictor(model, dtype)
    layers = survey(model)
    if batch_stats:
        with batch_statistics(model, exclude=exclude, skip_unknown=skip_unknown):
            pass  # what it refuses should not wait for the sweep
    with patched(model, exclude=exclude, skip_unknown=skip_unknown):
        require_health(model)
        n = len(batches)
        if n == 0:
            raise DataError("the data holds no example")
        said: tuple[str, ...] = ()
        if isinstance(batches, LoaderBatches):
            said = batches.notes
            inputs = next(iter(batches)).inputs
            with explaining_failure(inputs), evaluation_mode(model), preserved(model):
                model(inputs[:2].to(input_dtype(model)))
        if fresh:
            said += _look_at_outputs(model, batches, None if logits is None else str(logits))
        layers = _watch(predictor, batches).account(layers)
    exclude = (*((exclude,) if isinstance(exclude, str) else exclude), *leave_inactive(layers))
    with patched(model, exclude=exclude, skip_unknown=skip_unknown) as names:
        refining = granularity != "global" or temperature
        if refining and n < FEWEST_TO_REFINE:
            raise ConfigurationError(
                f"expected at least {FEWEST_TO_REFINE} examples for a finer granularity or a temperature, got {n}",
                "more examples, or `granularity=global` without `temperature`",
            )
        used = resolve_kernel(kernel, tensor.device, worth_compiling=n >= COMPILED_FROM)
        started, done = time.perf_counter(), meter.done
        values = resolve_alphas(alphas, unpatched_alpha(model))
        automatic = isinstance(alphas, str) and alphas == "auto"  # an array would compare each number
        searching = automatic and n >= FEWEST_TO_SEARCH
        passes = Passes(predictor, batches, values[0], world or World(), meter, journal)
        joint, after = is_joint(metric, temperature), 2 * n * batch_stats
        meter.later = (after + refining * examples_of_refinement(n, granularity, joint)) // passes.world.size
        with use_kernel(used):
            found, note = None, ""
            if examples is not None and is_ambiguous(examples):  # hours should not go to the wrong labels
                few = np.unique(np.linspace(0, n - 1, min(n, ENOUGH)).astype(np.int64))
                _check_order(examples, passes.measure(few, [0.0])[0])
            if searching:
                (found, swept, gain), note = within_finite_range(
                    passes,
                    lambda limit: _searched(
                        passes, metric, accept, curve, curve_tolerance, race_delta, seed, limit
                    ),
                )
            elif automatic:
                swept, note = within_finite_range(passes, lambda limit: _swept(passes, values, limit))
            else:  # whoever names an α wants to hear of it
                swept = _swept(passes, values, 1.0)
            if found is None:
                points, decision = measured_curve(swept), select(swept, metric, accept=accept, seed=seed)
            else:
                points = interpolated_curve(found, swept, values[0])
                best = {name: passes.alpha(t) for name, t in found.best.items()}
                decision = decide(metric, passes.alpha(found.t), best, values[0], gain, n, accept)
            order = [] if examples is None else _check_order(examples, swept.baseline)
            refinement = None
            if refining:

                def choose_global(positions: NDArray[np.int64]) -> float:
                    if found is None:
                        return swept.alphas[best_index(swept, metric, positions)]
                    return passes.alpha(best_on(found, positions, metric))

                meter.later = after // passes.world.size
                refinement = refine(
                    passes,
                    choose_global,
                    decision.candidate,
                    granularity,
                    metric=metric,
                    temperature=temperature,
                    accept=accept,
                    keep_global=decision.alpha != values[0],
                    seed=seed,
                    journal=journal,
                )
                decision = _refined(decision, refinement)
        seconds = time.perf_counter() - started
    result = TuneResult(
        metric=metric,
        accept=accept,
        seed=seed,
        curve=points,
        decision=decision,
        sweep=swept,
        search=found,
        refinement=refinement,
        layers=layers,
        patched=names,
        kernel=used,
        kernel_build_seconds=build_seconds(used),
        seconds=seconds,
        passes=sum(passes.world.gather(meter.done - done)) / n,
        warnings=(),
    )
    meter.later = 0
    if batch_stats:
        compared = compare_batch_statistics(
            passes, swept.baseline, seed=seed, exclude=exclude, skip_unknown=skip_unknown
        )
        result = replace(result, batch_statistics=compared)
    meter.expect(0)
    return replace(result, warnings=(*said, *order, *([note] if note else []), *_warnings(result, model)))


def expected_examples(
    n: int,
    alphas: str | Sequence[float],
    *,
    metric: Metric,
    curve: Curve,
    granularity: Granularity,
    temperature: bool,
    batch_stats: bool,
) -> int:
    """About how many examples a tune of n looks at, each once a pass."""
    searching = isinstance(alphas, str) and alphas == "auto" and n >= FEWEST_TO_SEARCH
    first = examples_of_search(n, curve == "full") if searching else n * len(resolve_alphas(alphas))
    if granularity != "global" or temperature:
        first += examples_of_refinement(n, granularity, is_joint(metric, temperature))
    return first + 2 * n * batch_stats


def _check_order(examples: Examples, baseline: Scores) -> list[str]:
    return check_label_order(examples, baseline.targets, baseline.predicted)


def _look_at_outputs(model: nn.Module, batches: Data, wanted: str | None) -> tuple[str, ...]:
    """Find the logits among the outputs for a few of the examples, and see what they are; what is worth saying."""
    count = min(EXAMPLES, len(batches))
    inputs = next(iter(batches.take(np.linspace(0, len(batches) - 1, count).astype(np.int64)))).inputs
    highest = int(batches.targets.max())
    with evaluation_mode(model), preserved(model):
        output = model(inputs.to(input_dtype(model)))
    _, notes = find_reading_(model, output, len(inputs), widths=(highest + 1,), wanted=wanted)
    return notes + check_outputs_(model, inputs)


def _watch(predictor: Predictor, batches: Batches | LoaderBatches) -> Watched:
    """What some of the images show of which norm layers act."""
    model = predictor.model
    part = batches.take(np.arange(min(len(batches), WATCHED_EXAMPLES)))
    if isinstance(part, Batches):
        part = replace(part, workers=0)  # so few images are not worth a process
    with evaluation_mode(model), watched(model) as watch:
        for batch in part:
            predict(model, batch.inputs, predictor.dtype)
    return watch


def _refined(decision: Decision, refinement: Refinement) -> Decision:
    """The decision when finer α, or a temperature, had their say."""
    if refinement.chosen in ("plain", "global") and not refinement.joint:
        finer = ", ".join(level.name for level in refinement.levels[2:])
        lost = f"; finer ({finer}) does not win over it" if finer else ""
        return replace(decision, reason=decision.reason + lost)
    gain = refinement.level.over_plain or refinement.levels[1].over_plain
    return replace(decision, alpha=refinement.alpha, reason=refinement.reason, gain=gain)


def check_choices(
    metric: str,
    accept: str,
    curve: str,
    curve_tolerance: float,
    race_delta: float,
    granularity: str = "global",
) -> None:
    """Raise ConfigurationError unless every choice is one of those there are."""
    for name, value, choices in (
        ("metric", metric, METRICS),
        ("accept", accept, ("significant", "best")),
        ("curve", curve, ("auto", "full")),
        ("granularity", granularity, GRANULARITIES),
    ):
        if value not in choices:
            raise ConfigurationError(f"unknown {name} {value!r}", f"one of: {', '.join(choices)}")
    if not 0 < curve_tolerance < 1:
        raise ConfigurationError(f"curve tolerance must lie in (0, 1), got {curve_tolerance:g}")
    if not 0 <= race_delta < 1:
        raise ConfigurationError(f"race delta must lie in [0, 1), got {race_delta:g}", "0 turns the race off")


def _swept(passes: Passes, alphas: tuple[float, ...], limit: float) -> Sweep:
    """Measure all examples at those α that are within a limit of the unpatched model's."""
    ts = [t for t in (abs(passes.baseline - alpha) for alpha in alphas) if t <= limit]
    passes.meter.phase("sweeping alpha")
    passes.expect(len(passes.data) * len(ts))
    scores = passes.measure(np.arange(len(passes.data)), ts)
    return Sweep(alphas[: len(ts)], tuple(scores))


def _searched(
    passes: Passes,
    metric: Metric,
    accept: Accept,
    curve: Curve,
    tolerance: float,
    race_delta: float,
    seed: int,
    limit: float,
) -> tuple[Search, Sweep, Gain]:
    """Search, measure the gain on examples that did not choose, and what will be deployed on all."""
    full = curve == "full"
    found = search(
        passes, metric, tolerance=tolerance, race_delta=race_delta, seed=seed, full=full, limit=limit
    )
    alpha, other = passes.alpha(found.t), found.t != 0
    to_measure = [*([] if full else [0.0]), *([found.t] if other else [])]
    measured = passes.measure(found.confirming, to_measure) if to_measure else []
    baseline = found.baseline if full else concatenate([found.baseline, measured[0]])
    confirmed = (
        measured[-1] if other else baseline.take(found.confirming)
    )  # ids are in the order of positions
    # Every lot at the α that was best before it, and what chose none at the last one.
    alphas = tuple(passes.alpha(t) for t in (*found.leaders[: len(found.challenged)], found.t))
    gain = progressive_gain([*found.challenged, confirmed], baseline, alphas, metric, seed=seed)
    swept = Sweep((passes.baseline,), (baseline,))
    measures = other and (gain.significant or accept == "best")
    passes.expect(len(found.choosing) * measures)
    if measures:
        (before,) = passes.measure(found.choosing, [found.t])
        swept = Sweep((passes.baseline, alpha), (baseline, concatenate([before, confirmed])))
    return found, swept, gain


def _remark_on_calibration(result: TuneResult) -> list[str]:
    """How much of a gain in loss or ECE a temperature would give, too, as far as is known."""
    metric, refinement = result.metric, result.refinement
    name = INFO[metric].name
    if refinement is None:
        return [
            f"a gain in {name} can be calibration, which dividing the logits by one number gives for free: "
            "`temperature` tells what α is worth beyond it"
        ]
    plain, chosen = (getattr(level.calibrated, metric) for level in (refinement.levels[0], refinement.level))
    if refinement.joint or chosen < plain:
        return []
    return [
        f"all of the gain in {name} is calibration: with a temperature each the unpatched model has {plain:.4f} and "
        f"the chosen α {chosen:.4f}; `temperature` takes that into account"
    ]


def _warnings(result: TuneResult, model: nn.Module) -> list[str]:
    """What a careful colleague would point out about these numbers."""
    notes: list[str] = []
    top1 = {point.alpha: point.metrics.top1 for point in result.curve}
    base = result.baseline_alpha
    plain, changed = top1[base], result.alpha != base
    others = "α > 0" if base == 0 else f"an α other than {base:g}"
    notes += near_chance(result.sweep.baseline.targets, plain, f"at α = {base:g}")
    if max(top1.values()) - plain > 0.02:
        notes.append(
            f"{others} raises top-1 by about {100 * (max(top1.values()) - plain):.1f} points: so much usually means "
            "that α makes up for preprocessing other than the model was trained with; check "
            "`mean`, `std`, `crop_pct` and `interpolation` first"
        )
    before, after = result.baseline, result.chosen
    if changed and result.metric != "top1" and after.top1 < before.top1:
        best = result.decision.best.get("top1")
        better = "" if best is None else f"; by top-1 the best α is {best:g}"
        notes.append(f"the chosen α lowers top-1 by {100 * (before.top1 - after.top1):.2f} points{better}")
    if changed and result.metric == "top1" and after.loss > before.loss:
        notes.append(f"the chosen α raises the loss by {after.loss - before.loss:.4f} nats")
    if changed and INFO[result.metric].sees_confidence:
        notes += _remark_on_calibration(result)
    end = result.curve[-1].alpha  # the farthest from the unpatched model
    notes += remark_on_end(result.decision.candidate, end, base)
    if result.decision.gain is None:
        notes.append(result.decision.reason)
    return notes + remark_on_layers(model, result.layers, len(result.patched))
