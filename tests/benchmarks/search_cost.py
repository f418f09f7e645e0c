"""What finding α costs, in plain evaluations of the unpatched model on the same images, and how good it is.

    python tests/benchmarks/search_cost.py --checkpoint resnet20.th --data cifar10-test.tar \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --input-size 32 --crop-pct 1

Side by side in one process, interleaved round by round, medians of the rounds:

    plain     one evaluation of the unpatched model (decode, copy, forward, score)
    auto      alphatune's search by top-1, and by loss: the chosen α measured exactly, its gain tested
    full      the same with a curve of 101 α from all examples (--curve full)
    loop      what a user would write: an evaluation for each α, with forward hooks that
              replace every BatchNorm's output, statistics by torch.var_mean
    timm      the same in timm's evaluation recipe: its loader, channels-last, bfloat16 autocast

``--exact FILE.npz`` compares with the exact scores at 31 α over [0, 0.3], measured first
if the file is not there. ``--output FILE`` appends the tables to a file. ``--busy`` keeps
another process busy beside all of it, as on a shared machine. ``--profile`` says where the
time of one search by top-1 goes, and times nothing else.
"""

# ruff: noqa: E402  (torch reads how threads wait when it is imported)
from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alphatune.cli.threads import spin_briefly

spin_briefly()  # as the command does, before torch reads it

import numpy as np
import timm
import torch
from timm.data import create_dataset, create_loader
from torch import nn

from alphatune.cli.memory import keep_freed_memory
from alphatune.data.cache import with_cache
from alphatune.data.loading import Batches
from alphatune.evaluation.predictor import evaluate
from alphatune.jobs.opening import Prepared, prepare
from alphatune.kernels.dispatch import resolve_kernel
from alphatune.settings import TuneSettings
from alphatune.tuning.tune import TuneResult, tune

LOOP_ALPHAS = (0.0, 0.02, 0.05, 0.1)
EXACT_ALPHAS = "0:0.3:31"


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


def loop(model: nn.Module, batches: Batches) -> None:
    for alpha in LOOP_ALPHAS:
        handles = hooked(model, alpha) if alpha else []
        evaluate(model, batches)
        for handle in handles:
            handle.remove()


def timm_loop(model: nn.Module, loader: Any, device: torch.device) -> None:
    model = model.to(memory_format=torch.channels_last)
    for alpha in LOOP_ALPHAS:
        handles = hooked(model, alpha) if alpha else []
        loss, correct = 0.0, 0
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            for images, targets in loader:
                images = images.to(device).contiguous(memory_format=torch.channels_last)
                targets = targets.to(device)
                logits = model(images)
                loss += nn.functional.cross_entropy(logits.float(), targets, reduction="sum").item()
                correct += int((logits.argmax(1) == targets).sum())
        for handle in handles:
            handle.remove()
    model.to(memory_format=torch.contiguous_format)


def timm_loader(prepared: Prepared, data: str) -> Any:
    p, batches = prepared.opened.preprocessing, prepared.batches
    dataset = create_dataset("", root=data)
    return create_loader(
        dataset, p.input_size, batches.batch_size, is_training=False, use_prefetcher=False,
        interpolation=p.interpolation, mean=p.mean, std=p.std, num_workers=batches.workers,
        crop_pct=p.crop_pct, crop_mode=p.crop_mode,
    )  # fmt: skip


def exact_scores(path: Path, prepared: Prepared) -> dict[str, np.ndarray]:
    """Loss and top-1 (31, n) at each α of ``EXACT_ALPHAS``."""
    if not path.exists():
        swept = tune(prepared.opened.module, prepared.batches, alphas=EXACT_ALPHAS).sweep
        loss, top = (np.stack([getattr(s, name) for s in swept.scores]) for name in ("loss", "top1"))
        np.savez(path, grid=np.array(swept.alphas), loss=loss, top=top)
    return dict(np.load(path))


