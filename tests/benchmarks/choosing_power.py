"""What ways to choose one α find, how sure they are of it, and what they cost: simulated from exact logits of networks.

    python tests/benchmarks/choosing_power.py measure --checkpoint resnet20.th --data cifar10-test.tar resnet20.npz
    python tests/benchmarks/choosing_power.py simulate resnet20.npz resnet56.npz --output choosing-power.csv

``measure`` keeps the logits of all images at 41 α over [0, 0.3]. These images are the population: ``simulate`` draws
as many of them, with replacement, chooses α and measures its gain as alphatune would, and compares with the truth on
all images. A pass is one look at every image at one α.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alphatune.core.distributed import World
from alphatune.core.metrics import INFO, Metric
from alphatune.core.progress import Meter
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import Predictor
from alphatune.jobs.opening import predictor_of, prepare
from alphatune.kernels.dispatch import resolve_kernel, use_kernel
from alphatune.norms.patching import Alpha, patched
from alphatune.results.gain import Gain
from alphatune.settings import TuneSettings
from alphatune.tuning import search
from alphatune.tuning.confirmation import measure_list, search_and_confirm
from alphatune.tuning.objective import Objective
from alphatune.tuning.passes import Passes
from alphatune.tuning.selection import select
from alphatune.tuning.tune import CURVE_TOLERANCE, RACE_DELTA

T = TypeVar("T")
#: finer where the best α are
GRID = (*(round(0.005 * i, 3) for i in range(20)), *(round(0.1 + 0.01 * i, 2) for i in range(21)))


def measure(args: argparse.Namespace) -> None:
    settings = TuneSettings(model=args.model, checkpoint=args.checkpoint, data=args.data, **args.settings)
    prepared = prepare(settings)
    kernel = resolve_kernel("auto", prepared.opened.device, worth_compiling=True)
    with use_kernel(kernel), patched(prepared.opened.module):
        passes = Passes(predictor_of(settings, prepared), prepared.batches, 0.0, World(), Meter())
        logits, targets = passes.logits(np.arange(len(prepared.batches)), GRID)
    np.savez(args.output, logits=logits.numpy(), targets=targets.numpy())


class Drawn:
    """Images drawn from those whose logits are known."""

    batch_size = 2000
    names = ()

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self.targets = targets
        self.ids = np.arange(len(targets))

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Stored(Passes):
    """Passes over stored logits (alphas, N, classes), in place of a model's."""

    stored: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def run(
        self,
        question: str,
        positions: NDArray[np.int64],
        alphas: Sequence[float | Mapping[str, Alpha]],
        look: Callable[[Batch, list[Tensor]], T],
    ) -> list[T]:
        self.meter.add(len(positions) * len(alphas))
        found = []
        for part in np.array_split(positions, -(-len(positions) // self.data.batch_size)):
            ids, targets = torch.from_numpy(part), torch.from_numpy(self.data.targets[part])
            rows = torch.from_numpy(self.rows[part])
            found.append(look(Batch(ids, targets, ids), [self._logits(float(a), rows) for a in alphas]))  # type: ignore[arg-type]
        return found

    def _logits(self, alpha: float, rows: Tensor) -> Tensor:
        """Those at an α between two stored ones lie on a straight line."""
        below = min(int(np.searchsorted(GRID, alpha, "right")) - 1, len(GRID) - 2)
        share = (alpha - GRID[below]) / (GRID[below + 1] - GRID[below])
        return torch.lerp(self.stored[below][rows], self.stored[below + 1][rows], min(share, 1.0))


@dataclass(frozen=True)
class Found:
    """What a scheme found."""

    t: float  # the best α
    gain: Gain
    alphas: tuple[float, ...]  # at which parts of the images were scored
    shares: tuple[float, ...]  # of the images


#: chooses for a metric, with a seed
Scheme = Callable[[Passes, Metric, int], Found]


def exact_list(passes: Passes, metric: Metric, seed: int) -> Found:
    """31 α measured exactly on all images."""
    sweep = measure_list(passes, tuple(round(0.01 * i, 2) for i in range(31)), 1.0)
    decision = select(sweep, metric, accept="best", seed=seed)
    assert decision.gain is not None
    alphas = decision.gain.fold_alphas
    return Found(decision.candidate, decision.gain, alphas, (1 / len(alphas),) * len(alphas))


def searched(share: float = search.CHOOSING, nodes: Sequence[int] = search.NODES) -> Scheme:
    """alphatune's search, where so many choose, and these numbers of nodes are tried."""

    def scheme(passes: Passes, metric: Metric, seed: int) -> Found:
        with patch.multiple(search, CHOOSING=share, NODES=tuple(nodes)):
            found, _, gain, _ = search_and_confirm(
                passes, Objective(metric), False, CURVE_TOLERANCE, RACE_DELTA, seed, GRID[-1]
            )
        n, chose = len(passes.data), len(found.choosing)
        shares = (*[chose / n / gain.folds] * gain.folds, 1 - chose / n)
        return Found(found.t, gain, (*gain.fold_alphas, found.t), shares)

    return scheme


SCHEMES: dict[str, Scheme] = {
    "31 α, exact": exact_list,
    "search": searched(),
    "30 % choose": searched(share=0.3),
    "50 % choose": searched(share=0.5),
    "60 % choose": searched(share=0.6),
    "all choose": searched(share=1.0),
    "always 3 nodes": searched(nodes=(3,)),
    "always 4 nodes": searched(nodes=(4,)),
    "always 5 nodes": searched(nodes=(5,)),
}


def simulate(args: argparse.Namespace) -> None:
    rows = []
    names = args.schemes.split(";") if args.schemes else [*SCHEMES]
    for path in args.logits:
        file = np.load(path)
        targets = file["targets"].astype(np.int64)
        everything = np.arange(len(targets))
        whole = Stored(
            Predictor(nn.Identity()), Drawn(targets), 0.0, World(), Meter(), None,
            torch.from_numpy(file["logits"]), everything,
        )  # fmt: skip
        exact = whole.measure(everything, GRID)
        for n, metric, name in product(args.counts or [len(targets)], args.metrics, names):
            means = [INFO[metric].sign * getattr(s, metric).mean(dtype=np.float64) for s in exact]
            worths = np.array(means) - means[0]
            told = []
            for seed in range(args.runs):
                rng = np.random.default_rng((n, seed))
                drawn = everything if args.fixed else rng.integers(0, len(targets), n)
                passes = replace(whole, data=Drawn(targets[drawn]), meter=Meter(), rows=drawn)
                found = SCHEMES[name](passes, metric, seed)
                worth = np.average(np.interp(found.alphas, GRID, worths), weights=found.shares)
                low, high = found.gain.ci
                regret = worths.max() - np.interp(found.t, GRID, worths)
                told.append(
                    (found.gain.significant, low <= worth <= high, regret, passes.meter.done / len(drawn))
                )
            power, covered, regret, cost = (float(x) for x in np.mean(told, axis=0))
            row = {
                "network": path.stem, "images": n, "drawn": not args.fixed, "metric": metric,
                "best gain": round(float(worths.max()), 5), "scheme": name, "runs": args.runs,
                "significant": round(power, 3), "interval holds": round(covered, 3),
                "regret": round(regret, 5), "passes": round(cost, 2),
            }  # fmt: skip
            print("|".join(str(v) for v in row.values()), flush=True)
            rows.append(row)
    if args.output:
        pd.DataFrame(rows).to_csv(args.output, mode="a", header=not args.output.exists(), index=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("measure")
    first.add_argument("--model", default="alphatune.models.cifar:resnet20")
    first.add_argument("--checkpoint")
    first.add_argument("--data", required=True)
    first.add_argument("--settings", type=json.loads, default={}, help="further settings of tune, as JSON")
    first.add_argument("output", type=Path)
    first.set_defaults(run=measure)
    second = commands.add_parser("simulate")
    second.add_argument("logits", type=Path, nargs="+")
    second.add_argument("--runs", type=int, default=200)
    second.add_argument(
        "--counts", type=int, nargs="*", help="numbers of images to draw; as many as there are"
    )
    second.add_argument("--metrics", nargs="*", default=["top1", "loss"])
    second.add_argument("--fixed", action="store_true", help="all images as they are: only the seed differs")
    second.add_argument("--schemes", default="", help="some only, separated by ;")
    second.add_argument("--output", type=Path, help="rows are added to it")
    second.set_defaults(run=simulate)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
