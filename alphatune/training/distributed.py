"""Train one model in several processes: shared gradients, shared averages, each example scored once."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from alphatune.core.distributed import World
from alphatune.data.loading import Batches
from alphatune.statistics.scores import Scores, concatenate


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
    return concatenate([part for part in world.gather(scores) if part is not None])
