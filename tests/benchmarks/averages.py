"""What moving averages measured anew are worth, and what measuring them costs in plain evaluations.

    python tests/benchmarks/averages.py --checkpoint resnet20.th --measure cifar10-train.tar.gz \\
        --data cifar10-test.tar --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

For both orders, with and without the augmentation of training: the network's metrics on ``--data`` by the averages
of ``--measure``, paired with those by the stored ones. The time of a pass over ``--measure`` is divided by that of
a plain evaluation of the same images just before it; images are decoded anew each time but for layer-by-layer, which
decodes them once.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alphatune.data.augmented import AugmentedBatches
from alphatune.data.cache import with_cache
from alphatune.evaluation.predictor import evaluate
from alphatune.jobs.averages import mixed, open_images
from alphatune.jobs.opening import prepare
from alphatune.models.calibration import ORDERS, recalibrate_
from alphatune.settings import TuneSettings
from alphatune.statistics.gain import paired_gain
from alphatune.statistics.scores import summarise


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="alphatune.models.cifar:resnet20")
    for name in ("checkpoint", "measure", "data", "mean", "std"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--input-size", default="32")
    parser.add_argument("--limit", type=int, help="images of each")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    settings = TuneSettings(
        model=given.model, checkpoint=given.checkpoint, data=given.data, mean=given.mean, std=given.std,
        input_size=given.input_size, crop_pct=1.0, workers="0", limit=given.limit, device="cpu",
    )  # fmt: skip
    prepared = prepare(settings)
    module = prepared.opened.module
    stored = evaluate(module, prepared.batches)
    plain = open_images(settings, given.measure, prepared.opened, split=None, limit=given.limit)
    augmented = AugmentedBatches(
        plain.examples, plain.preprocessing, plain.batch_size, plain.device, augmentation="cifar", seed=0
    )
    before = summarise(stored)
    lines = [
        f"{given.model}, averages of {len(plain)} images, {before.n} images evaluated:",
        "",
        "| averages | augmentation | top-1 | loss (nats) | gain in loss (95 % interval) | plain evaluations |",
        "|---|---|---:|---:|---|---:|",
        f"| stored | | {before.top1:.4f} | {before.loss:.4f} | | |",
    ]
    for order in ORDERS:
        for batches, name in ((plain, "none"), (augmented, "cifar")):
            model = copy.deepcopy(module)
            once = timed(lambda batches=batches, model=model: evaluate(model, batches))
            source = mixed(batches, 0) if order == "one-pass" else with_cache(batches, "ram")
            seconds = timed(lambda m=model, s=source, o=order: recalibrate_(m, s, order=o))
            scores = evaluate(model, prepared.batches)
            after, gain = summarise(scores), paired_gain(scores, stored, "loss")
            lines.append(
                f"| {order} | {name} | {after.top1:.4f} | {after.loss:.4f} | {gain.delta:+.4f} "
                f"({gain.ci[0]:+.4f} to {gain.ci[1]:+.4f}) | {seconds / once:.1f} |"
            )
    text = "\n".join(lines) + "\n"
    print(text)
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
