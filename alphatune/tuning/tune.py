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
from alphatune.data.conditions import Conditions
from alphatune.data.custom_loader import LoaderBatches
from alphatune.data.examples import Examples
from alphatune.data.label_order import ENOUGH, check_label_order, is_ambiguous
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
from alphatune.models.temperature import set_temperature_
from alphatune.norms.batch_statistics import batch_statistics
from alphatune.norms.patching import Alpha, all_but, patch_, patched, unpatched_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.norms.watching import Watched, leave_inactive, watched
from alphatune.results.metrics import Metrics
from alphatune.results.repairs import Choose, Rivals
from alphatune.results.shift import Over
from alphatune.statistics.conditions import conditions_of, count_images, has_conditions
from alphatune.statistics.gain import FEWEST_TO_REFINE
from alphatune.statistics.scores import Scores, summarise
from alphatune.statistics.set_statistics import FEWEST_OF_A_CLASS, STATISTICS
from alphatune.tuning.alphas import resolve_alphas
from alphatune.tuning.batch_stats_baseline import BatchStatistics, compare_batch_statistics
from alphatune.tuning.candidate import Candidate
from alphatune.tuning.choosing import best_point
from alphatune.tuning.confirmation import measure_list, search_and_confirm
from alphatune.tuning.curve import CurvePoint, interpolated_curve, measured_curve
from alphatune.tuning.granularity import GRANULARITIES, Granularity
from alphatune.tuning.journal import Journal
from alphatune.tuning.latency import LatencyBudget, find_prices
from alphatune.tuning.layers import LayerPrices
from alphatune.tuning.objective import Objective, parse_guards
from alphatune.tuning.ordering import halves_of
from alphatune.tuning.passes import Data, Passes
from alphatune.tuning.refinement import Refinement, is_joint, refine
from alphatune.tuning.refinement import expected_examples as examples_of_refinement
from alphatune.tuning.search import FEWEST_TO_SEARCH, Search, best_on, within_finite_range
from alphatune.tuning.search import expected_examples as examples_of_search
from alphatune.tuning.selection import Accept, Decision, decide, select
from alphatune.tuning.sweep import Sweep
from alphatune.tuning.unseen import UnseenGains, unseen_gains
from alphatune.tuning.warnings import warnings_of

Curve = Literal["auto", "full"]