def compared(result: TuneResult, metric: str, exact: dict[str, np.ndarray]) -> str:
    """How far the search's choice is from the best of the exact sweep, and its curve from the exact one."""
    grid, scores = exact["grid"], exact["loss" if metric == "loss" else "top"].mean(1)
    best = scores.min() if metric == "loss" else scores.max()
    alpha = result.decision.best[metric]
    points = {round(p.alpha, 9): p.metrics for p in result.curve}
    found = getattr(points[round(alpha, 9)], metric)
    common = [(g, s) for g, s in zip(grid, scores, strict=True) if round(float(g), 9) in points]
    error = max(abs(getattr(points[round(float(g), 9)], metric) - s) for g, s in common)
    better = found - best if metric == "top1" else best - found
    return (
        f"best α {alpha:g} ({metric} {found:.4f}, better than the best of 31 by {better:+.4f}), deployed "
        f"{result.alpha:g}; {result.passes:.2f} passes; largest difference of {len(common)} common points of the "
        f"curve to the exact one {error:.4f}"
    )


def timed(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def profiled(run: Callable[[], object]) -> str:
    """The operators that take longest, in the process that computes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        seconds, _ = timed(run)
    table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12)
    return f"{seconds:.1f} s in all, of which operators of torch:\n{table}"


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Another process that never rests."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="alphatune.models.cifar:resnet20")
    parser.add_argument("--model-kwargs", action="append", default=[])
    for name in ("checkpoint", "data"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("class-map", "mean", "std", "input-size"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--crop-pct", type=float)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", default="", help="runs to leave out, e.g. 'timm;full, top1'")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--exact", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    settings = TuneSettings(
        model=args.model, model_kwargs=tuple(args.model_kwargs), checkpoint=args.checkpoint, data=args.data,
        class_map=args.class_map, mean=args.mean, std=args.std, input_size=args.input_size,
        crop_pct=args.crop_pct, limit=args.limit, cache="none",
    )  # fmt: skip
    prepared = prepare(settings)
    model, batches, device = prepared.opened.module, prepared.batches, prepared.opened.device

    def searched(**options: Any) -> Callable[[], TuneResult]:
        # A new cache each time: every run decodes, as a command would.
        return lambda: tune(model, with_cache(batches, "auto"), **options)

    loader = timm_loader(prepared, args.data)
    runs: dict[str, Callable[[], object]] = {
        "plain": lambda: evaluate(model, batches),
        "auto, top1": searched(metric="top1", accept="best"),
        "auto, loss": searched(metric="loss", accept="best"),
        "full, loss": searched(metric="loss", accept="best", curve="full"),
        "full, top1": searched(metric="top1", accept="best", curve="full"),
        "loop": lambda: loop(model, batches),
        "timm": lambda: timm_loop(model, loader, device),
    }
    left_out = set(args.without.split(";"))
    runs = {name: run for name, run in runs.items() if not {name, name.split(",")[0]} & left_out}
    resolve_kernel("auto", device)  # compiled before anything is timed; tune reports what it takes
    runs["plain"]()
    if args.profile:
        print(profiled(runs["auto, top1"]))
        return
    exact = exact_scores(args.exact, prepared) if args.exact else None
    times: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, object] = {}
    with busy(args.busy):
        for _ in range(args.rounds):
            for name, run in runs.items():
                seconds, results[name] = timed(run)
                times[name].append(seconds)
                print(f"{name}: {seconds:.1f} s", flush=True)
    ratios = {
        name: [t / plain for t, plain in zip(values, times["plain"], strict=True)]
        for name, values in times.items()
    }
    lines = [
        f"{args.model.rpartition(':')[2]}, {len(batches)} images, {args.rounds} interleaved rounds; {device}, "
        f"{torch.get_num_threads()} threads, {batches.workers} workers, {platform.machine()}, "
        f"torch {torch.__version__}, timm {timm.__version__}{', beside a busy process' * args.busy}:",
        "",
        "| | seconds | plain evaluations (median, range) | per α |",
        "|---|---:|---:|---:|",
    ]
    for name, values in ratios.items():
        per_alpha = f"{statistics.median(values) / len(LOOP_ALPHAS):.2f}" if name in ("loop", "timm") else ""
        lines.append(
            f"| {name} | {statistics.median(times[name]):.1f} | {statistics.median(values):.2f} "
            f"({min(values):.2f} to {max(values):.2f}) | {per_alpha} |"
        )
    lines.append("")
    for name, result in results.items():
        if isinstance(result, TuneResult) and exact is not None:
            lines.append(f"- {name}: {compared(result, name.split(', ')[1], exact)}")
    print("\n".join(lines))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main()
