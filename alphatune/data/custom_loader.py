"""A user's own DataLoader as batches for several passes, over all of its examples or some."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from alphatune.core.progress import Meter
from alphatune.data.checksums import changed, check_repeats, checksums
from alphatune.data.custom_batches import DATASET_BATCH_SIZE, DatasetBatches, as_loader, checked_batches
from alphatune.data.custom_pairs import count_examples
from alphatune.data.prefetch import Batch, on_device

#: batches that take no more than this are kept on the host
KEPT_BYTES = 2 * 2**30


class LoaderBatches:
    """Batches of any iterable of (inputs, targets), or of a dataset; the id of an example is its place in it.

    The first whole pass keeps the batches on the host. If they take more than
    2 GiB, the loader is iterated again for every pass, and has to give the same
    examples each time; an iterator can be read only once, and is kept at any size.
    A DataLoader or dataset whose batches are kept is asked for its first batch once more: random
    augmentation shows there.

    Raises:
        ConfigurationError: while iterating, the loader yields something else, many examples
            twice, or other examples than before.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device, meter: Meter | None = None) -> None:
        self.device = device
        self._source = _Source(as_loader(loader), meter or Meter())
        self._positions: np.ndarray | None = None  # of the present examples in the loader; None is all

    def __len__(self) -> int:
        """The number of examples; reads the loader if no pass did."""
        return len(self.targets)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._source)
        if self._positions is not None:
            batches = _rows(batches, self._positions, self.batch_size)
        if self.device.type == "cuda":
            batches = map(_pinned, batches)
        return on_device(batches, self.device)

    @property
    def targets(self) -> np.ndarray:
        """The class index of each example, (n,) int64; reads the loader if no pass did."""
        targets = self._source.read()
        return targets if self._positions is None else targets[self._positions]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the conditions: there are none."""
        return ()

    @property
    def ids(self) -> np.ndarray:
        """The id of each example, (n,) int64: its place in the loader; reads the loader if no pass did."""
        return np.arange(len(self._source.read())) if self._positions is None else self._positions

    @property
    def batch_size(self) -> int:
        """The length of the loader's longest batch; reads the loader if no pass did."""
        self._source.read()
        return self._source.batch_size

    @property
    def notes(self) -> tuple[str, ...]:
        """What was converted, and what else is worth saying of the loader, once it was read."""
        return tuple(self._source.notes)

    def take(self, positions: np.ndarray) -> LoaderBatches:
        """The examples at these positions among the present ones, in increasing order, in full batches."""
        self._source.read()
        part = copy.copy(self)  # reads and keeps together with this one
        part._positions = positions if self._positions is None else self._positions[positions]
        return part


