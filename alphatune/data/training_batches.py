"""Batches to train on: drawn, decoded, augmented, on the device.

Every batch is a function of (seed, epoch, step), whatever the number of
workers and whatever came before: a resumed run sees what it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from alphatune.core.errors import ConfigurationError
from alphatune.core.progress import Meter
from alphatune.data.augmentation import (
    Augmentation,
    augment_batch,
    derived_seed,
    stored_preprocessing,
    training_transform,
)
from alphatune.data.cache import empty_images
from alphatune.data.examples import Examples, Unreadable
from alphatune.data.loading import Batches, load_image
from alphatune.data.prefetch import Batch, on_device
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.sampling import Sampling, epoch_batches, steps_per_epoch
from alphatune.data.workers import collate, decoded, image_loader


@dataclass(frozen=True)
class DeviceCache:
    """Every example decoded once: uint8 images (n, C, H, W) and their labels on a device."""

    images: Tensor
    targets: Tensor
    ids: Tensor

    @classmethod
    def of(cls, batches: Batches, meter: Meter | None = None) -> DeviceCache:
        """Read all batches; raises ResourceError if they do not fit into memory."""
        images = empty_images(len(batches), batches.preprocessing, batches.device, "leave out `cache`")
        targets, ids, start = [], [], 0
        for part in on_device(batches.host_batches(), batches.device):
            images[start : start + len(part)] = part.inputs
            start += len(part)
            if meter:
                meter.add(len(part))
            targets.append(part.targets)
            ids.append(part.ids)
        return cls(images, torch.cat(targets), torch.cat(ids))


@dataclass(frozen=True)
class DeviceBatches:
    """The examples of a device cache in order, for evaluation; iterate as often as needed."""

    cache: DeviceCache
    preprocessing: Preprocessing
    batch_size: int

    def __len__(self) -> int:
        return len(self.cache.ids)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield Batch(
                self.preprocessing.normalise(self.cache.images[rows]),
                self.cache.targets[rows],
                self.cache.ids[rows],
            )


@dataclass(frozen=True)
class TrainingBatches:
    """The training examples, and how batches are made of them.

    ``rank`` of ``world_size`` processes takes its consecutive share of every
    batch, so ghost batches within a process are consecutive examples, too.
    """

    examples: Examples
    preprocessing: Preprocessing
    augmentation: Augmentation
    sampling: Sampling
    device: torch.device
    workers: int = 0
    cache: DeviceCache | None = None
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.sampling.batch_size % self.world_size:
            raise ConfigurationError(
                f"a batch of {self.sampling.batch_size} cannot be shared by {self.world_size} processes"
            )

    def check(self) -> None:
        """Raise ConfigurationError now for what the first batch would raise."""
        epoch_batches(self.examples.targets, self.sampling, 0)
        if self.examples.load is None and self.cache is None:
            raise ConfigurationError(
                f"{self.examples.source} can be read in order only, and training draws at random",
                "`cache=device` keeps the images in memory",
            )

    def cached(self, meter: Meter | None = None) -> TrainingBatches:
        """The same batches, augmented on the device from images that are decoded once."""
        stored = stored_preprocessing(self.augmentation, self.preprocessing)
        batches = Batches(self.examples, stored, 256, self.device, self.workers)
        return replace(self, cache=DeviceCache.of(batches, meter))

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.examples), self.sampling)

    def between(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of the steps ``first`` to ``last - 1``, counted from the start of the run."""
        if self.cache is not None:
            return self._from_cache(self.cache, first, last)
        self.check()
        return self._from_source(first, last)

    def _shares(self, first: int, last: int) -> Iterator[tuple[int, list[int]]]:
        """``(step, positions)`` of this process's share of each batch."""
        share = self.sampling.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        steps, epoch = self.steps_per_epoch, -1
        for step in range(first, last):
            if step // steps != epoch:
                epoch = step // steps
                batches = epoch_batches(self.examples.targets, self.sampling, epoch)
            yield step, batches[step % steps][mine].tolist()

    def _from_cache(self, cache: DeviceCache, first: int, last: int) -> Iterator[Batch]:
        for step, positions in self._shares(first, last):
            rows = torch.tensor(positions)
            images = cache.images[rows.to(cache.images.device)]
            seed = derived_seed(self.sampling.seed, step, self.rank)
            images = augment_batch(images, self.augmentation, self.preprocessing, seed)
            yield Batch(
                self.preprocessing.normalise(images), cache.targets[rows.to(images.device)], cache.ids[rows]
            )

    def _from_source(self, first: int, last: int) -> Iterator[Batch]:
        pinned = self.device.type == "cuda"
        # One loader for all epochs: its workers start once, and read on during evaluation.
        share = self.sampling.batch_size // self.world_size
        loader = image_loader(
            _AugmentedImages(self),
            self.workers,
            share * math.prod(self.preprocessing.input_size),
            batch_sampler=_Slots(self, first, last),
            collate_fn=collate,
        )
        targets = torch.from_numpy(self.examples.targets)
        ids = torch.from_numpy(self.examples.indices)
        for images, positions in decoded(loader, pin=pinned):
            yield Batch(
                self.preprocessing.normalise(images.to(self.device, non_blocking=pinned)),
                targets[positions].to(self.device, non_blocking=pinned),
                ids[positions],
            )


class _Slots:
    """For each batch its slots, ``(place in the run, position)``: the place seeds the augmentation."""

    def __init__(self, batches: TrainingBatches, first: int, last: int) -> None:
        self._batches, self._first, self._last = batches, first, last

    def __len__(self) -> int:
        return self._last - self._first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = self._batches
        size = batches.sampling.batch_size
        offset = batches.rank * (size // batches.world_size)
        for step, positions in batches._shares(self._first, self._last):
            yield [(step * size + offset + i, position) for i, position in enumerate(positions)]


class _AugmentedImages(Dataset[Any]):
    def __init__(self, batches: TrainingBatches) -> None:
        self._examples = batches.examples
        self._mode = batches.preprocessing.image_mode
        self._transform = training_transform(batches.augmentation, batches.preprocessing)
        self._seed = batches.sampling.seed

    def __getitem__(self, slot: tuple[int, int]) -> tuple[Tensor | Unreadable, int]:
        place, position = slot
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, place))
            return load_image(self._examples, position, self._mode, self._transform), position
