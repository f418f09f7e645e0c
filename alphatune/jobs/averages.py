"""Moving averages that ``tune`` measures before it sweeps: `calibrate` and `recalibrate`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError, NumericError
from alphatune.core.metrics import INFO
from alphatune.core.progress import Meter
from alphatune.data.augmentation import resolve_augmentation
from alphatune.data.augmented import AugmentedBatches
from alphatune.data.cache import with_cache
from alphatune.data.datasets import is_dataset_string, open_data, opens_by_name
from alphatune.data.examples import Examples
from alphatune.data.folders import own_splits
from alphatune.data.loading import Batches, automatic_batch_size
from alphatune.data.readable import skipped_warning, without_unreadable
from alphatune.data.split_names import synonyms
from alphatune.evaluation.predictor import Predictor, evaluate
from alphatune.jobs.describe import describe_measured
from alphatune.jobs.opening import OpenedModel, Prepared, choose_workers, whole_number
from alphatune.models.calibration import (
    ORDERS,
    Calibration,
    calibrate_,
    layers_to_calibrate,
    layers_to_recalibrate,
    recalibrate_,
)
from alphatune.models.measurement import device_of
from alphatune.models.running_stats_check import examine
from alphatune.norms.calibrated import Calibrated as CalibratedNorm
from alphatune.norms.surgery import become_calibrated_, become_uncalibrated_
from alphatune.norms.survey import survey
from alphatune.results.averages import Calibration as Calibrated
from alphatune.results.averages import Recalibration as Recalibrated
from alphatune.results.gain import PairedGain
from alphatune.results.plan import PlannedAverages
from alphatune.settings import InspectSettings, TuneSettings
from alphatune.statistics.gain import FEWEST_EXAMPLES, paired_gain
from alphatune.statistics.scores import Scores, concatenate, summarise
from alphatune.tuning.tune import TuneResult


@dataclass(frozen=True)
class Averages:
    """The images to measure moving averages on, opened; None where nothing is to be measured."""

    calibrate: Batches | None
    recalibrate: Batches | None
    augmentation: str
    warnings: tuple[str, ...]

    def batches(self) -> tuple[Batches, ...]:
        """All images that averages are measured on."""
        return tuple(batches for batches in (self.calibrate, self.recalibrate) if batches is not None)

    def plan(self) -> dict[str, PlannedAverages | None]:
        """What a dry run says of it."""
        named = {"calibration": self.calibrate, "recalibration": self.recalibrate}
        return {
            name: None if batches is None else PlannedAverages(data=describe_measured(batches))
            for name, batches in named.items()
        }


@dataclass(frozen=True)
class RecalibrationOutcome:
    """What was measured; ``before`` are the scores of all examples by the averages that were stored."""

    calibration: Calibration | None
    recalibration: Calibration | None
    before: Scores | None


def open_averages(settings: TuneSettings, prepared: Prepared, meter: Meter) -> Averages:
    """Open what `calibrate` and `recalibrate` name, and check that the model has layers for them.

    Layers to calibrate get moments that stand in for those to come, so that all
    other checks can be made before anything is run.

    Raises:
        ConfigurationError: options that go with neither.
        UnsupportedModelError: the model has no layer to measure averages for.
    """
    _check(settings)
    opened, module = prepared.opened, prepared.opened.module
    calibrate = recalibrate = None
    augmentation = "none"
    notes: list[str] = []
    if settings.recalibrate is not None:
        layers_to_recalibrate(module)
        augmentation = resolve_augmentation(settings.recalibrate_augment, opened.preprocessing)
        recalibrate = _open(settings, settings.recalibrate, opened, augmentation, notes, meter)
        if settings.recalibrate_order == "layer-by-layer":
            recalibrate = with_cache(recalibrate, settings.cache)
        elif recalibrate.examples.load is not None:
            recalibrate = mixed(recalibrate, settings.seed)
        else:
            notes.append(
                f"{settings.recalibrate} is a stream and read in its own order: if that is by class, batches are "
                "not like those of training, and `recalibrate_order=layer-by-layer` fits better"
            )
    if settings.calibrate is not None:
        layers_to_calibrate(module)
        calibrate = _open(settings, settings.calibrate, opened, "none", notes, meter)
        _stand_in_(prepared)
    for option, batches in (("`calibrate`", calibrate), ("`recalibrate`", recalibrate)):
        if batches is not None and _same_source(batches, prepared.batches):
            notes.append(
                f"{option} measures on the images that the gain is then reported on: deployed on other images, "
                "the averages will fit less well; give a part of the training images"
            )
    return Averages(calibrate, recalibrate, augmentation, tuple(notes))


def open_images(
    settings: TuneSettings | InspectSettings,
    source: str,
    opened: OpenedModel,
    *,
    split: str | None,
    limit: int | None,
    split_seed: int = 0,
) -> Batches:
    """The images that a source names, prepared for a model; classes need not be the model's."""
    examples = open_data(
        source,
        split=split,
        data_root=settings.data_root,
        labelled=False,
        image_mode=opened.preprocessing.image_mode,
        input_key=settings.input_key,
        target_key=settings.target_key,
        split_seed=split_seed,
    )
    batch_size = whole_number(settings.batch_size, "`batch_size`", 1)
    batch_size = batch_size or automatic_batch_size(opened.preprocessing, opened.device)
    return Batches(
        examples.decoded_by(settings.decoder).at_most(settings.max_pixels).limit(limit, settings.seed),
        opened.preprocessing,
        batch_size=batch_size,
        device=opened.device,
        workers=choose_workers(settings.workers, batch_size, opened.preprocessing)[0],
    )


