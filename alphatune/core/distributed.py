"""Several processes, one device each, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from alphatune.core.errors import AlphatuneError, ConfigurationError
from alphatune.core.peers import GRACE, Watch, meet, place_of_process
from alphatune.core.versions import is_at_least

T = TypeVar("T")
#: groups that were left before torch 2.9, kept to the end: to free one may wait for ever, for a thread that waits for Python
_LEFT: list[object] = []


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, in every process; all must ask."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def run_on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """What every process makes of its part of some work, by rank; all must come here.

        An error of ours in one is the same error in all, so that none waits for it.
        """
        mine: T | AlphatuneError
        try:
            mine = work()
        except AlphatuneError as error:
            mine = error
        parts: list[T] = []
        for each in self.gather(mine):
            if isinstance(each, AlphatuneError):
                raise each
            parts.append(each)
        return parts

    def share_out(self, work: Callable[[int], T], count: int) -> list[T]:
        """What work makes of each number below a count, shared out over the processes; all must come here."""
        places = range(self.rank, count, self.size)
        found: dict[int, T] = {}
        for part in self.run_on_all_ranks(lambda: {place: work(place) for place in places}):
            found |= part
        return [found[place] for place in range(count)]

    def batches_of(self, positions: np.ndarray, batch_size: int) -> np.ndarray:
        """This process's share of some positions: every ``size``-th *whole* batch, starting at ``rank``.

        Batches are the same whatever the number of processes, and with them, to
        the last bit, what a model makes of their examples.
        """
        starts = range(self.rank * batch_size, len(positions), self.size * batch_size)
        parts = [positions[start : start + batch_size] for start in starts]
        return np.concatenate(parts) if parts else positions[:0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must ask."""
        if self.size == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        value = torch.tensor([float(flag)], device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started; a process of its own is a world of one.

    Raises:
        ConfigurationError: environment variables that do not fit together, or processes that do not come.
        ResourceError: another process is gone.
    """
    place = place_of_process()
    if place is None:
        yield World()
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    store = meet(place)
    watch = Watch(place, store)
    in_order = False
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=place.rank, world_size=place.size
        )
        yield World(place.rank, place.size)
        in_order = True
    except AlphatuneError:
        raise
    except BaseException as error:
        in_order = not isinstance(error, Exception)  # a signal, which the others get as well
        # What is raised here may be what its death made of a collective, or torchrun's SIGTERM after it.
        if lost := watch.lost(GRACE):
            raise lost from None
        raise
    finally:
        watch.leave(in_order=in_order)
        if dist.is_initialized() and not watch.lost(0):  # which waits for the others
            if not is_at_least("torch", "2.9"):
                _LEFT.append(dist.group.WORLD)
            dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """This process's device: of several CUDA devices, the one of its local rank."""
    if device.type != "cuda" or not os.environ.get("LOCAL_RANK"):
        return device
    rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= count:
        raise ConfigurationError(
            f"process {rank + 1} of this machine has no CUDA device: {count} are visible"
        )
    return torch.device("cuda", rank)
