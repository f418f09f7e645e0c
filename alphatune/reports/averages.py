"""Moving averages that were measured before the sweep, in sentences."""

from __future__ import annotations

from alphatune.core.metrics import INFO
from alphatune.results.averages import Recalibration
from alphatune.results.data import MeasuredData
from alphatune.results.tune import Tuned


def averages_sentences(document: Tuned) -> list[str]:
    """A line on each of the two, for people; none where nothing was measured."""
    lines = []
    if calibration := document.calibration:
        kinds = ", ".join(f"{count} {kind}" for kind, count in calibration.kinds.items())
        lines.append(f"Calibrated: moving averages of {kinds} measured on {_of(calibration.data)}.")
    if recalibration := document.recalibration:
        how: str = recalibration.order
        if recalibration.augmentation != "none":
            how += f", augmented as for training ({recalibration.augmentation})"
        lines.append(
            f"Recalibrated: moving averages of {recalibration.layers} layers measured anew on "
            f"{_of(recalibration.data)} ({how}). {_worth(recalibration)}"
        )
    return lines


def _of(data: MeasuredData) -> str:
    return f"{data.n} examples of {data.source}" + (f" ({data.split})" if data.split else "")


def _worth(recalibration: Recalibration) -> str:
    before, after, gain = recalibration.before, recalibration.after, recalibration.gain
    if before is None:
        return "The stored averages could not be evaluated."
    text = f"At α = 0 top-1 {before.top1:.4f} → {after.top1:.4f}, loss {before.loss:.4f} → {after.loss:.4f}"
    if gain is None:
        return text + "."
    low, high = gain.ci
    return (
        f"{text}; gain in {INFO[gain.metric].name} {gain.delta:+.4f} ({100 * gain.confidence:.0f} % interval "
        f"{low:+.4f} to {high:+.4f}, p = {gain.p:.2g}). What follows is relative to the recalibrated model."
    )