#: error of the interpolated curve, in nats and as a fraction, that nodes are added until
CURVE_TOLERANCE = 0.002
#: chance that the pilot leaves out the α that is best on the choosing part
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
    objective: Objective
    unseen: UnseenGains
    warnings: tuple[str, ...]
    conditions: tuple[str, ...] = ()  # their names
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
        return self.changes_layers or self.temperature != 1

    @property
    def changes_layers(self) -> bool:
        """Whether α, or tensors of the norm layers, are others than those of the unpatched model."""
        return self.alpha != self.baseline_alpha or self.candidate.names is not None

    @property
    def candidate(self) -> Candidate:
        """α, and tensors of layers, to deploy."""
        return self.refinement.candidate if self.refinement else Candidate(self.decision.alpha)

    def apply_(self, model: nn.Module) -> None:
        """Make a model what was chosen, in place: α, tuned γ and β or running statistics, temperature."""
        self.candidate.apply_(model)
        if self.alpha != self.baseline_alpha:
            patch_(model, self.alpha, exclude=all_but(model, self.patched))
        set_temperature_(model, self.temperature)

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
    data: Batches | Conditions | Iterable[Any],
    *,
    alphas: str | Sequence[float] = "auto",
    metric: Metric = "top1",
    accept: Accept = "significant",
    curve: Curve = "auto",
    curve_tolerance: float = CURVE_TOLERANCE,
    race_delta: float = RACE_DELTA,
    granularity: Granularity = "global",
    temperature: bool = False,
    objective: Over = "mean",
    guard: Sequence[str] = (),
    rivals: Rivals = "free",
    choose: Choose = "cheapest",
    label_counts: Sequence[int] = (),
    latency: LatencyBudget | LayerPrices | None = None,
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

    The model is patched for the time of the call and comes back as it was; ``result.apply_(model)`` makes the
    choice take effect. Where nothing but α was chosen, ``patch_(model, result.alpha)`` is the same.

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
        curve: ``"full"`` lets all examples choose, not a part of them, over a wider range.
        curve_tolerance: error of the interpolated curve, in nats and as a fraction.
        race_delta: chance that the pilot, which narrows the range, leaves out the best α; 0 never narrows it.
        granularity: ``"stage"``, ``"layer"`` or ``"channel"`` try finer α than one for all, too
            (refinement.py); what does not win out of fold is not taken.
        temperature: tune a temperature, too, and compare what α is worth beyond it;
            ``set_temperature_(model, result.temperature)`` makes it take effect.
        objective: of several conditions (``data.conditions.Conditions``), improve their mean or the worst.
        guard: limits to what a condition may lose (objective.py), such as ``"clean:top1=0.005"``; without any the
            first condition's top-1 may not be significantly worse; ``"none"`` allows any loss.
        rivals: compare finer α, or α over several conditions, with what is free at inference (repairs.py);
            ``"none"`` does not.
        choose: deploy the cheapest repair that none beats significantly, or an α whatever is free.
        label_counts: numbers of labelled images to compare all repairs at, on images that took no part.
        latency: leave α out of layers that are not worth what they cost (front.py), within a budget if it has one.
            Costs are timed here on images (C, H, W) like those of the data, or given, as of another machine.
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
    batches: Data
    examples: Examples | None = None
    if isinstance(data, Batches | Conditions):
        batches, examples = data, data.examples
    else:
        batches = LoaderBatches(data, tensor.device, meter)
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
        seen = _watch(predictor, batches)
        layers = seen.account(layers)
    exclude = (*((exclude,) if isinstance(exclude, str) else exclude), *leave_inactive(layers))
    with patched(model, exclude=exclude, skip_unknown=skip_unknown) as names:
        images = count_images(batches.ids)
        goal = _goal(metric, objective, guard, batches)
        under_conditions = has_conditions(batches.ids)
        refining = granularity != "global" or temperature or bool(label_counts) or latency is not None
        if refining and images < FEWEST_TO_REFINE:
            raise ConfigurationError(
                f"expected at least {FEWEST_TO_REFINE} examples for a finer granularity, a temperature, or a choice of "
                f"layers, got {images}",
                "more examples, or `granularity=global` without the others",
            )
        refining = refining or (under_conditions and rivals == "free" and images >= FEWEST_TO_REFINE)
        prices = latency if isinstance(latency, LayerPrices) else None
        if isinstance(latency, LatencyBudget):
            shapes = {name: shape[1:] for name, shape in seen.shapes.items() if name in names}
            inputs = next(iter(batches.take(np.arange(1)))).inputs
            prices = find_prices(
                predictor,
                shapes,
                _image_size(inputs),
                latency,
                world=world or World(),
                journal=journal,
                meter=meter,
            )
        curve = "full" if label_counts else curve  # so that few of the images can choose
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
                clean = len(examples)
                few = np.unique(np.linspace(0, clean - 1, min(clean, ENOUGH)).astype(np.int64))
                _check_order(examples, passes.measure(few, [0.0])[0])
            if searching:
                (found, swept, gain, objection), note = within_finite_range(
                    passes,
                    lambda limit: search_and_confirm(
                        passes, goal, curve == "full", curve_tolerance, race_delta, seed, limit
                    ),
                )
            elif automatic:
                swept, note = within_finite_range(passes, lambda limit: measure_list(passes, values, limit))
            else:  # whoever names an α wants to hear of it
                swept = measure_list(passes, values, 1.0)
            if found is None:
                points, decision = measured_curve(swept), select(swept, goal, accept=accept, seed=seed)
            else:
                points = interpolated_curve(found, swept, values[0])
                best = {name: passes.alpha(t) for name, t in found.best.items()}
                decision = decide(
                    metric, passes.alpha(found.t), best, values[0], gain, images, accept, objection
                )
            order = [] if examples is None else _check_order(examples, swept.baseline)
            refinement = None
            unseen = UnseenGains()

            def choose_global(positions: NDArray[np.int64]) -> float:
                if found is not None:
                    return passes.alpha(best_on(found, positions, goal))
                listed = swept.choices()
                return listed.alphas[best_point(listed.scores, goal, "deploy", positions)]

            # Those that chose α, and others.
            parts = (
                halves_of(batches.targets, batches.ids, seed)
                if found is None or not len(found.confirming)
                else (found.choosing, found.confirming)
            )
            if refining:
                meter.later = after // passes.world.size
                refinement = refine(
                    passes,
                    choose_global,
                    decision.candidate,
                    granularity,
                    objective=goal,
                    temperature=temperature,
                    accept=accept,
                    keep_global=decision.alpha != values[0],
                    seed=seed,
                    rivals=rivals,
                    choose=choose,
                    label_counts=label_counts,
                    prices=prices,
                    parts=parts,
                    journal=journal,
                )
                decision = _refined(decision, refinement)
                unseen = refinement.unseen
            elif under_conditions and decision.alpha != values[0]:
                meter.phase("shifts it has not seen")
                unseen = unseen_gains(
                    passes,
                    parts,
                    swept.baseline,
                    lambda positions, _: Candidate(choose_global(positions)).nearer(
                        1.0 if found is None else found.share, passes
                    ),
                    metric,
                    known=[*zip(map(Candidate, swept.alphas), swept.scores, strict=True)],
                    seed=seed,
                )
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
        objective=goal,
        conditions=tuple(batches.names),
        unseen=unseen,
    )
    meter.later = 0
    if batch_stats:
        compared = compare_batch_statistics(
            passes, swept.baseline, seed=seed, exclude=exclude, skip_unknown=skip_unknown
        )
        result = replace(result, batch_statistics=compared)
    meter.expect(0)
    return replace(result, warnings=(*said, *order, *([note] if note else []), *warnings_of(result, model)))


