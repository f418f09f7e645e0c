"""A finite, ordered set of labelled images, wherever it comes from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from alphatune.core.errors import ConfigurationError
from alphatune.data.decoding import decoder_version
from alphatune.data.stratification import sample


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that could not be decoded, on its way out of a worker."""

    name: str
    reason: str
    hint: str = ""


#: a class of these says by ``encoded = True`` that what it returns is still to be decoded
Load = Callable[[int], tuple[Any, str]]


@dataclass(frozen=True)
class Examples:
    """A finite, ordered set of labelled images.

    ``indices`` are positions in the source, in increasing order; they identify
    an example whatever else was left out by ``limit``.
    """

    source: str
    root: str
    split: str
    classes: tuple[str, ...]  # class names by index where the source knows them
    targets: np.ndarray  # (n,) int64: class index of each example
    indices: np.ndarray  # (n,) int64: position of each example in the source
    load: Load | None  # position -> (PIL image or file, name)
    stream: Callable[[], Iterator[Any]] | None = None  # for sources without random access
    class_map: str = ""
    labels: str = ""  # the file that the labels were read from
    numbered_by_name: bool = False  # classes are in the order of their names, and the model's may be another
    outputs: tuple[int, ...] | None = None  # of the model, that the classes are; None: all of them, in order
    warnings: tuple[str, ...] = ()
    decode_by: str = "pil"  # one of decoding.DECODERS
    max_pixels: int | None = None  # of an image that is read; None: PIL's own limit

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def decoder(self) -> str:
        """What turned bytes into pixels: two decoders must not meet in one comparison."""
        return decoder_version(self.decode_by)

    def decoded_by(self, decoder: str) -> Examples:
        """The same examples, read by another decoder.

        Raises:
            ConfigurationError: no such decoder here, or the source hands out images that are decoded already.
        """
        decoder_version(decoder)
        if decoder != "pil" and not getattr(self.load, "encoded", False):
            raise ConfigurationError(
                f"`decoder={decoder}` reads folders, archives, hfds/ data and shards in files; "
                f"the images of {self.source} come decoded already",
                "leave out `decoder`",
            )
        return replace(self, decode_by=decoder)

    def at_most(self, max_pixels: int) -> Examples:
        """The same examples, with a limit to the pixels of an image.

        Raises:
            ConfigurationError: no image has so few.
        """
        if max_pixels < 1:
            raise ConfigurationError(f"the most pixels of an image must be 1 or more, got {max_pixels}")
        return replace(self, max_pixels=max_pixels)

    def limit(self, count: int | None, seed: int) -> Examples:
        """At most ``count`` examples, drawn without replacement, stratified by class.

        Every class keeps its share to within one example; the order stays the
        source's, so that a limited run is a subset of the full one.
        """
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise ConfigurationError(f"`limit` must be at least 1, got {count}")
        return self.take(np.sort(sample(self.targets, count, np.random.default_rng(seed))))

    def take(self, positions: np.ndarray) -> Examples:
        """The examples at these positions among the present ones; those of a stream in increasing order."""
        return replace(self, targets=self.targets[positions], indices=self.indices[positions])


class FileLoad:
    """Read images that are files, by their paths; names are paths below ``root``."""

    encoded = True

    def __init__(self, paths: Sequence[str], root: str = "") -> None:
        self._folder = f"{root.rstrip('/')}/" if root else ""
        self._paths = np.array([os.fsencode(path) for path in paths])  # a block that forked workers share

    def __call__(self, index: int) -> tuple[Any, str]:
        name = os.fsdecode(self._paths[index])
        return self._folder + name, name

    def files(self, indices: np.ndarray) -> list[str]:
        """The file of each image."""
        return [self(int(index))[0] for index in indices]


class ArrayLoad:
    """Images that are uint8 arrays (N, H, W, 3) in memory, one array after the other."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self._arrays = arrays
        self._starts = np.cumsum([0, *map(len, arrays)])

    def pixels(self, index: int) -> np.ndarray:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return np.ascontiguousarray(self._arrays[part][index - self._starts[part]])

    def __call__(self, index: int) -> tuple[Any, str]:
        return Image.fromarray(self.pixels(index)), f"example {index}"
