"""What rules for the default guard deploy: one α for clean images and three shifts, chosen on a few of many images.

    python tests/benchmarks/guard_rules.py --checkpoint resnet20.th --data cifar10-test.tar --output scores.npz

Measures top-1 of every image at a dozen α, exactly, then draws n images 400 times, chooses the α with the best mean
over the conditions that a rule lets pass on them, and looks at what it costs and gains on all images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from alphatune.core.distributed import World
from alphatune.core.progress import Meter
from alphatune.data.conditions import make_conditions
from alphatune.data.shifts import parse_shifts
from alphatune.jobs.opening import predictor_of, prepare
from alphatune.kernels.dispatch import resolve_kernel, use_kernel
from alphatune.norms.patching import patched
from alphatune.settings import TuneSettings
from alphatune.statistics.conditions import conditions_of, images_of
from alphatune.tuning.candidate import Candidate, exact_scores
from alphatune.tuning.objective import MOST_COST
from alphatune.tuning.passes import Passes

ALPHAS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4)
SHIFTS = "contrast,gaussian-noise,defocus-blur"
RUNS = 400


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="alphatune.models.cifar:resnet20")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--output", type=Path, required=True, help="the scores; read if they are there")
    args = parser.parse_args()
    if not args.output.exists():
        measure(args)
    right = np.load(args.output)["top1"].astype(float)
    print("|images|rule|cost to clean|gain on shifts|nothing deployed|\n|---:|---|---:|---:|---:|")
    for n in (100, 400, 1500):
        for name, errors in (("none", None), ("estimate", 0.0), ("½ error", 0.5), ("1 error", 1.0)):
            cost, gain, nothing = simulate(right, n, errors)
            print(f"|{n}|{name}|{100 * cost:.1f}|{100 * gain:.1f}|{100 * nothing:.0f} %|")


def measure(args: argparse.Namespace) -> None:
    """Whether each image is right, (α, conditions, images)."""
    settings = TuneSettings(model=args.model, checkpoint=args.checkpoint, data=args.data, limit=args.images)
    prepared = prepare(settings)
    predictor, n = predictor_of(settings, prepared), len(prepared.batches)
    kernel = resolve_kernel("auto", prepared.opened.device, worth_compiling=True)
    found = []
    with use_kernel(kernel), patched(prepared.opened.module):
        data = make_conditions(prepared.batches.take(np.arange(n)), parse_shifts(SHIFTS), seed=0)
        passes = Passes(predictor, data, 0.0, World(), Meter())
        for alpha in ALPHAS:
            scores = exact_scores(passes, np.arange(len(data)), Candidate(alpha))
            order = np.lexsort((images_of(scores.ids), conditions_of(scores.ids)))
            found.append(scores.top1[order].reshape(len(data.names), -1))
    np.savez_compressed(args.output, top1=np.array(found, bool))


def simulate(right: np.ndarray, n: int, errors: float | None) -> tuple[float, float, float]:
    """Mean cost to clean images and gain on the shifts, and how often α = 0 is kept.

    Args:
        errors: a rule: the cost plus so many standard errors is at most ``MOST_COST``; None: no rule.
    """
    rng = np.random.default_rng(0)
    truth = right.mean(2)
    chosen = []
    for _ in range(RUNS):
        drawn = right[:, :, rng.choice(right.shape[2], n, replace=False)]
        worse = drawn[0, 0] - drawn[:, 0]
        error = np.sqrt((worse**2).sum(1) + 1) / n
        passes = np.ones(len(right), bool) if errors is None else worse.mean(1) + errors * error <= MOST_COST
        passes[0] = True
        chosen.append(int(np.where(passes, drawn.mean((1, 2)), -1).argmax()))
    cost = truth[0, 0] - truth[chosen, 0]
    gain = truth[chosen, 1:].mean(1) - truth[0, 1:].mean()
    return float(cost.mean()), float(gain.mean()), float(np.mean(np.array(chosen) == 0))


if __name__ == "__main__":
    main()
