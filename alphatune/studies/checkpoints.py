"""Checkpoints over α, for the figures of section 3.1.

A TOML file names them, each with the settings that ``tune`` takes:

    [[network]]
    name = "MobileNetV2"
    model = "torchvision:mobilenet_v2"
    checkpoint = "mobilenet_v2.pth"
    data = "imagenet/val"
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphatune.core.errors import ConfigurationError, InputError, one_line
from alphatune.core.hashing import sha256
from alphatune.core.metrics import Metric
from alphatune.core.progress import Meter
from alphatune.core.suggestions import did_you_mean
from alphatune.core.toml import tomllib
from alphatune.jobs.opening import predictor_of, prepare
from alphatune.results.study import NetworkCurve
from alphatune.results.values import Open
from alphatune.settings import TuneSettings
from alphatune.settings.option import declared
from alphatune.settings.saved import decisive
from alphatune.statistics.scores import summarise
from alphatune.studies.scale import ALPHAS
from alphatune.tuning.selection import select
from alphatune.tuning.tune import tune

#: 0.005 besides those that networks trained here are measured at: large networks are best there
CHECKPOINT_ALPHAS = (0.0, 0.005, *ALPHAS[1:])
#: what α is chosen by, each on its own
METRICS: tuple[Metric, ...] = ("top1", "loss")


@dataclass(frozen=True)
class Checkpoint:
    """A network of the file, by the name that figures give it."""

    name: str
    settings: TuneSettings

    def identity(self) -> Open:
        """What its curve depends on, as JSON has it: the settings that decide a result, and the weights."""
        values: Open = json.loads(json.dumps(decisive(self.settings), default=str))
        file = self.settings.checkpoint
        if file is not None and Path(file).is_file():
            values["checkpoint_sha256"] = sha256(file)
        return values


def read_checkpoints(file: str | Path) -> tuple[Checkpoint, ...]:
    """The networks of a TOML file; relative paths are from the folder that the command runs in.

    Raises:
        InputError: it cannot be read.
        ConfigurationError: a network without a name, or with a setting that ``tune`` does not have.
    """
    try:
        content = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {one_line(error)}") from None
    networks = content.get("network", [])
    if not networks or not isinstance(networks, list):
        raise ConfigurationError(f"{file} names no network", "add a table [[network]] for each")
    return tuple(_checkpoint(dict(values), file) for values in networks)


def measure_checkpoint(checkpoint: Checkpoint, meter: Meter | None = None) -> NetworkCurve:
    """Sweep a network over α on all of its images.

    Raises:
        AlphatuneError: model or data cannot be opened, or do not fit each other.
    """
    began = time.monotonic()
    prepared = prepare(checkpoint.settings, meter)
    found = tune(
        prepared.opened.module,
        prepared.batches,
        alphas=CHECKPOINT_ALPHAS,
        metric="loss",
        predictor=predictor_of(checkpoint.settings, prepared),
        progress=meter,
    )
    decisions = [select(found.sweep, metric) for metric in METRICS]
    means = [summarise(scores) for scores in found.sweep.scores]
    return NetworkCurve(
        name=checkpoint.name,
        images=len(prepared.batches),
        alphas=found.sweep.alphas,
        top1=tuple(each.top1 for each in means),
        loss=tuple(each.loss for each in means),
        top1_change=tuple(point.ci["top1"] for point in found.curve),
        loss_change=tuple(point.ci["loss"] for point in found.curve),
        best={metric: each.candidate for metric, each in zip(METRICS, decisions, strict=True)},
        gains=tuple(each.gain for each in decisions if each.gain is not None),
        seconds=round(time.monotonic() - began, 1),
    )


def _checkpoint(values: dict[str, Any], file: str | Path) -> Checkpoint:
    name = values.pop("name", "")
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"a network of {file} has no name", 'add name = "..." to its table')
    known = [each.name for each in declared(TuneSettings)]
    for key in values:
        if key not in known:
            raise ConfigurationError(
                f"{file} gives {name} {key!r}, which is no setting of tune", did_you_mean(key, known)
            )
    for key in ("model", "data"):
        if key not in values:
            raise ConfigurationError(f"{file} gives {name} no {key}", f'add {key} = "..." to its table')
    listed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Checkpoint(name, TuneSettings(**listed))
