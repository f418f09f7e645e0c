"""Repeat a figure or table of the paper: train what is missing, and say what all of it shows.

Finished runs are lines of ``runs.jsonl`` in the output folder, which studies
share: what has been trained once is not trained again, by whichever study.
Measured checkpoints are lines of ``networks.jsonl``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from alphatune.core.errors import ConfigurationError, ResourceError
from alphatune.core.folder_lock import locked
from alphatune.core.progress import Meter, ShowProgress, as_meter
from alphatune.core.suggestions import did_you_mean
from alphatune.core.version import VERSION
from alphatune.jobs.opening import resolve_device
from alphatune.models.output import disk_errors
from alphatune.reports.study import write_study
from alphatune.results.study import NetworkCurve, NetworkRun, StudyDocument, StudyRun
from alphatune.studies.catalogue import STUDIES
from alphatune.studies.checkpoints import measure_checkpoint, read_checkpoints
from alphatune.studies.experiment import Experiment, Study
from alphatune.studies.images import open_images
from alphatune.studies.output_range import output_ranges
from alphatune.studies.runs import (
    append_run,
    keep_whole_lines,
    key_of,
    of_experiment,
    read_networks,
    read_runs,
)
from alphatune.studies.scale import ALPHAS, SCALES, ScaleName
from alphatune.studies.summary import check_claims, summarise_variants
from alphatune.studies.training import Trainer

OUTPUT_RANGE = "output-range"
NAMES = (*STUDIES, OUTPUT_RANGE)
RUNS, NETWORKS = "runs.jsonl", "networks.jsonl"


def run_study(
    name: str,
    scale: ScaleName = "smoke",
    *,
    data: str | None = None,
    data_root: str | None = None,
    checkpoints: str | None = None,
    seeds: int | None = None,
    processes: int = 1,
    device: str = "auto",
    output: str = "alphatune-study",
    say: Callable[[str], None] | None = None,
    progress: ShowProgress = None,
) -> StudyDocument:
    """Train the networks of a study that are not trained yet, measure them over α, and write what they show.

    Args:
        name: one of ``NAMES``.
        scale: smoke takes seconds, cpu hours of two cores, paper days of a GPU.
        data, data_root: images in place of the scale's own, as ``train`` takes them.
        checkpoints: for ``inference-weight``, a TOML file of trained networks (studies/checkpoints.py).
        seeds: how many, in place of the scale's number.
        processes: networks trained at the same time, on a CPU.
        device: as for ``run_train``.
        output: the folder of runs, tables and figures.
        say: called with a line at each finished run.
        progress: shows how far it is.

    Raises:
        AlphatuneError: in one of its kinds; finished runs are kept.
    """
    if name not in NAMES:
        raise ConfigurationError(f"there is no study {name!r}", did_you_mean(name, NAMES) or ", ".join(NAMES))
    if scale not in SCALES:
        raise ConfigurationError(f"there is no scale {scale!r}", f"one of: {', '.join(SCALES)}")
    if seeds is not None and seeds < 1:
        raise ConfigurationError(f"`seeds` must be at least 1, got {seeds}")
    if checkpoints is not None and name != "inference-weight":
        raise ConfigurationError(f"`checkpoints` is for inference-weight, not for {name}")
    folder, meter = Path(output), as_meter(progress)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"running a study in {folder}", "wait for it, or give another `output`"):
        if name == OUTPUT_RANGE:
            return _output_range(scale, folder)
        study, chosen = STUDIES[name], range(seeds or SCALES[scale].seeds)
        if checkpoints is not None:
            return _over_checkpoints(name, scale, study, checkpoints, folder, meter)
        keep_whole_lines(folder / RUNS)
        runs = read_runs(folder / RUNS)
        missing = [
            (experiment, seed)
            for seed in chosen  # of all variants first, so that differences are paired early
            for experiment in study.variants.values()
            if key_of(scale, experiment.to_dict(), seed) not in runs
        ]
        meter.begin(f"training {len(missing)} networks", len(missing), "networks")
        for run in _trained(missing, scale, data, data_root, device, processes):
            append_run(folder / RUNS, run)
            runs[key_of(run.scale, run.experiment, run.seed)] = run
            meter.add(1)
            if say:
                say(_line(study, run))
        used = [
            run
            for experiment in study.variants.values()
            for run in of_experiment(runs, scale, experiment.to_dict(), chosen)
        ]
        document = _document(
            name,
            scale,
            study,
            variants=summarise_variants(study, runs, scale, chosen),
            claims=check_claims(study, runs, scale, chosen),
            runs=len(used),
            seconds=sum(run.seconds for run in used),
            machines=tuple(dict.fromkeys(run.machine for run in used)),
        )
        return write_study(folder, document)


def _document(name: str, scale: ScaleName, study: Study, **found: Any) -> StudyDocument:
    size = SCALES[scale]
    images = "all" if size.images is None else f"{size.images}"
    return StudyDocument(
        alphatune=VERSION,
        name=name,
        scale=scale,
        shows=study.shows,
        question=study.question,
        unlike_paper=study.unlike_paper,
        setting=(
            f"{size.dataset} at {size.size}×{size.size}, {images} training images, {size.epochs} epochs, residual "
            f"network of {'-'.join(map(str, size.channels))} channels and {'-'.join(map(str, size.depths))} blocks"
        ),
        alphas=ALPHAS,
        **found,
    )


def _output_range(scale: ScaleName, folder: Path) -> StudyDocument:
    study = Study(
        shows="section 3.1, Eq. 2 and Fig. 6",
        question="How far can a BatchNorm output be from 0, in training and at inference?",
        variants={},
    )
    return write_study(folder, _document(OUTPUT_RANGE, scale, study, ranges=output_ranges()))


def _over_checkpoints(
    name: str, scale: ScaleName, study: Study, file: str, folder: Path, meter: Meter
) -> StudyDocument:
    keep_whole_lines(folder / NETWORKS)
    measured, networks = read_networks(folder / NETWORKS), list[NetworkCurve]()
    for checkpoint in read_checkpoints(file):
        settings = checkpoint.identity()
        run = next((each for each in measured if each.settings == settings), None)
        if run is None:
            run = NetworkRun(settings=settings, curve=measure_checkpoint(checkpoint, meter))
            append_run(folder / NETWORKS, run)
        networks.append(structs.replace(run.curve, name=checkpoint.name))
    seconds = sum(each.seconds for each in networks)
    return write_study(folder, _document(name, scale, study, networks=tuple(networks), seconds=seconds))


def _trained(
    missing: list[tuple[Experiment, int]],
    scale: ScaleName,
    data: str | None,
    data_root: str | None,
    device: str,
    processes: int,
) -> Iterator[StudyRun]:
    """Runs as they are finished."""
    if not missing:
        return
    opened = (scale, data, data_root, device)
    if processes < 2 or resolve_device(device).type != "cpu":
        trainer = _trainer(*opened)
        yield from (trainer.run(experiment, seed) for experiment, seed in missing)
        return
    threads = max(1, torch.get_num_threads() // processes)
    # Not forked: a copy of a process with threads may hang.
    with ProcessPoolExecutor(processes, get_context("spawn"), _start, (*opened, threads)) as pool:
        waiting = [pool.submit(_run, experiment, seed) for experiment, seed in missing]
        try:
            yield from (done.result() for done in as_completed(waiting))
        except BrokenProcessPool:
            raise ResourceError(
                "a process that trained a network was killed", "with less memory, use fewer `processes`"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():  # after an interrupt nobody waits for what they train
                child.terminate()


def _trainer(scale: ScaleName, data: str | None, data_root: str | None, device: str) -> Trainer:
    where = resolve_device(device)
    return Trainer(scale, open_images(SCALES[scale], data, data_root, where), where)


#: what a process of the pool trains with
_own: list[Trainer] = []


def _start(scale: ScaleName, data: str | None, data_root: str | None, device: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process has it, too, and ends this one
    torch.set_num_threads(threads)
    _own.append(_trainer(scale, data, data_root, device))


def _run(experiment: Experiment, seed: int) -> StudyRun:
    return _own[0].run(experiment, seed)


def _line(study: Study, run: StudyRun) -> str:
    name = next(name for name, each in study.variants.items() if each.to_dict() == run.experiment)
    found = "diverged" if run.diverged else f"top-1 {100 * run.reporting.top1[0]:.1f} at α = 0"
    return f"{name}, seed {run.seed}: {found}, {run.seconds:.0f} s"
