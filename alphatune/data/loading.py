"""From examples to batches on the device: worker processes, pinned memory, prefetch."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from alphatune.data.decoding import read_image
from alphatune.data.examples import Examples, Unreadable
from alphatune.data.prefetch import Batch as Batch  # what this module is about
from alphatune.data.prefetch import on_device
from alphatune.data.preprocessing import Preprocessing
from alphatune.errors import (
    AlphatuneError,
    ConfigurationError,
    DataError,
    dead_worker,
    one_line,
    raise_if_machine_failed,
)

#: a Unix socket's path has at most 107 bytes, of which multiprocessing takes 32 ("/pymp-…/listener-…")
_LONGEST_TEMPORARY_FOLDER = 75
#: where sockets can be instead, for this process and its images only
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True)
class Batches:
    """Batches of examples, in order, on a device; iterate as often as needed."""

    examples: Examples
    preprocessing: Preprocessing
    batch_size: int
    device: torch.device
    workers: int = 0

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def __iter__(self) -> Iterator[Batch]:
        return on_device(self.host_batches(), self.device, self.preprocessing.normaliser)

    @property
    def targets(self) -> np.ndarray:
        """The class index of each example, (n,) int64."""
        return self.examples.targets

    @property
    def cache(self) -> str:
        """Where decoded images are kept for a further pass: none, ram or disk."""
        return "none"

    def take(self, positions: np.ndarray) -> Batches:
        """The examples at these positions among the present ones; those of a stream in increasing order."""
        return replace(self, examples=self.examples.take(positions))

    def images(self) -> Dataset[Any]:
        """The images by position, of examples that are no stream."""
        return IndexedImages(self.examples, self.preprocessing)

    def host_batches(self) -> Iterator[Batch]:
        """Decoded images, uint8 (N, C, H, W), targets and ids on the host; pinned for a CUDA device."""
        if self.examples.load is not None:
            dataset: Any = self.images()
            workers = min(self.workers, -(-len(self.examples) // self.batch_size))
        else:
            # Several workers would interleave a stream; one keeps its order.
            dataset = _StreamedImages(self.examples, self.preprocessing)
            workers = min(self.workers, 1)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # the loader's own seed is not to come from the caller's
            worker_init_fn=begin_worker,
        )
        targets = torch.from_numpy(self.examples.targets)
        start = 0
        for images, ids in decoded(loader):
            # A copy: scores keep the ids, and each tensor that comes from a worker holds a file open.
            yield Batch(images, targets[start : start + len(ids)], ids.clone())
            start += len(ids)
        if start != len(self.examples):
            raise DataError(
                f"{self.examples.source} gave {start} examples where {len(self.examples)} were counted before"
            )


def load_image(examples: Examples, position: int, image_mode: str, transform: Any) -> Tensor | Unreadable:
    """Decode and transform the example at a position of ``examples.indices``.

    Anything a decoder raises is this image's fault, and is reported by name
    from the main process instead of as a worker's traceback.
    """
    index = int(examples.indices[position])
    name = f"number {index}"
    try:
        source, name = examples.load(index)  # type: ignore[misc]
        return transform(read_image(source, image_mode, examples.decode_by))  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except AlphatuneError as error:
        return Unreadable(name, error.message)
    except Exception as error:
        return Unreadable(name, f"{type(error).__name__}: {one_line(error)}")


def begin_worker(_worker: int) -> None:
    """What each process that reads images does first.

    Ctrl-C, and whatever ends a job, reaches every process of a group; workers end
    when the main one does. And torch hands tensors over by a socket in the temporary
    folder: where its path is too long for one, images would be lost without a
    word and the main process wait for them for ever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_TEMPORARY_FOLDER:
        shorter = next((folder for folder in _SHORT_FOLDERS if os.access(folder, os.W_OK | os.X_OK)), None)
        # Not torch's other way of sharing, by named files: it keeps a socket in that folder as well.
        tempfile.tempdir = shorter


