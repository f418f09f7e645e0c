"""What a tune is going to take, and which gains its examples can tell from luck."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from alphatune.core.errors import AlphatuneError
from alphatune.core.metrics import SCORE
from alphatune.data.conditions import Conditions
from alphatune.data.loading import Batches
from alphatune.evaluation.predictor import evaluation_mode
from alphatune.jobs.opening import Prepared, predictor_of, resolved_paths
from alphatune.models.stability import preserved
from alphatune.norms.patching import patched, set_alpha_, unpatched_alpha
from alphatune.results.model import PlannedModel
from alphatune.results.plan import ImagesPlan, Phase, PlannedWork
from alphatune.results.power import Choice, Power
from alphatune.results.stored import read_tuned
from alphatune.results.tune import ScoreTuneDocument, Tuned, TuneDocument
from alphatune.settings import TuneSettings
from alphatune.statistics.gain import CONFIDENCE
from alphatune.statistics.gain_table import planned_power
from alphatune.tuning.front import SHARES as SET_SHARES
from alphatune.tuning.refinement import is_joint, levels_of
from alphatune.tuning.search import CHOOSING, FEWEST_TO_SEARCH, PILOT_NODES, pilot_size
from alphatune.tuning.step_back import SHARES

#: images that are timed
TIMED = 32
#: how far from the unpatched model a forward pass is timed
TIMED_AT = 0.05
#: nodes of a search, the fewest and the most that is usual; of a full curve
USUAL_NODES, FULL_NODES = (4, 5), (4, 8)
#: plain evaluations that a level of finer α takes, two descents and two exact passes; the last descent
LEVEL, LAST = (5, 10), (0, 6)
#: that the free repairs take on both halves, and one fit of them on one half
RIVALS, ONE_FIT = (6, 40), (1, 16)

Range = tuple[float, float]


def plan_work(
    settings: TuneSettings,
    prepared: Prepared,
    alphas: Sequence[float],
    others: Sequence[Batches],
    exclude: Sequence[str],
    conditions: Conditions | None,
) -> PlannedWork:
    """The phases of a tune, what each costs, and the time, from a few images.

    Args:
        others: images that moving averages are measured on.
        exclude: layers that are left alone.
        conditions: that are tuned over; an evaluation is one of all of them.
    """
    n = len(prepared.batches if conditions is None else conditions)
    phases = tuple(_phases(settings, n, len(alphas), [len(b) / n for b in others], conditions))
    low, high = (sum(phase.evaluations[i] for phase in phases) for i in (0, 1))
    timed = _time(settings, prepared, exclude)
    seconds = None
    if timed is not None:
        forward, reading = timed
        # Each batch is read once for all α of a phase, and kept where there is room.
        seconds = (n * (low * forward + reading), n * (high * forward + 2 * reading))
    return PlannedWork(
        phases=phases,
        evaluations=(low, high),
        seconds_per_image=timed[0] if timed else None,
        seconds=seconds,
    )


def plan_power(
    settings: TuneSettings, plan: ImagesPlan, alphas: Sequence[float], conditions: Conditions | None
) -> tuple[Power, ...]:
    """What the images will be able to tell; nothing where there is no α to compare, or several conditions."""
    if len(alphas) < 2 or conditions is not None:
        return ()
    earlier = _earlier(settings)
    same = (
        isinstance(earlier, TuneDocument)
        and earlier.metric == settings.metric
        and (earlier.model.source, earlier.model.checkpoint_sha256, earlier.model.weights_key)
        == (plan.model.source, plan.model.checkpoint_sha256, plan.model.weights_key)
        and (earlier.data.source, earlier.data.root, earlier.data.split)
        == (plan.data.source, plan.data.root, plan.data.split)
        and earlier.data.preprocessing == plan.data.preprocessing
    )
    known = earlier.power if earlier and same else None
    searched = _searches(settings, plan.data.n) and settings.curve != "full"
    choice: Choice = "part" if searched else "cross-fitted"
    confidence, joint = CONFIDENCE, is_joint(settings.metric, settings.temperature)
    if settings.granularity != "global" or joint:
        choice, levels = "halves", len(levels_of(settings.granularity)) - 1 + joint
        confidence = 1 - (1 - CONFIDENCE) / max(1, levels)
    return planned_power(settings.metric, plan.data.n, choice, known, settings.min_gain, confidence)


def plan_score_power(settings: TuneSettings, model: PlannedModel) -> tuple[Power, ...]:
    """The same of a score of one's own; how much that varies is not known before an earlier run."""
    earlier, named = _earlier(settings), resolved_paths(settings)
    if not isinstance(earlier, ScoreTuneDocument) or earlier.power is None:
        return ()
    before = (
        earlier.model.source,
        earlier.model.checkpoint_sha256,
        earlier.data.source,
        earlier.score.source,
    )
    if before != (model.source, model.checkpoint_sha256, named.data, named.score):
        return ()
    n = earlier.power.examples
    return planned_power(SCORE, n, earlier.power.choice, earlier.power, settings.min_gain)


