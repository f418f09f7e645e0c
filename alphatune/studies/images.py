"""The images of a study: to train on, to choose α by, and to report on; decoded once."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alphatune.core.progress import Meter
from alphatune.data.datasets import opens_by_name
from alphatune.data.digits import read_digits, write_class_folders
from alphatune.data.examples import Examples
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.splits import open_splits
from alphatune.data.training_batches import DeviceBatches, DeviceCache
from alphatune.studies.scale import Scale

#: the scale's dataset that comes with scikit-learn
DIGITS = "digits"
#: the usual ones of CIFAR-10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
#: share of the images that is held out where there is no test set, to choose α and to report
HELD_OUT = 0.2
EVALUATED = 250


@dataclass(frozen=True)
class Part:
    """Examples, and their images in memory."""

    examples: Examples
    cache: DeviceCache

    def of_classes(self, classes: range, count: int | None = None, seed: int = 0) -> Part:
        """Those of some classes, numbered from 0; at most so many, stratified."""
        targets = self.examples.targets
        positions = np.flatnonzero((targets >= classes.start) & (targets < classes.stop))
        chosen = self.take(positions)
        part = Part(
            replace(
                chosen.examples,
                targets=chosen.examples.targets - classes.start,
                classes=chosen.examples.classes[classes.start : classes.stop],
            ),
            replace(chosen.cache, targets=chosen.cache.targets - classes.start),
        )
        return part if count is None else part.limit(count, seed)

    def limit(self, count: int, seed: int) -> Part:
        """At most so many, drawn stratified by class."""
        kept = self.examples.limit(count, seed).indices
        return self.take(np.flatnonzero(np.isin(self.examples.indices, kept)))

    def take(self, positions: NDArray[np.int64]) -> Part:
        """Those at these positions, in increasing order."""
        rows = torch.from_numpy(positions).to(self.cache.images.device)
        cache = DeviceCache(self.cache.images[rows], self.cache.targets[rows], self.cache.ids[rows.cpu()])
        return Part(self.examples.take(positions), cache)


@dataclass(frozen=True)
class StudyImages:
    """Disjoint parts of the data; ``mirrored`` says whether a mirrored image is of the same class."""

    train: Part
    choosing: Part
    reporting: Part
    preprocessing: Preprocessing
    mirrored: bool

    @property
    def num_classes(self) -> int:
        return int(self.train.examples.targets.max()) + 1

    def batches(self, part: Part) -> DeviceBatches:
        """A part in order, for evaluation."""
        return DeviceBatches(part.cache, self.preprocessing, EVALUATED)


def open_images(
    scale: Scale, data: str | None, data_root: str | None, device: torch.device, meter: Meter | None = None
) -> StudyImages:
    """Read the images of a scale.

    Args:
        data: what to read in place of the scale's own, as ``train`` takes it.

    Raises:
        InputError, ConfigurationError: the data cannot be read, or scikit-learn is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        if data is None and scale.dataset == DIGITS:
            data, data_root, mean, std, mirrored = folder, None, (0.3,) * 3, (0.37,) * 3, False
            write_class_folders(Path(folder), *read_digits())
        else:
            data, mean, std, mirrored = data or scale.dataset, MEAN, STD, True
        named = opens_by_name(data, data_root)
        splits = open_splits(data, data_root=data_root, val_fraction=None if named else HELD_OUT)
        preprocessing = Preprocessing((3, scale.size, scale.size), mean, std, crop_pct=1.0)

        def read(examples: Examples) -> Part:
            batches = Batches(examples, preprocessing, EVALUATED, device)
            return Part(examples, DeviceCache.of(batches, meter))

        train = read(splits.train.limit(scale.images, seed=1))
        held_out = read(splits.validation)
        choosing = held_out.limit(scale.choosing, seed=1)
        if splits.test is not None:
            reporting = read(splits.test)
        else:
            others = ~np.isin(held_out.examples.indices, choosing.examples.indices)
            reporting = held_out.take(np.flatnonzero(others))
        return StudyImages(train, choosing, reporting, preprocessing, mirrored)
