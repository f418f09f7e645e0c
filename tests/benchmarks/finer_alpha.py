"""What finer α and temperature are worth, chosen on one half of the data and scored on the other.

    python tests/benchmarks/finer_alpha.py --checkpoint resnet20.th --data cifar10-test.tar \
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --input-size 32 --crop-pct 1

For each seed the examples are halved, each half chooses for the other, and every example is scored once. A table
of loss and top-1 for α = 0, one α, one a stage, a layer, a channel, each with and without temperature; means
over the seeds, and what each level cost in plain evaluations measured in the same run.
``--joint`` tunes temperature and α together and compares levels with a temperature each. ``--output FILE``
appends the table to a file.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import timm
import torch

from alphatune.cli.memory import keep_freed_memory
from alphatune.evaluation.predictor import evaluate
from alphatune.jobs.opening import prepare
from alphatune.results.tune import Level
from alphatune.settings import TuneSettings
from alphatune.tuning.refinement import Refinement
from alphatune.tuning.tune import tune


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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--metric", default="loss")
    parser.add_argument("--granularity", default="channel")
    parser.add_argument("--joint", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    settings = TuneSettings(
        model=args.model, model_kwargs=tuple(args.model_kwargs), checkpoint=args.checkpoint, data=args.data,
        class_map=args.class_map, mean=args.mean, std=args.std, input_size=args.input_size,
        crop_pct=args.crop_pct, limit=args.limit,
    )  # fmt: skip
    prepared = prepare(settings)
    model, batches, device = prepared.opened.module, prepared.batches, prepared.opened.device
    evaluate(model, batches)  # decoded from here on
    plain: list[float] = []
    found: list[Refinement] = []
    chosen = []
    for seed in range(args.seeds):
        started = time.perf_counter()
        evaluate(model, batches)
        plain.append(time.perf_counter() - started)
        result = tune(
            model,
            batches,
            metric=args.metric,
            granularity=args.granularity,
            temperature=args.joint,
            seed=seed,
        )
        assert result.refinement is not None
        found.append(result.refinement)
        chosen.append(
            f"{result.refinement.chosen} (loss {result.chosen.loss:.4f}, top-1 {result.chosen.top1:.4f})"
        )
        print(f"seed {seed}: {result.seconds:.0f} s, plain {plain[-1]:.1f} s", flush=True)
        # After every seed: the next one takes as long.
        print(
            table(args, found, chosen, statistics.median(plain), f"{len(batches)} images", device), flush=True
        )
    text = table(args, found, chosen, statistics.median(plain), f"{len(batches)} images", device)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("a", encoding="utf-8") as file:
            file.write(text + "\n\n")


def table(
    args: argparse.Namespace,
    found: list[Refinement],
    chosen: list[str],
    unit: float,
    images: str,
    device: torch.device,
) -> str:
    lines = [
        f"{args.model.rpartition(':')[2]}, {images}, chosen by {args.metric}"
        f"{' with temperature' if args.joint else ''}, {len(found)} seeds; {device}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, timm {timm.__version__}:",
        "",
        "| α | numbers | loss | with T | top-1 | ECE | with T | T | accepted | plain evaluations |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(row(levels, unit) for levels in zip(*(each.levels for each in found), strict=True)),
        "",
        "Deployed: " + "; ".join(chosen) + ".",
    ]
    return "\n".join(lines)


def row(levels: tuple[Level, ...], unit: float) -> str:
    def mean(values: list[float]) -> str:
        spread = f" ±{max(values) - min(values):.4f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.4f}{spread}"

    temperatures = [t for level in levels for t in level.temperatures]
    return (
        f"| {levels[0].name} | {levels[0].units or ''} | {mean([level.metrics.loss for level in levels])} "
        f"| {mean([level.calibrated.loss for level in levels])} | {mean([level.metrics.top1 for level in levels])} "
        f"| {mean([level.metrics.ece for level in levels])} | {mean([level.calibrated.ece for level in levels])} "
        f"| {statistics.mean(temperatures):.2f} | {sum(level.accepted for level in levels)} of {len(levels)} "
        f"| {statistics.median([level.seconds for level in levels]) / unit:.1f} |"
    )


if __name__ == "__main__":
    main()
