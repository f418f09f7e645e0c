"""The paper's training techniques on CIFAR-10, small enough for two CPU cores.

    python tests/benchmarks/training_table.py ../shared/data/cifar10-jpeg-train.tar.gz

trains a ResNet-8 (one block a stage, 16-32-64 channels) on 5 000 images, three
seeds a row, and writes docs/benchmarks/training-table.md, and the α beside it as CSV:

    A  batch 128, ghost sizes 2 to 128 (128 is BatchNorm)        10 epochs
    B  batch 2: BatchNorm, GroupNorm, batch-group                 2 epochs
    C  batch 128 of 4 classes, not i.i.d. (paper Table 1's rows) 10 epochs

Accuracy is that of 5 000 other images. "with α": the α that was best on 2 000
further images, of those in ALPHAS. With ``--full`` (a GPU): the paper's wide
ResNet-18, all 40 000 training images, 60 epochs.

Finished runs are kept in ``--runs`` as one JSON object a line, so that an
interrupted table goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from alphatune.cli.memory import keep_freed_memory
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.sampling import Sampling
from alphatune.data.splits import open_splits
from alphatune.data.training_batches import DeviceBatches, DeviceCache, TrainingBatches
from alphatune.evaluation.predictor import evaluate
from alphatune.models.cifar import CifarResNet, resnet18
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.patching import patch_, set_alpha_
from alphatune.statistics.scores import summarise
from alphatune.training.loop import train
from alphatune.training.recipe import Recipe
from alphatune.training.state import start

ALPHAS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
GROUP_ALPHAS = (1.0, 0.98, 0.95, 0.9, 0.8)  # of a GroupNorm, 1 is the plain layer
SEEDS = (0, 1, 2)
SIZES = (2, 4, 8, 16, 32, 64, 128)
PREPROCESSING = Preprocessing((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), crop_pct=1.0)
OUTPUT = Path(__file__).parents[2] / "docs" / "benchmarks" / "training-table.md"


def rows(epochs: int) -> list[dict[str, Any]]:
    """Every row of the three tables: name, norm, batch size, classes a batch, epochs."""
    large = {"batch_size": 128, "epochs": epochs, "lr": 0.1, "momentum": 0.1}
    small = {"batch_size": 2, "epochs": max(2, epochs // 5), "lr": 0.005, "momentum": 0.01}
    ghosts = [(f"ghost {s}", Norm("ghost", ghost_batch_size=s)) for s in SIZES]
    table_a = [("A", name, norm, large, None) for name, norm in ghosts]
    group = Norm("group", num_groups=8)
    table_b = [
        ("B", "batch", Norm(), small, None),
        ("B", "group, 8 groups", group, small, None),
        (
            "B",
            "batch-group, 8 groups of 2 examples",
            Norm("batch-group", num_groups=8, examples_per_group=2),
            small,
            None,
        ),
    ]
    others = [("batch", Norm()), ("renorm", Norm("renorm"))]
    batch_group = (
        "batch-group, 8 groups of 4 examples",
        Norm("batch-group", num_groups=8, examples_per_group=4),
    )
    table_c = [("C", name, norm, large, 4) for name, norm in (*others, *reversed(ghosts[:-1]), batch_group)]
    return [
        {"table": t, "name": name, "norm": norm.to_dict(), "classes_per_batch": classes, **recipe}
        for t, name, norm, recipe, classes in (*table_a, *table_b, *table_c)
    ]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one network and measure it with and without example weighting."""
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    data, device = caches(job["data"], job["full"], job["device"])
    seed, began = job["seed"], time.monotonic()
    torch.manual_seed(seed)
    model = resnet18() if job["full"] else CifarResNet((1, 1, 1), (16, 32, 64), projection=False)
    batches = TrainingBatches(
        data["train"][0],
        PREPROCESSING,
        "cifar",
        Sampling(job["batch_size"], seed, job["classes_per_batch"]),
        device,
        cache=data["train"][1],
    )
    steps = job["epochs"] * batches.steps_per_epoch
    norm = Norm.from_dict(job["norm"] | {"renorm": [steps // 32, steps // 4, 5 * steps // 32]})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = job["momentum"]
    convert_(model, norm)
    model.to(device)
    recipe = Recipe(epochs=job["epochs"], learning_rate=job["lr"], warmup_epochs=0.5, seed=seed)
    train(start(model, recipe, device), batches, recipe)
    alphas = GROUP_ALPHAS if norm.kind == "group" else ALPHAS
    patch_(model, alphas[0])
    accuracy: dict[str, dict[float, float]] = {"choose": {}, "report": {}}
    for part in ("choose", "report"):
        best = max(accuracy["choose"], key=accuracy["choose"].__getitem__, default=alphas[0])
        for alpha in alphas if part == "choose" else {alphas[0], best}:
            set_alpha_(model, alpha)
            scores = evaluate(model, DeviceBatches(data[part][1], PREPROCESSING, 250))
            accuracy[part][alpha] = summarise(scores).top1
    return {
        **{k: job[k] for k in ("table", "name", "seed", "epochs", "batch_size", "full")},
        "plain": accuracy["report"][alphas[0]],
        "alpha": best,
        "weighted": accuracy["report"][best],
        "seconds": time.monotonic() - began,
    }


_caches: dict[str, Any] = {}


def caches(data: str, full: bool, device_name: str) -> tuple[dict[str, Any], torch.device]:
    """Training images, images to choose α by, and images to report on; decoded once a process."""
    device = torch.device(device_name)
    if not _caches:
        splits = open_splits(data, val_fraction=0.2)
        rest = splits.validation
        choose = rest.limit(2000, seed=1)
        taken = set(choose.indices.tolist())
        left = [i for i, index in enumerate(rest.indices.tolist()) if index not in taken]
        report = rest.take(torch.tensor(left).numpy())
        parts = {
            "train": splits.train if full else splits.train.limit(5000, seed=1),
            "choose": choose,
            "report": report if full else report.limit(5000, seed=1),
        }
        for name, examples in parts.items():
            _caches[name] = (examples, DeviceCache.of(Batches(examples, PREPROCESSING, 250, device)))
    return _caches, device


TABLES = {
    "A": "Ghost batch size, batch 128",
    "B": "Batch size 2",
    "C": "Batches of four classes, not i.i.d.",
}


def summaries(results: list[dict[str, Any]], letter: str) -> list[list[str]]:
    """Of each row of a table: its name, accuracy, that with α, their difference, and the α of each seed.

    Mean ± standard deviation over seeds, in percent.
    """
    found = []
    for name in dict.fromkeys(r["name"] for r in results if r["table"] == letter):
        runs = sorted(
            (r for r in results if (r["table"], r["name"]) == (letter, name)), key=lambda r: r["seed"]
        )
        plain, weighted = ([100 * r[k] for r in runs] for k in ("plain", "weighted"))
        difference = [w - p for p, w in zip(plain, weighted, strict=True)]
        chosen = ", ".join(f"{r['alpha']:g}" for r in runs)
        found.append([name, spread(plain), spread(weighted), spread(difference, "+"), chosen])
    return found


def table(results: list[dict[str, Any]], letter: str) -> str:
    """One table of the page, with its heading."""
    lines = [f"## {TABLES[letter]}", "", "| normalisation | accuracy | gain by α |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {plain} | {difference} |" for name, plain, _, difference, _ in summaries(results, letter)
    ]
    return "\n".join(lines)


def spread(values: list[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.2f} ± {deviation:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="CIFAR-10's training images: a folder or archive of class folders")
    parser.add_argument("--runs", type=Path, default=Path("training-table.jsonl"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processes = 1 if device == "cuda" else args.processes
    threads = max(1, torch.get_num_threads() // processes)
    epochs = 60 if args.full else 10
    done = [json.loads(line) for line in args.runs.read_text().splitlines()] if args.runs.exists() else []
    finished = {(r["table"], r["name"], r["seed"], r["full"]) for r in done}
    common = {"data": args.data, "full": args.full, "device": device, "threads": threads}
    jobs = [
        {**row, **common, "seed": seed}
        for seed in SEEDS
        for row in rows(epochs)
        if (row["table"], row["name"], seed, args.full) not in finished
    ]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        for result in pool.imap_unordered(run, jobs):
            done.append(result)
            with args.runs.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(len(done), result, flush=True)
    order = {(row["table"], row["name"]): i for i, row in enumerate(rows(epochs))}
    results = sorted((r for r in done if r["full"] == args.full), key=lambda r: order[r["table"], r["name"]])
    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    hours = sum(r["seconds"] for r in results) / 3600
    title = "wide ResNet-18, 40 000 images" if args.full else "ResNet-8, 5 000 images"
    text = f"""# Training table

{title}, {len(SEEDS)} seeds, {len(results)} runs, {hours:.1f} hours of computing;
torch {torch.__version__}, {where}. Written by `tests/benchmarks/training_table.py`, which says how.
Accuracy in percent of 5 000 images, mean ± standard deviation over the seeds. "Gain by α": the same
network with the α that was best on 2 000 further images. [The table](training-table.csv) has these α
and the accuracy with them.

{table(results, "A")}

{table(results, "B")}

{table(results, "C")}
"""
    OUTPUT.write_text(text, encoding="utf-8")
    with OUTPUT.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "normalisation", "accuracy", "with α", "difference", "α chosen"])
        writer.writerows(
            [title, *row] for letter, title in TABLES.items() for row in summaries(results, letter)
        )
    print(text)


if __name__ == "__main__":
    main()