def _earlier(settings: TuneSettings) -> Tuned | None:
    """What the output folder holds of an earlier run."""
    with contextlib.suppress(AlphatuneError, OSError):
        return read_tuned(Path(settings.output))
    return None


def _searches(settings: TuneSettings, n: int) -> bool:
    return settings.alphas == "auto" and n >= FEWEST_TO_SEARCH


def _phases(
    settings: TuneSettings,
    n: int,
    alphas: int,
    averages: Sequence[float],
    conditions: Conditions | None,
) -> list[Phase]:
    found = []

    def add(name: str, low: float, high: float) -> None:
        found.append(Phase(name=name, evaluations=(round(low, 2), round(high, 2))))

    if settings.recalibrate is not None:
        add("scoring by the stored moving averages", 1, 1)
    if averages:
        add("measuring moving averages", sum(averages), sum(averages))
    if _searches(settings, n):
        full = settings.curve == "full"
        pilot = PILOT_NODES * pilot_size(n) / n
        add("pilot", pilot, 2 * pilot)
        few, most = FULL_NODES if full else USUAL_NODES
        seen = 1 if full else CHOOSING
        add("search", few * seen, most * seen)
        if conditions is not None:
            add("guarded conditions", 0, len(SHARES) / len(conditions.names))
        add("confirming", 1 - seen, 2 - seen)
    else:
        add("sweeping alpha", alphas, alphas)
    compares = conditions is not None and settings.rivals == "free"
    if settings.granularity != "global" or settings.temperature or compares or settings.chooses_layers:
        joint = is_joint(settings.metric, settings.temperature)
        add("unpatched model and temperature", 1, 1)
        for name in levels_of(settings.granularity):
            fitted = joint or name != "global"
            add(f"descent: {name}" if fitted else "temperature", *(LEVEL if fitted else (1, 2)))
        if settings.chooses_layers:
            sets = len(SET_SHARES) + (settings.latency_budget is not None)
            add("choosing layers", 0, sets * LEVEL[1])
        if settings.rivals == "free":
            add("running statistics, γ and β", RIVALS[0] if compares else 0, RIVALS[1])
        add("last descent, and confirming", *LAST)
    if conditions is not None:
        fits = (len(conditions.names) - 1) * ONE_FIT[1] if compares else 1
        add("shifts that are left out", 0, fits)
    if settings.label_counts:
        counts = settings.label_counts.count(",") + 1
        add("numbers of labels", 10 * counts, 2 * counts * (4 + 4 * ONE_FIT[1]))
    if settings.batch_stats:
        add("batch statistics", 2, 2)
    return found


def _time(settings: TuneSettings, prepared: Prepared, exclude: Sequence[str]) -> Range | None:
    """Seconds an image of a forward pass with α > 0, and of reading one; None where that fails: the run will say why."""
    batches, module = prepared.batches, prepared.opened.module
    count = min(TIMED, batches.batch_size, len(batches))
    few = replace(batches.take(np.arange(count)), batch_size=count, workers=0)
    try:
        started = time.perf_counter()
        inputs = next(iter(few)).inputs
        reading = (time.perf_counter() - started) / count / max(1, batches.workers)
        predictor = replace(predictor_of(settings, prepared), compile=False)
        with (
            patched(module, exclude=exclude, skip_unknown=settings.skip_unknown),
            evaluation_mode(module),
            preserved(module),
        ):
            set_alpha_(module, abs(unpatched_alpha(module) - TIMED_AT))
            ready = predictor.prepare(inputs)
            times = []
            for _ in range(2):  # the first one sets up what later ones find there
                started = time.perf_counter()
                predictor(ready).cpu()
                times.append(time.perf_counter() - started)
    except AlphatuneError:
        return None
    return min(times) / count, reading