def mixed(batches: Batches, seed: int) -> Batches:
    """The same examples in random order: class folders come class by class, and batches are to be like training's."""
    return batches.take(np.random.default_rng(seed).permutation(len(batches)))


def replace_averages_(
    averages: Averages,
    settings: TuneSettings,
    prepared: Prepared,
    predictor: Predictor,
    world: World,
    meter: Meter,
) -> RecalibrationOutcome:
    """Measure, and give the model, the averages; that of BatchNorm first, which other layers' inputs depend on."""
    module = prepared.opened.module
    calibration = recalibration = before = None

    def then(*following: Batches | None) -> None:
        """Say what follows, beside what the caller knows of."""
        meter.later = after + sum(-(-len(each) // world.size) for each in following if each is not None)

    after = meter.later
    if averages.recalibrate is not None:
        if not any(health.problem for health in examine(module)):
            then(averages.recalibrate, averages.calibrate)
            before = _scores(prepared, predictor, world, meter)
        then(averages.calibrate)
        recalibration = recalibrate_(
            module,
            averages.recalibrate,
            order=settings.recalibrate_order,
            predictor=predictor,
            world=world,
            progress=meter,
        )
    then()
    if averages.calibrate is not None:
        calibration = calibrate_(module, averages.calibrate, predictor=predictor, world=world, progress=meter)
        modules = dict(module.named_modules())
        for name in calibration.unreached:  # what stood in for their moments means nothing
            if isinstance(layer := modules[name], CalibratedNorm):
                become_uncalibrated_(layer)
    return RecalibrationOutcome(calibration, recalibration, before)


@dataclass(frozen=True)
class DescribedAverages:
    """The averages of a job as they appear in its result, and what is worth saying of them."""

    calibration: Calibrated | None
    recalibration: Recalibrated | None
    warnings: tuple[str, ...]


def describe_averages(
    averages: Averages, replaced: RecalibrationOutcome, prepared: Prepared, result: TuneResult
) -> DescribedAverages:
    """What was measured, and what it alone is worth."""
    calibrated = recalibrated = None
    notes = list(averages.warnings)
    for measured in (replaced.calibration, replaced.recalibration):
        if measured and measured.unreached:
            notes.append(
                f"{len(measured.unreached)} norm layer(s) were not reached by the forward pass and are as they "
                f"were, e.g. {measured.unreached[0]}"
            )
    if (measured := replaced.calibration) and averages.calibrate:
        kinds = {layer.name: layer.kind for layer in survey(prepared.opened.module)}
        calibrated = Calibrated(
            data=describe_measured(averages.calibrate),
            layers=len(measured.layers),
            kinds=dict(Counter(kinds[name] for name in measured.layers)),
            unreached=tuple(measured.unreached),
        )
    if (measured := replaced.recalibration) and averages.recalibrate:
        before, after, gain = replaced.before, result.sweep.baseline, None
        if before is not None and len(after) >= FEWEST_EXAMPLES:
            gain = paired_gain(after, before, result.metric, seed=result.seed)
            if gain.ci[1] < 0:
                notes.append(
                    f"the averages that were measured anew make {INFO[result.metric].name} worse than the stored ones: "
                    "other images, or other augmentation, than those the model was trained on?"
                )
        recalibrated = Recalibrated(
            data=describe_measured(averages.recalibrate),
            order=measured.order,
            augmentation=averages.augmentation,
            layers=len(measured.layers),
            unreached=tuple(measured.unreached),
            before=None if before is None else summarise(before),
            after=summarise(after),
            gain=PairedGain(**{name: gain[name] for name in PairedGain.__struct_fields__}) if gain else None,
        )
    return DescribedAverages(calibrated, recalibrated, tuple(notes))


def _check(settings: TuneSettings) -> None:
    if settings.recalibrate is None:
        for name, usual in (("recalibrate_augment", "none"), ("recalibrate_order", "one-pass")):
            if getattr(settings, name) != usual:
                raise ConfigurationError(f"`{name}` needs `recalibrate=DATA`")
        if settings.calibrate is None:
            for name in ("calibrate_limit", "calibrate_split"):
                if getattr(settings, name) is not None:
                    raise ConfigurationError(f"`{name}` needs `calibrate=DATA` or `recalibrate=DATA`")
    if settings.recalibrate_order not in ORDERS:
        raise ConfigurationError(
            f"unknown order {settings.recalibrate_order!r}", f"one of: {', '.join(ORDERS)}"
        )
    if settings.calibrate_limit is not None and settings.calibrate_limit < 1:
        raise ConfigurationError(f"`calibrate_limit` must be at least 1, got {settings.calibrate_limit}")


def _open(
    settings: TuneSettings,
    source: str,
    opened: OpenedModel,
    augmentation: Any,
    notes: list[str],
    meter: Meter,
) -> Batches:
    split = settings.calibrate_split or _training_split(source, settings.data_root)
    batches = open_images(
        settings,
        source,
        opened,
        split=split,
        limit=settings.calibrate_limit,
        split_seed=settings.split_seed,
    )
    opened.preparation.check(batches.examples)
    total = len(batches)
    batches, skipped = without_unreadable(batches, settings.on_bad_image, meter)
    notes += skipped_warning(source, skipped, total)
    if augmentation == "none":
        return batches
    return AugmentedBatches(
        batches.examples,
        batches.preprocessing,
        batches.batch_size,
        batches.device,
        batches.workers,
        augmentation=augmentation,
        seed=settings.seed,
    )


def _training_split(source: str, data_root: str | None) -> str | None:
    """Moving averages are those of training: the split of that name, where there is one."""
    if opens_by_name(source, data_root) or is_dataset_string(source):
        return "train"
    names = own_splits(Path(source)) if Path(source).exists() else []
    return "train" if set(synonyms("train")) & set(names) else None


def _stand_in_(prepared: Prepared) -> None:
    module = prepared.opened.module
    modules = dict(module.named_modules())
    for layer in survey(module):
        if layer.status == "calibratable" and layer.name in prepared.probe.layers:
            device = device_of(modules[layer.name], module)
            zeros = torch.zeros(layer.num_features or 1, device=device)
            become_calibrated_(modules[layer.name], zeros, torch.ones_like(zeros))


def _same_source(batches: Batches, others: Batches) -> bool:
    def place(examples: Examples) -> tuple[str, ...]:
        root = Path(examples.root)
        if examples.root and root.exists() and not opens_by_name(examples.source, examples.root):
            return (str(root.resolve()),)  # of a split, if there are some
        return examples.source, examples.root, examples.split

    return place(batches.examples) == place(others.examples)


def _scores(prepared: Prepared, predictor: Predictor, world: World, meter: Meter) -> Scores | None:
    """Scores of all examples as the model is, in every process; None if its outputs are not finite."""
    batches = prepared.batches
    mine = world.batches_of(np.arange(len(batches)), batches.batch_size)

    def share() -> list[Scores]:
        if not len(mine):
            return []
        part = batches.take(mine)
        return [evaluate(predictor.model, part, predictor=predictor, total=len(mine), progress=meter)]

    try:
        return concatenate([scores for part in world.run_on_all_ranks(share) for scores in part])
    except NumericError:
        return None
