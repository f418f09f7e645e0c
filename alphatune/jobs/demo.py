"""The demo: train a small network, shift its validation images, tune α on them.

    images/train, images/validation   class folders of PNG, as scikit-learn ships them
    shifted                           the validation images as another scanner might see them
    model                             what ``alphatune train`` wrote
    tuned                             what ``alphatune tune`` wrote
    demo.json                         the result

Each step is the job of the command of the same name, on the files that lie there.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from alphatune.core.errors import ConfigurationError, ResourceError
from alphatune.core.progress import ShowProgress
from alphatune.core.version import VERSION
from alphatune.data.digits import Pixels, Scanner, read_digits, rescan, write_class_folders
from alphatune.data.stratification import hold_out, partition
from alphatune.jobs.evaluate import run_evaluate
from alphatune.jobs.opening import resolve_device
from alphatune.jobs.train import run_train
from alphatune.jobs.tune import run_tune
from alphatune.models.output import check_output
from alphatune.results.demo import BeforeAfter, DemoDocument, DemoImages, Shift
from alphatune.results.document import SCHEMA
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.serialisation import to_json
from alphatune.results.stored import command_of
from alphatune.settings import EvaluateSettings, TrainSettings, TuneSettings

RESULT = "demo.json"
#: chosen to show an effect: over ten seeds the network loses 3 to 15 points of top-1, and α wins 2 to 9 back
SHIFT = Scanner(contrast=0.9, background=0.06, blur=0.3, noise=0.03)
VALIDATION = 0.4  # enough examples to tell a gain of two points from luck
ALPHAS = "0,0.01,0.02,0.05,0.1,0.15,0.2,0.3,0.4,0.5"  # wider than auto, which ends where a shift begins


def run_demo(
    output: str,
    *,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
    progress: ShowProgress = None,
) -> DemoDocument:
    """Run the demo in a new folder; it is removed again if anything goes wrong.

    Args:
        output: the folder.
        seed: of the split, the weights, the batches, the noise, the folds and the bootstrap.
        device: as for ``run_train``.
        overwrite: replace an earlier demo, and only a demo.
        say: called with a line at each step.
        progress: shows how far each step is, as for ``run_tune``.

    Returns:
        What demo.json holds.

    Raises:
        ConfigurationError: scikit-learn is missing, the folder exists, or there is no such device.
        ResourceError: the disk refused.
    """
    if seed < 0:
        raise ConfigurationError(f"`seed` must be at least 0, got {seed}")
    folder = Path(output)
    _check_folder(folder, overwrite)
    resolve_device(device)
    images, targets = read_digits()
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        with _one_thread():
            return _run(folder, images, targets, seed, device, say or (lambda _text: None), progress)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ResourceError(f"cannot write {folder}: {error}", "is the disk full or read-only?") from None
    except BaseException:  # Ctrl-C, too
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _run(
    folder: Path,
    images: Pixels,
    targets: Any,
    seed: int,
    device: str,
    say: Callable[[str], None],
    progress: ShowProgress,
) -> DemoDocument:
    mark = {"schema": SCHEMA, "command": "demo", "alphatune": VERSION, "seed": seed}
    (folder / RESULT).write_text(json.dumps(mark), encoding="utf-8")  # ours, should the power fail
    kept, held_out = partition(targets, hold_out(VALIDATION), seed)
    say(f"writing {len(kept)} images to train on, {len(held_out)} to validate, and these shifted")
    shifted = rescan(images[held_out], SHIFT, seed)
    write_class_folders(folder / "images" / "train", images[kept], targets[kept])
    write_class_folders(folder / "images" / "validation", images[held_out], targets[held_out])
    write_class_folders(folder / "shifted", shifted, targets[held_out])

    say("training a network of three convolutions with Ghost BatchNorm, 20 epochs")
    scale = images[kept] / 255
    training: Any = run_train(
        TrainSettings(
            model="alphatune.models.digits:convnet",
            data=str(folder / "images"),
            input_size="1,8,8",
            crop_pct=1.0,
            mean=f"{scale.mean():.4f}",
            std=f"{scale.std():.4f}",
            augment="crop",  # a mirrored digit is another sign
            cache="device",
            norm="ghost",
            ghost_size=16,
            epochs=20,
            batch_size=64,
            eval_every=20,
            workers="0",  # starting processes would take longer than the images do
            device=device,
            seed=seed,
            output=str(folder / "model"),
        ),
        progress,
    )
    say("sweeping α on the shifted validation images")
    tuning: Any = run_tune(
        TuneSettings(
            model=str(folder / "model"),
            data=str(folder / "shifted"),
            alphas=ALPHAS,
            workers="0",
            device=device,
            seed=seed,
            output=str(folder / "tuned"),
        ),
        progress,
    )
    say("evaluating both models on the validation images that were not shifted")
    unshifted = {
        name: run_evaluate(
            EvaluateSettings(
                model=str(folder / model),
                data=str(folder / "images"),
                split="validation",
                workers="0",
                device=device,
            ),
            progress,
        )
        for name, model in (("baseline", "model"), ("chosen", "tuned"))
    }
    document = DemoDocument(
        alphatune=VERSION,
        seed=seed,
        images=DemoImages(train=len(kept), validation=len(held_out)),
        shift=Shift(**asdict(SHIFT)),
        unshifted=BeforeAfter(
            **{
                name: found.metrics
                for name, found in unshifted.items()
                if isinstance(found, EvaluateDocument)
            }
        ),
        shifted=BeforeAfter(baseline=tuning.baseline, chosen=tuning.chosen.metrics),
        train=training,
        tune=tuning,
        next=tuple(_next(folder)),
    )
    (folder / RESULT).write_text(to_json(document) + "\n", encoding="utf-8")
    return document


def _next(folder: Path) -> list[str]:
    """Commands that go on from here."""
    model, tuned, without = (str(folder / name) for name in ("model", "tuned", "tuned-unshifted"))
    images, shifted = str(folder / "images"), str(folder / "shifted")
    return [
        shlex.join(["alphatune", *command])
        for command in (
            ("evaluate", tuned, "--data", shifted),
            ("evaluate", tuned, "--data", images, "--split", "validation"),
            ("tune", model, "--data", images, "--split", "validation", "--output", without),
        )
    ]


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse an output that exists, unless it is a demo that may be replaced."""
    if not overwrite or not (folder.exists() or folder.is_symlink()):
        check_output(folder, overwrite=False)
    elif folder.is_symlink() or not _is_demo(folder):
        raise ConfigurationError(f"{folder} was not written by alphatune demo, so it is not overwritten")


def _is_demo(folder: Path) -> bool:
    return command_of(folder / RESULT) == "demo"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Images of 64 pixels: several threads would spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