def _goal(metric: Metric, over: Over, guard: Sequence[str], batches: Data) -> Objective:
    """The objective, as far as it means something with these examples.

    Raises:
        ConfigurationError: a condition where there are none, a guard that fits none, a metric that is no mean, or one
            of two classes where the data has not both.
    """
    statistic = STATISTICS.get(metric)
    if statistic is not None and statistic.two_classes:
        classes, sizes = np.unique(batches.targets, return_counts=True)
        hint = "`metric=macro_f1`, for example, takes any classes"
        if classes.tolist() != [0, 1]:
            listed = ", ".join(map(str, classes[:4])) + ", ..." * (len(classes) > 4)
            raise ConfigurationError(
                f"{INFO[metric].name} takes examples of two classes, 0 and 1, and the data has {listed}", hint
            )
        if sizes.min() < FEWEST_OF_A_CLASS:
            raise ConfigurationError(
                f"{INFO[metric].name} takes at least {FEWEST_OF_A_CLASS} examples of each class, and the data has "
                f"{sizes.min()} of class {sizes.argmin()}",
                hint,
            )
    if not has_conditions(batches.ids):
        if over != "mean" or guard:
            raise ConfigurationError(
                "the worst condition, or a guard, takes more than one condition",
                "`shift=common`, or further data as `conditions`",
            )
        return Objective(metric)
    if not INFO[metric].is_mean:
        raise ConfigurationError(
            f"{INFO[metric].name} cannot be averaged over conditions",
            "`metric=loss`, with `temperature` for calibration",
        )
    return Objective(metric, over, parse_guards(guard, batches.names))


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
    baseline = baseline.take(conditions_of(baseline.ids) <= 1)  # the clean images
    return check_label_order(examples, baseline.targets, baseline.predicted)


def _image_size(inputs: torch.Tensor) -> tuple[int, int, int]:
    """(C, H, W) of the images that are timed."""
    if inputs.ndim != 4:
        raise ConfigurationError(
            f"what layers cost is timed on images (N, C, H, W), got inputs of shape {tuple(inputs.shape)}",
            "without a latency budget, and with `layers=all`, α is tuned in all layers",
        )
    _, channels, height, width = inputs.shape
    return channels, height, width


def _look_at_outputs(model: nn.Module, batches: Data, wanted: str | None) -> tuple[str, ...]:
    """Find the logits among the outputs for a few of the examples, and see what they are; what is worth saying."""
    count = min(EXAMPLES, len(batches))
    inputs = next(iter(batches.take(np.linspace(0, len(batches) - 1, count).astype(np.int64)))).inputs
    highest = int(batches.targets.max())
    with evaluation_mode(model), preserved(model):
        output = model(inputs.to(input_dtype(model)))
    _, notes = find_reading_(model, output, len(inputs), widths=(highest + 1,), wanted=wanted)
    return notes + check_outputs_(model, inputs)


def _watch(predictor: Predictor, batches: Data) -> Watched:
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
    """The decision when finer α, a temperature, or what is free had their say."""
    if repairs := refinement.repairs:
        won = next(each for each in repairs.tried if each.name == repairs.chosen)
        gain = won.over_plain or next(e for e in repairs.tried if e.name == repairs.best).over_plain
        return replace(decision, alpha=refinement.alpha, reason=refinement.reason, gain=gain or decision.gain)
    if refinement.front is not None:
        return replace(
            decision, alpha=refinement.alpha, reason=refinement.reason, gain=refinement.gain or decision.gain
        )
    if refinement.chosen in ("plain", "global") and not refinement.joint:
        finer = ", ".join(level.name for level in refinement.levels[2:])
        lost = f"; finer ({finer}) does not win over it" if finer else ""
        return replace(decision, reason=decision.reason + lost)
    return replace(decision, alpha=refinement.alpha, reason=refinement.reason, gain=refinement.gain)


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
        raise ConfigurationError(
            f"race delta must lie in [0, 1), got {race_delta:g}", "0 never narrows the range"
        )
