"""Processes that read images: how many there are, how batches come from them, and what becomes of one that dies.

Batches come from our own workers as bytes through a pipe. PyTorch hands tensors over in shared
memory, of which a container has 64 MiB by default: a batch that finds no room there is dropped
by a thread of the worker, and the main process waits for it forever. The pipe costs the main
process about 3 ms for 32 images of 224×224, and small images come faster than by shared memory.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.queues
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alphatune.core.errors import (
    DataError,
    ResourceError,
    dead_worker,
    one_line,
    raise_if_machine_failed,
)
from alphatune.data.available_memory import available_memory
from alphatune.data.examples import Unreadable

#: batches that each worker reads ahead
PREFETCH = 4
#: what a worker takes for itself
WORKER_BYTES = 64 * 2**20


def automatic_workers() -> int:
    """One worker a core, at most 8: decoding is the bottleneck of small models."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def affordable_workers(workers: int, batch_bytes: int) -> tuple[int, int]:
    """How many of the workers, and how many batches ahead of each, fit into half of the available memory.

    None where their locks cannot be made: they lie in /dev/shm, which some sandboxes lack.

    Args:
        batch_bytes: of a decoded batch; one that is being handed over is there twice.
    """
    if workers == 0:
        return 0, PREFETCH
    try:
        for_queues = [multiprocessing.Lock() for _ in range(3 * (workers + 1) + 5)]
        del for_queues
    except OSError:
        return 0, PREFETCH
    available = available_memory()
    if available is None:
        return workers, PREFETCH
    room, batch_bytes = available // 2, max(1, batch_bytes)
    prefetch = (room // workers - WORKER_BYTES) // (2 * batch_bytes)
    if prefetch >= 1:
        return workers, min(PREFETCH, prefetch)
    return min(workers, room // (WORKER_BYTES + 2 * batch_bytes)), 1


def image_loader(dataset: Any, workers: int, batch_bytes: int, **how: Any) -> DataLoader[Any]:
    """A DataLoader with as many workers as fit into memory; what it collates must hold no tensors.

    Args:
        batch_bytes: of a decoded batch.
        how: further arguments of the DataLoader.
    """
    workers, prefetch = affordable_workers(workers, batch_bytes)
    return DataLoader(
        dataset,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        generator=torch.Generator(),  # the loader's own seed must not come from the caller's
        worker_init_fn=_begin_worker,
        **how,
    )


def collate(samples: list[tuple[Tensor | Unreadable, int]]) -> tuple[np.ndarray | Unreadable, np.ndarray]:
    """Stack images and ids; one unreadable image stands for the whole batch."""
    ids = np.asarray([index for _, index in samples], dtype=np.int64)
    images: list[Tensor] = []
    for image, _ in samples:
        if isinstance(image, Unreadable):
            return image, ids
        images.append(image)
    return torch.stack(images).numpy(), ids


def decoded(loader: Iterable[Any], *, pin: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and ids of each batch that ``collate`` made, on the host; an unreadable image is an error of ours."""
    for images, ids in from_workers(loader):
        if isinstance(images, Unreadable):
            raise DataError(
                f"unreadable image {images.name}: {images.reason}",
                "; ".join(filter(None, [images.hint, "`on_bad_image=skip` leaves such images out"])),
            )
        batch = torch.from_numpy(images)
        yield batch.pin_memory() if pin else batch, torch.from_numpy(ids)


def from_workers(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader yields; a worker that died and a batch that was lost are errors of ours."""
    try:
        for item in _begin(loader):  # noqa: UP028  which would close the caller's iterator
            yield item
    except (ConnectionError, EOFError) as error:
        if not getattr(loader, "num_workers", 0) or "in DataLoader worker process" in str(error):
            raise  # what a dataset raised
        _let_torch_speak()
        raise dead_worker(type(error).__name__) from None  # while it was handing over images
    except RuntimeError as error:
        raise_if_machine_failed(error)
        raise


def _let_torch_speak() -> None:
    """Wait for the error that torch raises by SIGCHLD when a worker died, once, wherever the main process is by then.

    Later it would break into whatever puts a model in order.
    """
    with contextlib.suppress(RuntimeError):
        time.sleep(1.0)


def _begin(loader: Iterable[Any]) -> Iterator[Any]:
    """``iter(loader)``; if that fails, the workers that it had begun end with it.

    Nobody else knows them then: they would wait for work, and the main process at its exit for them.
    """
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return iter(loader)
    before = set(torch.multiprocessing.active_children())
    own = loader.worker_init_fn
    loader.worker_init_fn = functools.partial(_init_worker, own)
    try:
        return iter(loader)
    except BaseException as error:
        for worker in set(torch.multiprocessing.active_children()) - before:
            worker.kill()
        if isinstance(error, OSError):
            raise ResourceError(
                f"worker processes that read images cannot be started: {one_line(error)}",
                "without workers (`workers=0`, or num_workers=0 in a loader of your own) the main process reads them",
            ) from None
        raise
    finally:
        loader.worker_init_fn = own


def _init_worker(own: Callable[[int], None] | None, worker: int) -> None:
    """End a worker that cannot hand over a batch: dropped with a traceback, it would be waited for forever."""
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(lambda _error, _batch: os._exit(1))
    if own:
        own(worker)


def _begin_worker(_worker: int) -> None:
    """Ctrl-C, and whatever ends a job, reach every process of a group; workers end when the main one does."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
