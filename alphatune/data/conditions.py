"""Several conditions as one data set: clean images, shifts made of them, and further data of the user's own.

Positions go condition by condition: with n clean images, position k·n + i is image i under condition k, and the user's
own data follow, each in its own order. An example's id holds condition and image (statistics/conditions.py);
the images of further data have numbers that follow those before.

A shift is made of the decoded, resized and cropped uint8 image when a batch is first read, and kept where there is
room, as some take longer than the model. With a cache each image is decoded once for all conditions and passes;
without one, once for each condition of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from alphatune.core.errors import ConfigurationError
from alphatune.data.available_memory import available_memory
from alphatune.data.cache import AUTO_BYTES
from alphatune.data.examples import Examples
from alphatune.data.loading import Batches
from alphatune.data.prefetch import Batch, on_device
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.shifts import Shift
from alphatune.settings.conditions import CLEAN
from alphatune.statistics.conditions import conditions_of, example_ids, images_of

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """A data set that conditions are made of; its examples are numbered from ``first`` on."""

    batches: Batches
    first: int  # image number of its example 0


class MadeImages:
    """Shifted images by condition and place, uint8 (conditions, n, C, H, W), and which of them were made."""

    def __init__(self, conditions: int, n: int, size: tuple[int, ...]) -> None:
        self.images = np.empty((conditions, n, *size), np.uint8)  # takes no memory before it is written to
        self.present = np.zeros((conditions, n), np.bool_)

    @classmethod
    def if_they_fit(cls, conditions: int, clean: Batches) -> MadeImages | None:
        """Room for them, where it takes at most 2 GiB and half of the memory that is available."""
        size = clean.preprocessing.input_size
        total, available = conditions * len(clean) * math.prod(size), available_memory()
        fits = total <= AUTO_BYTES and (available is None or total <= available // 2)
        return cls(conditions, len(clean), size) if fits else None


@dataclass(frozen=True)
class Conditions:
    """Examples under conditions, in batches on a device; iterate as often as needed, over all of them or some."""

    names: tuple[str, ...]  # of the conditions; the clean images come first
    shifts: tuple[Shift | None, ...]  # by condition; None: images as they are
    sources: tuple[Source, ...]  # the clean images, then further data
    seed: int
    ids: NDArray[np.int64]  # (n,) of condition and image
    targets: NDArray[np.int64]  # (n,) class index
    places: Positions  # (n,) of each example in its source
    severities: NDArray[np.int64]  # (n,) 0 without a shift
    kept: MadeImages | None = None
    warnings: tuple[str, ...] = field(default=())  # what is worth saying of further data

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.ids)

    def __iter__(self) -> Iterator[Batch]:
        return on_device(self.host_batches(), self.device, self.preprocessing.normaliser)

    @property
    def clean(self) -> Batches:
        """The clean images."""
        return self.sources[0].batches

    @property
    def examples(self) -> Examples:
        """The clean images, without their pixels."""
        return self.clean.examples

    @property
    def batch_size(self) -> int:
        return self.clean.batch_size

    @property
    def preprocessing(self) -> Preprocessing:
        return self.clean.preprocessing

    @property
    def device(self) -> torch.device:
        return self.clean.device

    @property
    def workers(self) -> int:
        return self.clean.workers

    @property
    def cache(self) -> str:
        """Where decoded images are kept for a further pass: none, ram or disk."""
        return self.clean.cache

    def batches_of(self, condition: int) -> Batches:
        """The data set that a condition, counted from 1, is made of."""
        return self.sources[self._source_of(condition)].batches

    def take(self, positions: Positions) -> Conditions:
        """The examples at these positions among the present ones; an uncached stream needs increasing ones."""
        return replace(
            self,
            ids=self.ids[positions],
            targets=self.targets[positions],
            places=self.places[positions],
            severities=self.severities[positions],
        )

    def host_batches(self) -> Iterator[Batch]:
        """Images, uint8 (N, C, H, W), targets and ids on the host, in batches of ``batch_size`` but for the last."""
        pending: list[Batch] = []
        for piece in self._pieces():
            pending.append(piece)
            while (count := sum(map(len, pending))) >= self.batch_size:
                batch = self._joined(pending)
                yield batch if count == self.batch_size else _rows(batch, slice(self.batch_size))
                pending = [_rows(batch, slice(self.batch_size, None))] if count > self.batch_size else []
        if pending:
            yield self._joined(pending)

    def _pieces(self) -> Iterator[Batch]:
        """Examples in order, of one source at a time, so that its workers read ahead over all of its conditions."""
        sources = np.array([self._source_of(k) for k in range(1, len(self.names) + 1)])
        of = sources[conditions_of(self.ids) - 1]
        for run in np.split(np.arange(len(self)), np.flatnonzero(np.diff(of)) + 1):
            if not len(run):
                continue
            start = int(run[0])
            for batch in self.sources[of[start]].batches.take(self.places[run]).host_batches():
                rows = slice(start, start + len(batch))
                start += len(batch)
                yield Batch(
                    self._shifted(batch.inputs, rows), batch.targets, torch.from_numpy(self.ids[rows])
                )

    def _shifted(self, images: torch.Tensor, rows: slice) -> torch.Tensor:
        """Images of some examples as their conditions make them; the given ones stay as they are."""
        conditions, result = conditions_of(self.ids[rows]), images
        for k in np.unique(conditions):
            if (shift := self.shifts[k - 1]) is None:
                continue
            if result is images:
                result = self._empty(images.shape)
                result.copy_(images)
            these = np.flatnonzero(conditions == k)
            result.numpy()[these] = self._made(int(k), shift, images.numpy()[these], rows.start + these)
        return result

    def _made(
        self, condition: int, shift: Shift, images: NDArray[np.uint8], rows: Positions
    ) -> NDArray[np.uint8]:
        """Images with a shift: those that were made before, or made now and kept where there is room."""

        def make(some: Positions) -> NDArray[np.uint8]:
            ids = images_of(self.ids[rows[some]])
            return shift.apply(images[some], self.severities[rows[some]], ids, self.seed)

        everything = np.arange(len(rows))
        if self.kept is None:
            return make(everything)
        places = self.places[rows]
        missing = np.flatnonzero(~self.kept.present[condition - 1, places])
        if len(missing):
            self.kept.images[condition - 1, places[missing]] = make(missing)
            self.kept.present[condition - 1, places[missing]] = True
        kept: NDArray[np.uint8] = self.kept.images[condition - 1, places]
        return kept

    def _joined(self, batches: Sequence[Batch]) -> Batch:
        if len(batches) == 1:
            return batches[0]
        inputs = self._empty(torch.Size((sum(map(len, batches)), *batches[0].inputs.shape[1:])))
        torch.cat([each.inputs for each in batches], out=inputs)
        targets, ids = (torch.cat([getattr(each, name) for each in batches]) for name in ("targets", "ids"))
        return Batch(inputs, targets, ids)

    def _empty(self, shape: torch.Size) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def _source_of(self, condition: int) -> int:
        """Which source a condition, counted from 1, reads: the user's own data come after what the clean images make."""
        return max(0, condition - 1 - (len(self.names) - len(self.sources)))


