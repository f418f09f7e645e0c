"""Gain against cost by set of layers: which layers take an α under a latency budget.

    python tests/benchmarks/budget.py costs --model alphatune.models.cifar:resnet56 --checkpoint resnet56.th \
        --data cifar10-test.tar --batches 1,32 --output budget.jsonl
    python tests/benchmarks/budget.py gains ... --metrics loss+t,top1 --seeds 0,1,2 --budget 1.1 --batch 32
    python tests/benchmarks/budget.py times ...

``costs`` times what α costs in each kind of layer in onnxruntime, and how far sums of costs are from the times of 20
random sets; this takes a machine with nothing else to do. ``gains`` tunes within the budget, by these costs. ``times``
times the sets that were chosen. Each adds lines to ``--output``; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch

from alphatune.cli.memory import keep_freed_memory
from alphatune.evaluation.predictor import evaluation_mode
from alphatune.export.counted_costs import counted_costs
from alphatune.export.layer_costs import LayerCosts, LayerKind, LayerTimer
from alphatune.jobs.opening import Prepared, predictor_of, prepare
from alphatune.norms.patching import patched
from alphatune.norms.watching import watched
from alphatune.settings import TuneSettings
from alphatune.tuning.layers import LayerPrices
from alphatune.tuning.tune import tune

RANDOM_SETS = 20


class RecordedPrices(LayerPrices):
    """Prices that remember which sets of layers were asked for, in order."""

    asked: list[tuple[str, ...]]

    def ratio(self, layers: Collection[str]) -> float:
        self.__dict__.setdefault("asked", []).append(tuple(layers))
        return super().ratio(layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("costs", "gains", "times"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="further settings of tune, as JSON")
    parser.add_argument("--images", type=int)
    parser.add_argument("--batches", default="1,32", help="batch sizes that are timed")
    parser.add_argument("--batch", type=int, default=32, help="the one that the budget is for")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each timing")
    parser.add_argument("--metrics", default="loss+t,top1", help="+t: with a temperature")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", type=float, default=1.1)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    keep_freed_memory()
    {"costs": write_costs, "gains": write_gains, "times": write_times}[args.step](args)


def write_costs(args: argparse.Namespace) -> None:
    """A line for each batch size."""
    prepared = _open(args)
    for size in map(int, args.batches.split(",")):
        if _lines(args, step="costs", batch=size):
            continue
        timer = _timer(args, prepared, size)
        shapes, module = _shapes(prepared), prepared.opened.module
        costs = timer.costs(shapes, sets=RANDOM_SETS)
        counted = counted_costs(module, shapes, prepared.opened.preprocessing.input_size, size).everywhere
        _write(args, step="costs", batch=size, costs=asdict(costs), counted=counted)
        errors = [each.predicted / each.measured - 1 for each in costs.sets]
        print(size, f"{costs.everywhere:.2f}", f"error {np.abs(errors).max():.3f}", flush=True)


def write_gains(args: argparse.Namespace) -> None:
    """A line for each metric and seed."""
    costs = {line["batch"]: _costs(line["costs"]) for line in _lines(args, step="costs")}
    for seed in map(int, args.seeds.split(",")):
        for metric in args.metrics.split(","):
            wanted = {"metric": metric, "seed": seed, "images": args.images, "budget": args.budget}
            if _lines(args, step="gains", batch=args.batch, **wanted):
                continue
            prepared = _open(args, seed=seed)
            settings = TuneSettings(model=args.model, data=args.data, **_settings(args))
            prices = RecordedPrices(costs[args.batch], "onnxruntime", 1, args.budget)
            result = tune(
                prepared.opened.module,
                prepared.batches,
                metric=metric.removesuffix("+t"),
                temperature=metric.endswith("+t"),
                seed=seed,
                latency=prices,
                rivals="none",
                predictor=predictor_of(settings, prepared),
            )
            assert result.refinement is not None
            front = result.refinement.front
            assert front is not None
            everything, *halves = prices.asked[: 2 * len(front.sets) - 1]
            pairs = [(everything, everything), *zip(halves[::2], halves[1::2], strict=True)]
            _write(
                args,
                step="gains",
                batch=args.batch,
                **wanted,
                baseline=[result.baseline.top1, result.baseline.loss],
                sets=[
                    {
                        "layers": each.layers,
                        "ratios": {b: np.mean([c.ratio(half) for half in pair]) for b, c in costs.items()},
                        "top1": each.metrics.top1,
                        "loss": each.metrics.loss,
                        "calibrated": each.calibrated.loss,
                        "gain": each.gain.delta,
                        "ci": each.gain.ci,
                        "within": each.within_budget,
                    }
                    for each, pair in zip(front.sets, pairs, strict=True)
                ],
                chosen=front.chosen,
                layers=front.layers,
                predicted=front.predicted,
                seconds=round(result.seconds),
            )
            print(
                seed, metric, front.chosen, len(front.layers), f"{front.predicted:.3f}", f"{result.seconds:.0f} s",
                [(s.layers, round(s.ratio, 3), round(s.gain.delta, 4)) for s in front.sets], flush=True,
            )  # fmt: skip


def write_times(args: argparse.Namespace) -> None:
    """A line for each set that was chosen, with its measured time."""
    prepared, timers = _open(args), dict[int, LayerTimer]()
    for line in _lines(args, step="gains"):
        wanted = {key: line[key] for key in ("metric", "seed", "images", "budget", "batch")}
        if line["chosen"] is None or _lines(args, step="times", **wanted):
            continue
        size = line["batch"]
        timer = timers.setdefault(size, _timer(args, prepared, size))
        measured = timer.ratio(line["layers"])
        _write(args, step="times", **wanted, predicted=line["predicted"], measured=measured)
        print(wanted, len(line["layers"]), f"{line['predicted']:.3f}", f"{measured:.3f}", flush=True)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {"checkpoint": args.checkpoint, "limit": args.images, **args.settings}


def _open(args: argparse.Namespace, seed: int = 0) -> Prepared:
    return prepare(TuneSettings(model=args.model, data=args.data, seed=seed, **_settings(args)))


def _timer(args: argparse.Namespace, prepared: Prepared, size: int) -> LayerTimer:
    return LayerTimer(
        prepared.opened.module,
        prepared.opened.preprocessing.input_size,
        size,
        runtime="onnx",
        alpha=0.05,
        seconds=args.seconds,
    )


def _shapes(prepared: Prepared) -> dict[str, tuple[int, ...]]:
    model = prepared.opened.module
    with patched(model), evaluation_mode(model), watched(model) as seen:
        model(torch.zeros(2, *prepared.opened.preprocessing.input_size))
    return {name: shape[1:] for name, shape in seen.shapes.items()}


def _costs(saved: dict[str, Any]) -> LayerCosts:
    kinds = tuple(LayerKind(tuple(k["layers"]), tuple(k["shape"]), k["share"]) for k in saved["kinds"])
    return LayerCosts(saved["batch_size"], saved["folded_s"], kinds, saved["everywhere"])


def _lines(args: argparse.Namespace, **wanted: Any) -> list[dict[str, Any]]:
    if not args.output.exists():
        return []
    lines = [json.loads(line) for line in args.output.read_text().splitlines()]
    wanted |= {"model": args.model}
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def _write(args: argparse.Namespace, **line: Any) -> None:
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"timm {timm.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    with args.output.open("a") as file:
        file.write(json.dumps({"model": args.model, **line, "machine": machine}) + "\n")


if __name__ == "__main__":
    main()
