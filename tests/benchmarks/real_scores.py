"""What is called significant, and what intervals hold, by a real network's scores taken for the whole population.

    python tests/benchmarks/real_scores.py --checkpoint resnet20.th --data cifar10-test.tar \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --scores scores.npz

The scores of all images at all α are measured exactly, or read from ``--scores``. Each of 1 000 runs draws n images with
replacement, chooses α and measures its gain, cross-fitted. The true gain of an α is that of all images. "None": the
differences to α = 0 of each image drawn have a random sign, so that no α is better than 0 and all else is as it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alphatune.jobs.opening import prepare
from alphatune.settings import TuneSettings
from alphatune.tuning.alphas import AUTO
from alphatune.tuning.selection import cross_fitted_gain, select_by_score
from alphatune.tuning.sweep import Sweep
from alphatune.tuning.tune import tune

METRICS = ("loss", "top1")


def measure(given: argparse.Namespace) -> dict[str, NDArray[np.float64]]:
    """Scores (alphas, n) of both metrics, larger is better; and the tune's own gain, on the way."""
    prepared = prepare(
        TuneSettings(
            model=given.model, checkpoint=given.checkpoint, data=given.data, mean=given.mean, std=given.std,
            input_size=given.input_size, crop_pct=1.0, workers="0", device="cpu",
        )
    )  # fmt: skip
    sweep = tune(prepared.opened.module, prepared.batches, alphas=given.alphas, metric="top1").sweep
    for some in ("0,0.02,0.1", ",".join(f"{alpha:g}" for alpha in AUTO)):
        rows = [sweep.alphas.index(float(alpha)) for alpha in some.split(",") if float(alpha) in sweep.alphas]
        part = Sweep(tuple(sweep.alphas[i] for i in rows), tuple(sweep.scores[i] for i in rows))
        for metric in METRICS:
            print(some, cross_fitted_gain(part.choices(), metric), flush=True)
    return {
        "alphas": np.array(sweep.alphas),
        "targets": sweep.baseline.targets.astype(np.int64),
        "loss": -np.stack([scores.loss for scores in sweep.scores]).astype(np.float64),
        "top1": np.stack([scores.top1 for scores in sweep.scores]).astype(np.float64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="alphatune.models.cifar:resnet20")
    for name in ("checkpoint", "data", "mean", "std"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--input-size", default="32")
    parser.add_argument("--alphas", default=",".join(f"{alpha:g}" for alpha in AUTO))
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=1000)
    given = parser.parse_args()
    if not given.scores.exists():
        np.savez_compressed(given.scores, **measure(given))
    with np.load(given.scores) as file:
        scores = {name: file[name] for name in file}
    alphas, targets = tuple(scores["alphas"].tolist()), scores["targets"]
    print("| effect | n | metric | significant | holds the worth | too high | too low | median p factor |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for effect in ("none", "real"):
        for n in (200, 1000, 3000, 10_000):
            for metric in METRICS:
                differences = scores[metric] - scores[metric][0]
                truth = differences.mean(axis=1) * (effect == "real")
                counts, factors = np.zeros(3), []
                for seed in range(given.runs):
                    rng = np.random.default_rng((n, seed))
                    drawn = rng.integers(0, len(targets), n)
                    some = differences[:, drawn]
                    if effect == "none":
                        some = some * rng.choice([-1, 1], n)
                    gain = select_by_score(some, alphas, targets[drawn], seed=seed)[0].gain
                    assert gain is not None
                    worth = np.mean([truth[alphas.index(alpha)] for alpha in gain.fold_alphas])
                    counts += gain.significant, gain.ci[0] > worth, gain.ci[1] < worth
                    if "p times" in gain.method:
                        factors.append(float(gain.method.split("p times ")[1].split()[0]))
                significant, high, low = 100 * counts / given.runs
                print(
                    f"| {effect} | {n} | {metric} | {significant:.1f} % | {100 - high - low:.1f} % | {high:.1f} % "
                    f"| {low:.1f} % | {np.median(factors or [1]):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
