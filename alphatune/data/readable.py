"""Which images can be read at all: looked at before anything is measured, so that every pass sees the same ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.core.progress import Meter
from alphatune.data.examples import Examples, Unreadable
from alphatune.data.loading import Batches, load_image
from alphatune.data.workers import from_workers, image_loader

CHOICES = ("fail", "skip")


def without_unreadable(
    batches: Batches, on_bad_image: str, meter: Meter | None = None
) -> tuple[Batches, tuple[Unreadable, ...]]:
    """The batches without the images that cannot be decoded, which takes decoding all of them once more.

    Args:
        on_bad_image: ``skip``; with ``fail`` nothing is looked at, and the first such image stops a pass.
        meter: told of every batch.

    Returns:
        The batches, and the images left out.

    Raises:
        ConfigurationError: another choice, or a stream, which has no images to leave out by position.
        DataError: no image can be read.
    """
    if on_bad_image not in CHOICES:
        raise ConfigurationError(
            f"unknown choice {on_bad_image!r} for bad images", f"one of: {', '.join(CHOICES)}"
        )
    if on_bad_image == "fail":
        return batches, ()
    examples = batches.examples
    if examples.load is None:
        raise ConfigurationError(
            f"bad images cannot be skipped in {examples.source}, which is a stream",
            "leave out `on_bad_image=skip`",
        )
    bad = _unreadable(batches, meter or Meter())
    if len(bad) == len(examples):
        first = next(iter(bad.values()))
        raise DataError(f"no image of {examples.source} can be read: {first.name}: {first.reason}")
    if not bad:
        return batches, ()
    good = np.setdiff1d(np.arange(len(examples)), list(bad))
    return batches.take(good), tuple(bad.values())


def skipped_warning(source: str, skipped: tuple[Unreadable, ...], of: int) -> list[str]:
    """What was left out, the first few by name."""
    if not skipped:
        return []
    named = ", ".join(image.name for image in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
    return [f"{len(skipped)} of {of} images of {source} cannot be read and were left out: {named}"]


def _unreadable(batches: Batches, meter: Meter) -> dict[int, Unreadable]:
    """The images that cannot be decoded, by position."""
    workers = min(batches.workers, -(-len(batches) // batches.batch_size))
    batch_bytes = batches.batch_size * math.prod(batches.preprocessing.input_size)
    loader = image_loader(
        _Faults(batches), workers, batch_bytes, batch_size=batches.batch_size, collate_fn=list
    )
    found: list[Unreadable | None] = []
    meter.begin("checking the images", len(batches), "images read")
    for faults in from_workers(loader):
        found += faults
        meter.add(len(faults))
    return {position: fault for position, fault in enumerate(found) if fault is not None}


class _Faults(Dataset[Any]):
    """What is wrong with each image; the pixels stay in the worker."""

    def __init__(self, batches: Batches) -> None:
        self._examples: Examples = batches.examples
        self._mode = batches.preprocessing.image_mode
        self._transform = batches.preprocessing.transform()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, position: int) -> Unreadable | None:
        image = load_image(self._examples, position, self._mode, self._transform)
        return image if isinstance(image, Unreadable) else None
