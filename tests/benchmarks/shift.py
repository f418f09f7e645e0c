"""α, and what is free, under shifts: tuned on some images and shifts, scored on others.

    python tests/benchmarks/shift.py --checkpoint resnet20.th --data cifar10-test.tar --seeds 0,1,2 \
        --counts 1500,400,100,25 --tested 1000 --output docs/benchmarks/shift.jsonl

For each seed every repair is fitted on so many images under the clean condition and the *seen* shifts, within the
default guard. It is scored on other images: ``--tested`` of them under these and the *unseen* shifts, and all of them
under the clean condition, as a fall of half a point there is told by thousands of images only. Each run is one line
of ``--output``; runs that are there already are not made again. shift_tables.py makes tables of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from alphatune.cli.memory import keep_freed_memory
from alphatune.core.distributed import World
from alphatune.core.progress import Meter
from alphatune.data.conditions import Conditions, make_conditions
from alphatune.data.shifts import parse_shifts
from alphatune.jobs.opening import predictor_of, prepare
from alphatune.kernels.dispatch import resolve_kernel, use_kernel
from alphatune.norms.patching import patched
from alphatune.settings import TuneSettings
from alphatune.statistics.conditions import conditions_of
from alphatune.statistics.scores import Scores, concatenate, plain_scores, summarise
from alphatune.tuning.candidate import FitOn, score
from alphatune.tuning.fits import Fits
from alphatune.tuning.granularity import GRANULARITIES, units_of
from alphatune.tuning.objective import Objective, parse_guards
from alphatune.tuning.ordering import stratified_order
from alphatune.tuning.passes import Passes
from alphatune.tuning.search import best_on, search

SEEN = "contrast,gaussian-noise,defocus-blur"
UNSEEN = "brightness,jpeg,motion-blur,saturate"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="alphatune.models.cifar:resnet20")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="further settings of tune, as JSON")
    parser.add_argument("--images", type=int, help="how many to take of the data; all")
    parser.add_argument("--counts", default="1500,400,100,25", help="numbers of images to fit on")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tested", type=int, default=1000, help="images to score on under every shift")
    parser.add_argument("--seen", default=SEEN)
    parser.add_argument("--unseen", default=UNSEEN)
    parser.add_argument("--metric", default="top1")
    parser.add_argument("--repairs", default="plain,temperature,averages,affine," + ",".join(GRANULARITIES))
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    keep_freed_memory()
    settings = TuneSettings(
        model=args.model, checkpoint=args.checkpoint, data=args.data, limit=args.images, **args.settings
    )
    prepared = prepare(settings)
    predictor = predictor_of(settings, prepared)
    counts = [int(count) for count in args.counts.split(",")]
    lines = args.output.read_text().splitlines() if args.output.exists() else []
    known = {_key(json.loads(line)) for line in lines}
    kernel = resolve_kernel("auto", prepared.opened.device, worth_compiling=True)
    seen, unseen = parse_shifts(args.seen), parse_shifts(args.unseen)
    wanted = args.repairs.split(",")
    with use_kernel(kernel), patched(prepared.opened.module):
        for seed in map(int, args.seeds.split(",")):
            order = stratified_order(prepared.batches.targets, seed)
            # Neighbours in the order are alike: taken in turns, both parts have the same classes.
            fitted_on = order[: 2 * max(counts) : 2]
            others = order[~np.isin(order, fitted_on)]
            tested = make_conditions(
                prepared.batches.take(np.sort(others[: args.tested])), (*seen, *unseen), seed=seed
            )
            rest = prepared.batches.take(np.sort(others[args.tested :]))
            for count in counts:
                if {_key(_run(args, seed, count, name)) for name in wanted} <= known:
                    continue
                drawn = np.sort(fitted_on[:count])
                fitted = make_conditions(prepared.batches.take(drawn), seen, seed=seed)
                fits = _fits(predictor, fitted, args.metric, seed)
                passes = Passes(predictor, tested, 0.0, World(), Meter())
                clean = Passes(predictor, rest, 0.0, World(), Meter())
                for name, fit in _repairs(fits).items():
                    run = _run(args, seed, count, name)
                    if _key(run) in known or name not in wanted:
                        continue
                    started = time.perf_counter()
                    candidate = fit(np.arange(len(fitted)), name)
                    seconds = time.perf_counter() - started
                    scores = score(passes, np.arange(len(tested)), candidate)
                    more = score(clean, np.arange(len(rest)), candidate) if len(rest) else None
                    t = 1.0
                    if name == "temperature":
                        t = score(fits.passes, np.arange(len(fitted)), candidate).best()
                    run |= {
                        "numbers": fits.numbers(name)
                        if name in fits.units or name in ("affine", "averages")
                        else None,
                        "alpha": candidate.alpha if isinstance(candidate.alpha, float) else None,
                        "temperature": t,
                        "seconds": round(seconds, 1),
                        "conditions": _by_condition(scores.at(t), tested, more.at(t) if more else None),
                        "clean_images": len(others),
                        "seen": [shift.name for shift in seen],
                        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch "
                        f"{torch.__version__}, timm {timm.__version__}",
                    }
                    with args.output.open("a") as file:
                        file.write(json.dumps(run) + "\n")
                    print(
                        seed,
                        count,
                        name,
                        f"{seconds:.0f} s",
                        _mean(run, "clean"),
                        _mean(run, "seen"),
                        _mean(run, "unseen"),
                        flush=True,
                    )


def _fits(predictor: Any, data: Conditions, metric: Any, seed: int) -> Fits:
    """Fits of every repair on some conditions, one α by a search over all of their images."""
    passes = Passes(predictor, data, 0.0, World(), Meter())
    objective = Objective(metric, "mean", parse_guards((), data.names))
    found = search(passes, objective, tolerance=0.002, race_delta=0.0, seed=seed, full=True)
    inputs = predictor.prepare(next(iter(data)).inputs)
    units = {name: units_of(predictor.model, name, inputs) for name in GRANULARITIES}

    def choose(positions: np.ndarray) -> float:
        return best_on(found, positions, objective)

    return Fits(passes, objective, False, seed, None, choose, units)


def _repairs(fits: Fits) -> dict[str, FitOn]:
    names = ("plain", "temperature", "averages", "affine", *GRANULARITIES)
    return {name: fits.guarded(fits.named(name), one_number=name == "global") for name in names}  # type: ignore[arg-type]


def _by_condition(scores: Scores, data: Conditions, clean: Scores | None) -> dict[str, list[float]]:
    """Top-1 and loss under each condition, with further images under the first."""
    number = conditions_of(scores.ids)
    each = {name: plain_scores(scores.take(number == k)) for k, name in enumerate(data.names, 1)}
    if clean is not None:
        each["clean"] = concatenate([each["clean"], clean])
    return {
        name: [round(m.top1, 5), round(m.loss, 5)]
        for name, m in ((name, summarise(of)) for name, of in each.items())
    }


def _run(args: argparse.Namespace, seed: int, images: int, repair: str) -> dict[str, Any]:
    """What tells a run from all others."""
    return {
        "model": args.model,
        "seed": seed,
        "images": images,
        "metric": args.metric,
        "repair": repair,
    }


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("model", "seed", "images", "metric", "repair"))


def _mean(run: dict[str, Any], which: str) -> float:
    names = {
        "clean": ["clean"],
        "seen": run["seen"],
        "unseen": [name for name in run["conditions"] if name not in ("clean", *run["seen"])],
    }[which]
    return round(float(np.mean([run["conditions"][name][0] for name in names])), 4)


if __name__ == "__main__":
    main()
