"""Moving averages that were measured before the sweep, as they appear in a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is shown of a result does not wait for torch
    from alphatune.evaluation import Metrics
    from alphatune.models.calibration import Calibration
    from alphatune.tuning.gain import Gain

_OF_GAIN = ("metric", "examples", "delta", "ci", "p", "method", "confidence", "significant")


def calibration_summary(
    calibration: Calibration, kinds: Sequence[str], data: dict[str, Any]
) -> dict[str, Any]:
    """Layers that kept no averages and now have some; ``kinds`` has the kind of each."""
    return {
        "data": data,
        "layers": len(calibration.layers),
        "kinds": dict(Counter(kinds)),
        "unreached": list(calibration.unreached),
    }


def recalibration_summary(
    calibration: Calibration,
    data: dict[str, Any],
    augmentation: str,
    before: Metrics | None,
    after: Metrics,
    gain: Gain | None,
) -> dict[str, Any]:
    """Averages that were replaced, and what that is worth at α = 0, before any example weighting."""
    paired = None
    if gain is not None:
        values = asdict(gain) | {"ci": list(gain.ci)}
        paired = {name: values[name] for name in _OF_GAIN}
    return {
        "data": data,
        "order": calibration.order,
        "augmentation": augmentation,
        "layers": len(calibration.layers),
        "unreached": list(calibration.unreached),
        "before": None if before is None else asdict(before),
        "after": asdict(after),
        "gain": paired,
    }


def averages_sentences(document: dict[str, Any]) -> list[str]:
    """A line on each of the two, for people; none where nothing was measured."""
    lines = []
    if calibration := document["calibration"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in calibration["kinds"].items())
        lines.append(f"Calibrated: moving averages of {kinds} measured on {_of(calibration['data'])}.")
    if recalibration := document["recalibration"]:
        how = recalibration["order"]
        if recalibration["augmentation"] != "none":
            how += f", augmented as for training ({recalibration['augmentation']})"
        lines.append(
            f"Recalibrated: moving averages of {recalibration['layers']} layers measured anew on "
            f"{_of(recalibration['data'])} ({how}). {_worth(recalibration)}"
        )
    return lines


def _of(data: dict[str, Any]) -> str:
    return f"{data['n']} examples of {data['source']}" + (f" ({data['split']})" if data["split"] else "")


def _worth(recalibration: dict[str, Any]) -> str:
    before, after, gain = recalibration["before"], recalibration["after"], recalibration["gain"]
    if before is None:
        return "The stored averages could not be evaluated."
    text = f"At α = 0 top-1 {before['top1']:.4f} → {after['top1']:.4f}, loss {before['loss']:.4f} → {after['loss']:.4f}"
    if gain is None:
        return text + "."
    low, high = gain["ci"]
    return (
        f"{text}; gain in {gain['metric']} {gain['delta']:+.4f} ({100 * gain['confidence']:.0f} % interval "
        f"{low:+.4f} to {high:+.4f}, p = {gain['p']:.2g}). What follows is relative to the recalibrated model."
    )