def make_conditions(
    clean: Batches,
    shifts: Iterable[Shift] = (),
    others: Iterable[tuple[str, Batches]] = (),
    *,
    seed: int = 0,
    warnings: tuple[str, ...] = (),
) -> Conditions:
    """Clean images, shifts made of them, and further data sets by name, as one data set.

    Args:
        seed: of the shifts' random numbers, and of which image has which severity.

    Raises:
        ConfigurationError: two conditions of one name; a shift that needs colour, of grey images;
            or shifts of a stream that is not cached, which would have to be read once for each.
    """
    made, own = tuple(shifts), tuple(others)
    names = (CLEAN, *(shift.name for shift in made), *(name for name, _ in own))
    check_names(names)
    _check_images(clean, made)
    n = len(clean)
    sources = [Source(clean, 0)]
    for _, batches in own:
        last = sources[-1]
        sources.append(
            Source(replace(batches, batch_size=clean.batch_size), last.first + _highest(last.batches) + 1)
        )
    parts = [(clean, 0)] * (1 + len(made)) + [(each.batches, each.first) for each in sources[1:]]
    levels = [shift.severity_of(n, seed) for shift in made]
    as_they_are = [np.zeros(len(batches), np.int64) for _, batches in own]
    return Conditions(
        names,
        (None, *made, *(None for _ in own)),
        tuple(sources),
        seed,
        ids=np.concatenate([example_ids(k, b.ids + first) for k, (b, first) in enumerate(parts, 1)]),
        targets=np.concatenate([batches.targets for batches, _ in parts]),
        places=np.concatenate([np.arange(len(batches)) for batches, _ in parts]),
        severities=np.concatenate([np.zeros(n, np.int64), *levels, *as_they_are]),
        kept=MadeImages.if_they_fit(1 + len(made), clean) if made and clean.cache != "none" else None,
        warnings=warnings,
    )


def check_names(names: Sequence[str]) -> None:
    """Refuse two conditions of one name; raises ConfigurationError."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"two conditions are called {name}",
                f"{CLEAN} are the images of `data`; every shift and every further data set has a name of its own",
            )


def _check_images(clean: Batches, shifts: tuple[Shift, ...]) -> None:
    if not shifts:
        return
    if clean.examples.load is None and clean.cache == "none":
        raise ConfigurationError(
            f"{clean.examples.source} is a stream, and shifts of it would read it once for each",
            "`cache=ram` or `cache=disk` keeps its images",
        )
    if clean.preprocessing.input_size[0] == 1 and (idle := [s.name for s in shifts if s.needs_colour]):
        raise ConfigurationError(
            f"{', '.join(idle)} changes colours only, and the images have one channel",
            "leave it out of `shift`",
        )


def _highest(batches: Batches) -> int:
    return int(batches.ids.max(initial=-1))


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.inputs[rows], batch.targets[rows], batch.ids[rows])
