"""How long an exported graph takes beside that of the network whose norm layers are folded, in the same runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from alphatune.core.timing import Timing, interleave, ratio
from alphatune.export.agreement import Run

#: images of the batches that are timed
BATCH_SIZES = (1, 8)


@dataclass(frozen=True)
class Latency:
    """Seconds of both for batches of one size."""

    batch_size: int
    threads: int
    weighted: Timing
    folded: Timing

    @property
    def ratio(self) -> float:
        return ratio(self.weighted, self.folded)


def time_graphs(
    weighted: Run,
    folded: Run,
    input_size: tuple[int, int, int],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float,
    spent: Callable[[float], None] = lambda _: None,
) -> tuple[Latency, ...]:
    """Time two graphs in turns on random images.

    Args:
        input_size: (C, H, W) of an image.
        batch_sizes: images of the batches.
        seconds: budget of each batch size, less the first calls; at least three rounds.
        spent: called between the timings with the seconds that passed.
    """
    found = []
    for size in batch_sizes:
        images = torch.randn((size, *input_size), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            timings = interleave(
                {"weighted": partial(weighted, images), "folded": partial(folded, images)},
                seconds=seconds,
                spent=spent,
            )
        found.append(Latency(size, torch.get_num_threads(), timings["weighted"], timings["folded"]))
    return tuple(found)
