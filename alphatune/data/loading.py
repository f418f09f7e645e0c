"""From examples to batches on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from alphatune.core.errors import AlphatuneError, DataError, one_line
from alphatune.data.decoding import read_image
from alphatune.data.examples import Examples, Unreadable
from alphatune.data.pixel_limit import pil_limit, usual_limit
from alphatune.data.prefetch import Batch as Batch  # what this module is about
from alphatune.data.prefetch import on_device
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.workers import collate, decoded, image_loader


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
    def names(self) -> tuple[str, ...]:
        """Of the conditions: there are none."""
        return ()

    @property
    def ids(self) -> np.ndarray:
        """The id of each example, (n,) int64: its place in the source."""
        return self.examples.indices

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
        batch_bytes = self.batch_size * math.prod(self.preprocessing.input_size)
        loader = image_loader(dataset, workers, batch_bytes, batch_size=self.batch_size, collate_fn=collate)
        targets = torch.from_numpy(self.examples.targets)
        start = 0
        for images, ids in decoded(loader, pin=self.device.type == "cuda"):
            yield Batch(images, targets[start : start + len(ids)], ids)
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
        if getattr(examples.load, "encoded", False):
            source, name = examples.load(index)  # type: ignore[misc]
        else:  # a data set that may open images by itself
            with pil_limit(usual_limit() if examples.max_pixels is None else examples.max_pixels, quiet=True):
                source, name = examples.load(index)  # type: ignore[misc]
        image = read_image(source, image_mode, examples.decode_by, examples.max_pixels)
        return transform(image)  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except AlphatuneError as error:
        return Unreadable(name, error.message, error.hint)
    except Exception as error:
        return Unreadable(name, f"{type(error).__name__}: {one_line(error)}")


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
        stream, most = self._examples.stream, self._examples.max_pixels
        try:
            for index, (image, _) in enumerate(stream()):  # type: ignore[misc]
                if index in keep:
                    yield self._transform(read_image(image, self._mode, max_pixels=most)), index
        except DataError as error:
            yield Unreadable("in the stream", error.message, error.hint), -1


def automatic_batch_size(preprocessing: Preprocessing, device: torch.device) -> int:
    """A power of two from the image size alone, so that it repeats: 128 at 32×32, 32 at 224×224 on a CPU."""
    _, height, width = preprocessing.input_size
    budget = (8 if device.type == "cuda" else 1) * 32 * 224 * 224
    largest = 1024 if device.type == "cuda" else 128
    return max(8, min(largest, 1 << max(0, (budget // (height * width)).bit_length() - 1)))