class _Source:
    """A loader, and what is known of it after a whole pass."""

    def __init__(self, loader: Iterable[Any], meter: Meter) -> None:
        self._loader, self._track = loader, meter
        self._once = isinstance(loader, Iterator)
        self._drawn: list[Batch] = []  # from an iterator, by a pass that was given up, too
        self._kept: list[Batch] | None = None
        self._targets: np.ndarray | None = None
        self._sums = np.empty(0, dtype=np.int64)
        self.batch_size = 1
        self.notes: dict[str, None] = {}  # in order, each once
        if isinstance(loader, DatasetBatches):
            self.note(f"a dataset was given for a loader; it is read in batches of {DATASET_BATCH_SIZE}")

    def note(self, text: str) -> None:
        self.notes[text] = None

    def __iter__(self) -> Iterator[Batch]:
        """All batches, on the host or wherever the loader puts them."""
        if self._targets is None:
            yield from self._first()
        elif self._kept is not None:
            yield from self._kept
        else:
            yield from self._again(self._targets)

    def read(self) -> np.ndarray:
        """All targets."""
        while self._targets is None:
            self._track.begin("reading the data", count_examples(self._loader), "images read")
            for batch in self._first():
                self._track.add(len(batch))
            self._track.begin("")
        return self._targets

    def _first(self) -> Iterator[Batch]:
        kept: list[Batch] | None = self._drawn if self._once else []
        targets, sums, size = [], [], 0
        for batch in self._drawn:
            targets.append(batch.targets)
            sums.append(checksums(batch.inputs))
            images = batch.inputs.ndim > 2
            yield batch
        for batch in checked_batches(self._loader, sum(map(len, targets)), self.note):
            size += batch.inputs.nbytes
            if size > KEPT_BYTES and not self._once:
                kept = None
            # A copy: a loader may fill its buffers anew, and each tensor that
            # comes from a worker process holds a file open.
            labels = batch.targets.to("cpu", copy=True)
            targets.append(labels)
            sums.append(checksums(batch.inputs))
            images = batch.inputs.ndim > 2
            if kept is not None:
                batch = Batch(batch.inputs.to("cpu", copy=True), labels, batch.ids)
                kept.append(batch)
            yield batch
        if targets:
            all_targets, self._sums = torch.cat(targets).numpy(), np.concatenate(sums)
            if remark := check_repeats(self._sums, all_targets, self._loader, images=images):
                self.note(remark)
            if kept and not self._once and isinstance(self._loader, (DataLoader, DatasetBatches)):
                self._look_again(kept[0])
        self._kept = kept
        self.batch_size = max(map(len, targets), default=1)
        self._targets = all_targets if targets else np.empty(0, dtype=np.int64)

    def _look_again(self, first: Batch) -> None:
        """Compare the loader's first batch with what came before: a shuffled one holds the same images."""
        again = next(checked_batches(self._loader), None)
        if again is None or np.isin(checksums(again.inputs), self._sums).all():
            return
        inputs = again.inputs.to("cpu")
        # A device may round in another way each time.
        if inputs.shape == first.inputs.shape and torch.allclose(inputs, first.inputs, 1e-3, 1e-3):
            return
        raise changed("other images")

    def _again(self, targets: np.ndarray) -> Iterator[Batch]:
        start = 0
        for batch in checked_batches(self._loader):
            stop = start + len(batch)
            where = f"among examples {start} to {stop - 1}"
            sums, labels = checksums(batch.inputs), batch.targets.cpu().numpy()
            if not np.array_equal(sums, self._sums[start:stop]):
                known = np.isin(sums, self._sums).all()
                raise changed(f"{'another order' if known else 'other images'} {where}")
            if not np.array_equal(labels, targets[start:stop]):
                raise changed(f"other labels {where}")
            start = stop
            yield batch
        if start != len(targets):
            raise changed(f"{start} examples after {len(targets)}")


def _rows(batches: Iterator[Batch], positions: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """The examples at these positions, in batches of ``batch_size`` but for the last, or where shapes change."""
    pending: list[Batch] = []
    start = done = 0
    for batch in batches:
        until = int(np.searchsorted(positions, start + len(batch)))
        rows = torch.from_numpy(positions[done:until] - start)
        start, done = start + len(batch), until
        if len(rows):
            if pending and batch.inputs.shape[1:] != pending[0].inputs.shape[1:]:
                yield _joined(pending)
                pending = []
            pending.append(_part(batch, rows))
        if sum(map(len, pending)) >= batch_size:
            whole = _joined(pending)
            yield _part(whole, slice(batch_size))
            pending = [_part(whole, slice(batch_size, None))] if len(whole) > batch_size else []
        if done == len(positions):
            break
    if pending:
        yield _joined(pending)


def _part(batch: Batch, rows: torch.Tensor | slice) -> Batch:
    return Batch(batch.inputs[rows], batch.targets[rows], batch.ids[rows])


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    return Batch(
        torch.cat([b.inputs for b in batches]),
        torch.cat([b.targets for b in batches]),
        torch.cat([b.ids for b in batches]),
    )


def _pinned(batch: Batch) -> Batch:
    if batch.inputs.device.type != "cpu":
        return batch
    return Batch(batch.inputs.pin_memory(), batch.targets, batch.ids)
