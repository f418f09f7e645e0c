"""Time several functions side by side, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one sample a round; ``first_use`` is the very first call, with all that it sets up."""

    samples: tuple[float, ...]
    first_use: float

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The lower quartile."""
        return statistics.quantiles(self.samples, n=4, method="inclusive")[0]

    @property
    def high(self) -> float:
        """The upper quartile."""
        return statistics.quantiles(self.samples, n=4, method="inclusive")[2]


def ratio(timing: Timing, reference: Timing) -> float:
    """How many times as long a call takes: the median over the rounds that both were timed in.

    A machine that slows down for a while does so for both, which a ratio of
    medians would not know.
    """
    return statistics.median(a / b for a, b in zip(timing.samples, reference.samples, strict=True))


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    rounds: int = FEWEST_ROUNDS,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
    spent: Callable[[float], None] = lambda _: None,
) -> dict[str, Timing]:
    """Call functions in turns until the time is spent, each once a round, every other round in reverse order.

    The first call of each is apart; one round of warm-up follows it if there is
    time for one. Setting up may take as long as it takes, as a compilation does,
    and a round that has begun is finished.

    Args:
        functions: what to time, by name.
        seconds: budget of warm-up and rounds, for all functions together.
        rounds: how many rounds to run at least, even if they exceed the budget.
        device: what the functions run on; it has finished before the clock is read.
        clock: seconds since some moment.
        spent: called after each round with the seconds that it took.

    Returns:
        The timing of each function by name.
    """
    rounds = max(rounds, FEWEST_ROUNDS)

    def once(function: Callable[[], object]) -> float:
        synchronise(device)
        start = clock()
        function()
        synchronise(device)
        return clock() - start

    first = {name: once(function) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    names, start = list(functions), clock()
    if sum(first.values()) < seconds:
        for name in names:
            once(functions[name])
    while len(samples[names[0]]) < rounds or clock() - start < seconds:
        for name in names:
            samples[name].append(once(functions[name]))
        spent(sum(samples[name][-1] for name in names))
        names.reverse()
    return {name: Timing(tuple(samples[name]), first[name]) for name in functions}


def synchronise(device: torch.device | None) -> None:
    """Wait for whatever the device still has to do."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()
