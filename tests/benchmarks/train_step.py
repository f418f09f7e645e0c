"""A whole training step with each norm, in multiples of the same step with BatchNorm.

    python tests/benchmarks/train_step.py --output docs/benchmarks/train-step.md

Forward, cross-entropy, backward and SGD with momentum; one step of each model
in turn, medians of the ratios to the BatchNorm step of the same round. A second
BatchNorm model, measured like the others, shows the noise. On a machine that
others use, ``--threads 1 --cpu-time`` counts the processor's time, not the wall's.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from alphatune.cli.memory import keep_freed_memory
from alphatune.models.cifar import resnet18, resnet20
from alphatune.norms.conversion import Norm, convert_

NORMS = {
    "BatchNorm": Norm(),
    "BatchNorm again": Norm(),
    **{f"ghost {size}": Norm("ghost", ghost_batch_size=size) for size in (8, 16, 32, 64)},
    **{
        f"batch-group 8×{size}": Norm("batch-group", num_groups=8, examples_per_group=size) for size in (2, 8)
    },
    "group 8": Norm("group", num_groups=8),
    "renorm": Norm("renorm", renorm=(0, 10, 10)),
}


def step_times(
    model: Callable[[], nn.Module],
    batch: int,
    memory_format: torch.memory_format,
    device: torch.device,
    rounds: int,
    clock: Callable[[], float],
    norms: dict[str, Norm],
    compiled: bool,
) -> dict[str, list[float]]:
    """Seconds of each round's step, by norm."""
    x = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=memory_format)
    target = torch.randint(0, 10, (batch,), device=device)
    runs = {}
    for name, norm in norms.items():
        network = model().to(device=device, memory_format=memory_format).train()
        convert_(network, norm)
        network = torch.compile(network) if compiled else network
        runs[name] = network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    times: dict[str, list[float]] = {name: [] for name in norms}
    warm_up = 3
    for i in range(rounds + warm_up):
        for name, (network, optimiser) in runs.items():
            start = clock()
            optimiser.zero_grad()
            F.cross_entropy(network(x), target).backward()
            optimiser.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i >= warm_up:
                times[name].append(clock() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of wall time")
    parser.add_argument("--compile", action="store_true", help="torch.compile every network")
    parser.add_argument("--norms", help="some of them, separated by commas; BatchNorm always")
    parser.add_argument("--models", default="resnet20,resnet18")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    clock = time.process_time if args.cpu_time else time.perf_counter
    wanted = ["BatchNorm", *(args.norms.split(",") if args.norms else NORMS)]
    norms = {name: NORMS[name] for name in wanted}
    names = [name for name in norms if name != "BatchNorm"]
    lines = [
        f"{device}, {where}, {args.threads} threads, torch {torch.__version__}, float32, "
        f"{'processor' if args.cpu_time else 'wall'} time{', compiled' if args.compile else ''}; "
        f"medians of {args.rounds} interleaved rounds, "
        "in multiples of the BatchNorm step:",
        "",
        f"| model | batch | memory format | BatchNorm (ms) | {' | '.join(names)} |",
        f"|---|---:|---|---:|{'---:|' * len(names)}",
    ]
    for model, batch in ((resnet20, 128), (resnet18, 16)):
        if model.__name__ not in args.models:
            continue
        for memory_format in (torch.contiguous_format, torch.channels_last):
            times = step_times(model, batch, memory_format, device, args.rounds, clock, norms, args.compile)
            base = times["BatchNorm"]
            ratios = [statistics.median(a / b for a, b in zip(times[n], base, strict=True)) for n in names]
            kind = "NCHW" if memory_format == torch.contiguous_format else "channels-last"
            lines.append(
                f"| {model.__name__} | {batch} | {kind} | {1000 * statistics.median(base):.0f} | "
                + " | ".join(f"{ratio:.2f}" for ratio in ratios)
                + " |"
            )
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
