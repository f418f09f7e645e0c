"""Decoded images that are kept for a further pass, in memory or in a file.

What is kept is uint8 after resizing and cropping: a quarter of the model's
input, and without what decoding costs. An image is decoded when a pass first
asks for it, so that passes over subsets decode no more than they need, and
each image once.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from alphatune.core.errors import ConfigurationError, ResourceError, is_out_of_memory
from alphatune.data.available_memory import available_memory
from alphatune.data.loading import Batches
from alphatune.data.prefetch import Batch
from alphatune.data.preprocessing import Preprocessing

CACHES = ("auto", "none", "ram", "disk")

#: images that take no more than this are kept without asking
AUTO_BYTES = 2 * 2**30


class ImageStore:
    """The images of ``source`` by position: uint8 (n, C, H, W) on the host, and which of them are there.

    Memory or file go with the last reference to this, or with the process.
    """

    def __init__(self, source: Batches, images: Tensor, where: str) -> None:
        self.source = source
        self.images = images
        self.where = where
        self._pixels = images.numpy()  # the same memory; numpy moves whole images, torch byte by byte
        self.present = np.zeros(len(source), dtype=np.bool_)

    def fill(self, positions: np.ndarray) -> Generator[None, None, None]:
        """Decode those of the images that are not there yet, in order, a batch at each step."""
        if self.source.examples.load is None:
            positions = np.arange(len(self.present))  # a stream decodes whatever it passes
        missing = positions[~self.present[positions]]
        missing = missing[
            np.sort(np.unique(missing, return_index=True)[1])
        ]  # an image may come several times
        if len(missing) == 0:
            return
        start = 0
        for batch in self.source.take(missing).host_batches():
            rows = missing[start : start + len(batch)]
            start += len(batch)
            self._pixels[rows] = batch.inputs.numpy()
            self.present[rows] = True
            yield

    def read(self, positions: np.ndarray, *, pin: bool) -> Tensor:
        """Images that are there; a view where nothing has to be moved."""
        first, last = int(positions[0]), int(positions[-1])
        if (np.diff(positions) == 1).all() and (not pin or self.images.is_pinned()):
            return self.images[first : last + 1]
        images = torch.empty((len(positions), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=pin)
        np.take(self._pixels, positions, axis=0, out=images.numpy(), mode="clip")  # clip: straight into out
        return images


@dataclass(frozen=True)
class CachedBatches(Batches):
    """Batches whose images are decoded once, however many passes are made over whichever of them."""

    store: ImageStore = field(kw_only=True)
    positions: np.ndarray = field(kw_only=True)  # of the present examples in the store

    @property
    def cache(self) -> str:
        return self.store.where

    def take(self, positions: np.ndarray) -> CachedBatches:
        return replace(self, examples=self.examples.take(positions), positions=self.positions[positions])

    def host_batches(self) -> Iterator[Batch]:
        """The batches of ``Batches``, bit for bit, partly or wholly without decoding."""
        targets = torch.from_numpy(self.examples.targets)
        ids = torch.from_numpy(self.examples.indices)
        pin = self.device.type == "cuda"
        with closing(self.store.fill(self.positions)) as decoding:
            for start in range(0, len(self), self.batch_size):
                rows = slice(start, start + self.batch_size)
                wanted = self.positions[rows]
                while not self.store.present[wanted].all():
                    next(decoding)
                yield Batch(self.store.read(wanted, pin=pin), targets[rows], ids[rows])
            for _ in decoding:  # the rest of a stream, and the count of what came
                pass


def with_cache(batches: Batches, where: str) -> Batches:
    """Batches that keep decoded images in ``ram`` or on ``disk``, or the same batches for ``none``.

    ``auto`` is ram for images that take at most 2 GiB and half of the memory
    that is available, else none. The file of ``disk`` lies in the temporary
    folder without a name, and goes with the process however that ends.

    Raises:
        ResourceError: not enough memory, or room on the disk; nothing was decoded yet.
        ConfigurationError: ``where`` is something else.
    """
    if where not in CACHES:
        raise ConfigurationError(f"unknown cache {where!r}", f"one of: {', '.join(CACHES)}")
    size, available = len(batches) * math.prod(batches.preprocessing.input_size), available_memory()
    if where == "auto":
        fits = size <= AUTO_BYTES and (available is None or size <= available // 2)
        where = "ram" if fits else "none"
    if where == "none" or size == 0:
        return batches
    images = _in_memory(batches, size, available) if where == "ram" else _in_file(batches, size)
    # Decoded for the host: a copy into the store would gain nothing from pinned memory.
    source = replace(batches, device=torch.device("cpu"))
    return CachedBatches(
        batches.examples,
        batches.preprocessing,
        batches.batch_size,
        batches.device,
        batches.workers,
        store=ImageStore(source, images, where),
        positions=np.arange(len(batches)),
    )


def empty_images(
    count: int, preprocessing: Preprocessing, device: torch.device, hint: str, *, pin: bool = False
) -> Tensor:
    """Room for decoded images on a device; raises ResourceError with the hint if there is none."""
    shape = (count, *preprocessing.input_size)
    try:
        return torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pin)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"{count} images do not fit into the memory of {device}", hint) from None


def _in_memory(batches: Batches, size: int, available: int | None) -> Tensor:
    hint = "`cache=disk` or none, or fewer images by `limit`"
    if available is not None and size > available:
        raise ResourceError(
            f"{len(batches)} decoded images take {_gib(size)}, and {_gib(available)} of memory are available",
            hint,
        )
    host = torch.device("cpu")
    # Pinned memory comes in powers of two, and never goes to the swap.
    rounded = 1 << max(0, size - 1).bit_length()
    if batches.device.type == "cuda" and available is not None and rounded <= available // 2:
        try:
            return empty_images(len(batches), batches.preprocessing, host, hint, pin=True)
        except (RuntimeError, ResourceError):
            pass  # the system may limit it; a batch at a time is pinned instead
    return empty_images(len(batches), batches.preprocessing, host, hint)


def _in_file(batches: Batches, size: int) -> Tensor:
    hint = "TMPDIR names another folder; or `cache=none`"
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if size > free:
            raise ResourceError(
                f"{len(batches)} decoded images take {_gib(size)}, and {_gib(free)} are free in {folder}",
                hint,
            )
        with tempfile.TemporaryFile(prefix="alphatune-") as file:
            _reserve(file.fileno(), size)
            shape = (len(batches), *batches.preprocessing.input_size)
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))
    except OSError as error:
        raise ResourceError(f"no room for {len(batches)} decoded images: {error}", hint) from None


def _reserve(file: int, size: int) -> None:
    """A full disk is an error now, and would kill the process when the mapped file is written."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what a file system says that cannot
                raise


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
