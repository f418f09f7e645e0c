"""What a sweep costs, in plain evaluations of the unpatched model on the same images.

    python tests/benchmarks/sweep_cost.py --checkpoint resnet20.th --data cifar10-test.tar

Side by side in one process, interleaved round by round, medians of the rounds:

    plain    one evaluation of the unpatched model (decode, copy, forward, score)
    sweep    alphatune's sweep over k α, each batch decoded once
    loop     what a user would write: k evaluations, each with forward hooks that
             replace every BatchNorm's output, statistics by torch.var_mean

``--output FILE`` appends the table to a file. ``--allocator`` runs everything with the
command line's allocator setting on, as ``alphatune tune`` does.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn

from alphatune.cli.memory import keep_freed_memory
from alphatune.data.datasets import open_data
from alphatune.data.loading import Batches, automatic_workers
from alphatune.data.preprocessing import Preprocessing
from alphatune.evaluation import evaluate
from alphatune.models.checkpoints import load_weights_, read_checkpoint
from alphatune.models.sources import build
from alphatune.norms.patching import patched
from alphatune.tuning.sweep import sweep

ALPHAS = (0.0, 0.02, 0.05, 0.1)


def hooked(model: nn.Module, alpha: float) -> list[torch.utils.hooks.RemovableHandle]:
    def hook(layer: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        variance, mean = torch.var_mean(x, (2, 3), correction=0)
        d = mean - layer.running_mean
        mixed = (1 - alpha) * layer.running_var + alpha * variance + alpha * (1 - alpha) * d * d
        scale = layer.weight * torch.rsqrt(mixed + layer.eps)
        shift = layer.bias - (layer.running_mean + alpha * d) * scale
        return x * scale[:, :, None, None] + shift[:, :, None, None]

    return [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="alphatune.models.cifar:resnet20")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--allocator", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.allocator:
        keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(args.model).model
    load_weights_(model, read_checkpoint(args.checkpoint))
    model.to(device).eval()
    preprocessing = Preprocessing().override(input_size=(32,), crop_pct=1.0)
    batches = Batches(
        open_data(args.data).limit(args.limit, 0), preprocessing, 128, device, workers=automatic_workers()
    )

    def run_sweep() -> None:
        with patched(model):
            sweep(model, batches, ALPHAS)

    def run_loop() -> None:
        for alpha in ALPHAS:
            handles = hooked(model, alpha) if alpha else []
            evaluate(model, batches)
            for handle in handles:
                handle.remove()

    runs = {"plain": lambda: evaluate(model, batches), "sweep": run_sweep, "loop": run_loop}
    runs["plain"]()  # warm up
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            times[name].append(timed(run))
    median = {name: statistics.median(values) for name, values in times.items()}
    k = len(ALPHAS)
    allocator = "set as by the command line" if args.allocator else "glibc's default"
    lines = [
        f"{args.model}, {len(batches)} images, k = {k} values of α, medians of {args.rounds} interleaved rounds, "
        f"memory allocator {allocator}; {device}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"torch {torch.__version__}, timm {timm.__version__}:",
        "",
        "| | seconds | plain evaluations | per α |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {seconds:.2f} | {seconds / median['plain']:.2f} | "
            f"{seconds / median['plain'] / (1 if name == 'plain' else k):.2f} |"
            for name, seconds in median.items()
        ),
        "",
    ]
    print("\n".join(lines))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