def decoded(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """What ``collate`` made of each batch; an unreadable image and a dead worker are errors of ours."""
    for images, ids in from_workers(loader):
        if isinstance(images, Unreadable):
            raise DataError(
                f"unreadable image {images.name}: {images.reason}",
                "--on-bad-image skip leaves such images out",
            )
        yield images, ids


def from_workers(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader yields; a dead worker is an error of ours."""
    try:
        yield from _begin(loader)
    except (ConnectionError, EOFError) as error:
        if not getattr(loader, "num_workers", 0) or "in DataLoader worker process" in str(error):
            raise  # what a dataset raised
        raise dead_worker(type(error).__name__) from None  # while it was handing over images
    except RuntimeError as error:
        raise_if_machine_failed(error)
        raise


def _begin(loader: Iterable[Any]) -> Iterator[Any]:
    """``iter(loader)``; should that break off, the workers that it had begun end with it.

    Nobody else knows them then: they would wait for work, and the main process at its exit for them.
    """
    before = set(torch.multiprocessing.active_children())
    try:
        return iter(loader)
    except BaseException:
        for worker in set(torch.multiprocessing.active_children()) - before:
            worker.kill()
        raise


class IndexedImages(Dataset[Any]):
    """Decoded images by their position among the examples, each with its index in the source."""

    def __init__(self, examples: Examples, preprocessing: Preprocessing) -> None:
        self._examples = examples
        self._mode = preprocessing.image_mode
        self._transform = preprocessing.transform()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, position: int) -> tuple[Tensor | Unreadable, int]:
        image = load_image(self._examples, position, self._mode, self._transform)
        return image, int(self._examples.indices[position])


class _StreamedImages(IterableDataset[Any]):
    def __init__(self, examples: Examples, preprocessing: Preprocessing) -> None:
        self._examples = examples
        self._mode = preprocessing.image_mode
        self._transform = preprocessing.transform()

    def __iter__(self) -> Iterator[tuple[Tensor | Unreadable, int]]:
        keep = set(self._examples.indices.tolist())
        stream = self._examples.stream
        try:
            for index, (image, _) in enumerate(stream()):  # type: ignore[misc]
                if index in keep:
                    yield self._transform(read_image(image, self._mode)), index
        except DataError as error:
            yield Unreadable("in the stream", str(error)), -1


def collate(samples: list[tuple[Tensor | Unreadable, int]]) -> tuple[Tensor | Unreadable, Tensor]:
    """Stack images and ids; one unreadable image stands for the whole batch."""
    ids = torch.tensor([index for _, index in samples])
    images: list[Tensor] = []
    for image, _ in samples:
        if isinstance(image, Unreadable):
            return image, ids
        images.append(image)
    return torch.stack(images), ids


def automatic_workers() -> int:
    """One worker a core, at most 8: decoding is the bottleneck of small models."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def automatic_batch_size(preprocessing: Preprocessing, device: torch.device) -> int:
    """A power of two from the image size alone, so that it repeats: 128 at 32×32, 32 at 224×224 on a CPU."""
    _, height, width = preprocessing.input_size
    budget = (8 if device.type == "cuda" else 1) * 32 * 224 * 224
    largest = 1024 if device.type == "cuda" else 128
    return max(8, min(largest, 1 << max(0, (budget // (height * width)).bit_length() - 1)))


def loader_batches(loader: Iterable[Any], device: torch.device) -> Iterator[Batch]:
    """Batches of a user's own DataLoader of (inputs, targets); ids count up.

    Raises:
        ConfigurationError: the loader yields something else.
    """
    return on_device(checked_batches(loader), device)


def checked_batches(loader: Iterable[Any], start: int = 0) -> Iterator[Batch]:
    """What the loader yields, wherever it lies; ids count up from ``start``."""
    for item in loader:
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise ConfigurationError(
                f"expected the loader to yield (inputs, targets), got {type(item).__name__}"
            )
        inputs, targets = torch.as_tensor(item[0]), torch.as_tensor(item[1])
        if targets.ndim != 1 or targets.is_floating_point() or len(targets) != len(inputs):
            raise ConfigurationError(
                f"expected integer class indices of shape ({len(inputs)},), "
                f"got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        ids = torch.arange(start, start + len(targets))
        start += len(targets)
        yield Batch(inputs, targets.to(torch.int64), ids)
