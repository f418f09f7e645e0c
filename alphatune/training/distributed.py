"""Several processes, one device each, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from alphatune.data.loading import Batches
from alphatune.errors import ConfigurationError
from alphatune.evaluation import Scores, concatenate


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
        ConfigurationError: more processes than CUDA devices.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """This process's device: of several CUDA devices, the one of its local rank."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= count:
        raise ConfigurationError(
            f"process {rank + 1} of this machine has no CUDA device: {count} are visible"
        )
    return torch.device("cuda", rank)


def parallel(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over processes."""
    if world.size == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )


def share_buffers_(model: nn.Module, world: World) -> None:
    """Give every process the first one's moving averages, so that all evaluate the same model."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def shard(batches: Batches, world: World) -> Batches:
    """Every ``size``-th example, starting at ``rank``: no example twice, none left out."""
    positions = np.arange(world.rank, len(batches.examples), world.size)
    return Batches(
        batches.examples.take(positions),
        batches.preprocessing,
        batches.batch_size,
        batches.device,
        batches.workers,
    )


def gather(scores: Scores | None, world: World) -> Scores:
    """The scores of all processes, in the order of their ids, in every process; None adds nothing."""
    parts = [scores]
    if world.size > 1:
        parts = [None] * world.size
        dist.all_gather_object(parts, scores)
    return concatenate([part for part in parts if part is not None])
