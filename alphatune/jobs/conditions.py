"""Open the conditions that the settings name: shifts of the images, and further data."""

from __future__ import annotations

import numpy as np

from alphatune.core.errors import ConfigurationError
from alphatune.core.progress import Meter
from alphatune.data.cache import with_cache
from alphatune.data.class_map import only_present
from alphatune.data.conditions import Conditions, make_conditions
from alphatune.data.examples import Examples
from alphatune.data.loading import Batches
from alphatune.data.readable import skipped_warning, without_unreadable
from alphatune.jobs.opening import Prepared, check_classes, named_conditions, open_examples
from alphatune.results.evaluation import CorruptionError, EvaluatedCondition
from alphatune.settings import EvaluateSettings
from alphatune.statistics.conditions import conditions_of
from alphatune.statistics.scores import Scores, summarise


def open_conditions(
    settings: EvaluateSettings, prepared: Prepared, meter: Meter | None = None
) -> Conditions | None:
    """The images of ``prepared`` under the conditions that `shift` and `conditions` name; None without any.

    Further data are opened, limited and cached by the same settings as the clean images.

    Raises:
        ConfigurationError: as ``make_conditions``; or further data whose classes are not those of the clean images.
        DataError: further data that cannot be read.
    """
    shifts, named = named_conditions(settings)
    if not shifts and not named:
        return None
    opened = [(name, *_open(settings, data, prepared, meter)) for name, data in named]
    return make_conditions(
        prepared.batches,
        shifts,
        [(name, batches) for name, batches, _ in opened],
        seed=settings.seed,
        warnings=tuple(note for *_, notes in opened for note in notes),
    )


def describe_conditions(conditions: Conditions, scores: Scores) -> tuple[EvaluatedCondition, ...]:
    """Each condition with the metrics of its examples."""
    number = conditions_of(scores.ids)
    return tuple(
        EvaluatedCondition(
            name=name,
            made=shift is not None,
            severities=shift.severities if shift else (),
            source=conditions.batches_of(k).examples.source,
            metrics=summarise(scores.take(np.flatnonzero(number == k))),
        )
        for k, (name, shift) in enumerate(zip(conditions.names, conditions.shifts, strict=True), 1)
    )


def corruption_error(conditions: tuple[EvaluatedCondition, ...]) -> CorruptionError | None:
    """The mean error over the shifts, and how much of it the clean images do not have; None without a shift."""
    top1 = [each.metrics.top1 for each in conditions if each.made]
    if not top1:
        return None
    mean = float(np.mean(top1))
    return CorruptionError(mean=1 - mean, relative=conditions[0].metrics.top1 - mean, shifts=len(top1))


def _open(
    settings: EvaluateSettings, data: str, prepared: Prepared, meter: Meter | None
) -> tuple[Batches, list[str]]:
    clean = prepared.batches
    examples = open_examples(settings, data, clean.preprocessing.image_mode)
    prepared.opened.preparation.check(examples)
    check_classes(examples, prepared.probe.num_classes)
    if settings.classes_only_present:
        examples = only_present(examples)
    _check_same_classes(examples, clean.examples)
    batches = Batches(
        examples.limit(settings.limit, settings.seed),
        clean.preprocessing,
        batch_size=clean.batch_size,
        device=clean.device,
        workers=clean.workers,
    )
    total = len(batches)
    batches, skipped = without_unreadable(batches, settings.on_bad_image, meter)
    notes = [*examples.warnings, *skipped_warning(data, skipped, total)]
    return with_cache(batches, clean.cache), notes


def _check_same_classes(examples: Examples, clean: Examples) -> None:
    if examples.classes and clean.classes and examples.classes != clean.classes:
        pairs = zip(examples.classes, clean.classes, strict=False)
        first = next((f"{a!r} in place of {b!r}" for a, b in pairs if a != b), "more or fewer of them")
        raise ConfigurationError(
            f"the classes of {examples.source} are not those of {clean.source}: {first}",
            "`class_map=FILE` says for both which output each class is",
        )
    if examples.outputs != clean.outputs:
        raise ConfigurationError(
            f"{examples.source} and {clean.source} hold different classes, and only those present were to be scored",
            "leave out `classes_only_present`",
        )
