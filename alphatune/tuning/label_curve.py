"""What each repair is worth by number of labelled images.

One half of the images is for testing only. Of the other, so many are drawn,
class by class, each under all conditions that are tuned on. The shifts are
split in two: every repair is fitted on the clean images with one part of them,
and once more with the other, and scored on all test images. So every shift is
once *seen* and once *unseen*, and both are means over all shifts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from alphatune.core.metrics import INFO, Metric
from alphatune.results.repairs import NAMES
from alphatune.results.shift import LabelCount, LabelCurve, Row
from alphatune.statistics.conditions import conditions_of, count_images, has_conditions, images_of
from alphatune.statistics.gain import paired_difference
from alphatune.statistics.scores import Scores, concatenate, summarise
from alphatune.tuning.candidate import FitOn, score
from alphatune.tuning.ordering import image_order, whole_images
from alphatune.tuning.out_of_fold import OutOfFold
from alphatune.tuning.passes import Passes

#: of a repair: scores under one condition each, after and before
Pairs = list[tuple[Scores, Scores]]


def label_curve(
    passes: Passes,
    halves: Sequence[NDArray[np.int64]],
    plain: OutOfFold,
    repairs: Mapping[str, FitOn],
    counts: Sequence[int],
    metric: Metric,
    *,
    calibrated: bool,
    seed: int,
) -> LabelCurve:
    """Fit every repair on each number of images, and score it on images, and shifts, that took no part.

    Args:
        counts: numbers of images; those that the first half does not have are left out.
        repairs: how each is fitted, by name.
        calibrated: whether all are compared with a temperature, which is fitted on the same examples.
    """
    ids = passes.data.ids
    fitted, tested = halves
    order = fitted[image_order(passes.data.targets[fitted], ids[fitted], seed)]
    rows = []
    for count in sorted({c for c in counts if c <= count_images(ids[fitted])}):
        drawn = np.sort(order[: _first_images(order, ids, count)])
        for name, fit in repairs.items():
            clean, seen, unseen = _pairs(passes, plain, fit, drawn, tested, f"{count}-{name}", calibrated)
            rows.append(
                LabelCount(
                    images=count,
                    repair=name,
                    clean=_row(clean, metric),
                    seen=_row(seen, metric) if seen else None,
                    unseen=_row(unseen, metric) if unseen else None,
                )
            )
    return LabelCurve(
        metric=metric,
        tested_on=count_images(ids[tested]),
        rows=tuple(rows),
        crossings=crossings(rows, metric),
    )


def _first_images(order: NDArray[np.int64], ids: NDArray[np.int64], count: int) -> int:
    """How many of the ordered examples so many images are."""
    if not has_conditions(ids):
        return count
    images = images_of(ids[order])
    starts = np.flatnonzero(np.r_[True, images[1:] != images[:-1]])
    return whole_images(order, ids, int(starts[count])) if count < len(starts) else len(order)


def _pairs(
    passes: Passes,
    plain: OutOfFold,
    fit: FitOn,
    drawn: NDArray[np.int64],
    tested: NDArray[np.int64],
    name: str,
    calibrated: bool,
) -> tuple[Pairs, Pairs, Pairs]:
    """After and before under each condition: clean, on shifts that were fitted on, on others."""
    condition = conditions_of(passes.data.ids)
    shifts = [int(k) for k in np.unique(condition) if k > 1]
    splits = [shifts[::2], shifts[1::2]] if len(shifts) > 1 else [shifts]
    clean: Pairs = []
    seen: Pairs = []
    unseen: Pairs = []
    for part, kept in enumerate(splits):
        positions = drawn[np.isin(condition[drawn], [0, 1, *kept])]
        candidate = fit(positions, f"{name}-{part}")
        scored = score(passes, tested, candidate)
        after, before = scored.scores, plain.everything.scores.take(tested)
        if calibrated:
            after = scored.at(score(passes, positions, candidate).best())
            before = plain.everything.take(tested).at(plain.everything.take(positions).best())
        for k in np.unique(condition[tested]):
            rows = condition[tested] == k
            pair = after.take(rows), before.take(rows)
            (clean if k < 2 else seen if k in kept else unseen).append(pair)
    return clean, seen, unseen


def _row(pairs: Pairs, metric: Metric) -> Row:
    """The mean over conditions, and the interval of its change."""
    if len({int(conditions_of(after.ids)[0]) for after, _ in pairs}) < len(pairs):  # clean, by both fits
        values = [summarise(after)[metric] for after, _ in pairs]
        ends = np.mean([paired_difference(after, before, metric) for after, before in pairs], axis=0)
        return Row(value=float(np.mean(values)), ci=(float(ends[0]), float(ends[1])))
    after, before = (concatenate(list(scores)) for scores in zip(*pairs, strict=True))
    return Row(value=summarise(after)[metric], ci=paired_difference(after, before, metric))


def crossings(rows: Sequence[LabelCount], metric: Metric) -> tuple[str, ...]:
    """Sentences: from how many images on one repair is better than another that was better with fewer."""
    said = []
    sign = INFO[metric].sign
    for place in ("clean", "seen", "unseen"):
        best: list[tuple[int, str]] = []
        for count in sorted({row.images for row in rows}):
            values = {
                row.repair: sign * value.value
                for row in rows
                if row.images == count and (value := getattr(row, place)) is not None
            }
            if values:
                best.append((count, max(values, key=lambda name: values[name])))
        for (fewer, one), (more, other) in pairwise(best):
            if one != other:
                where = "clean images" if place == "clean" else f"{place} shifts"
                said.append(
                    f"On {where} {NAMES.get(one, one)} is best with {fewer} labelled images, "
                    f"{NAMES.get(other, other)} with {more}."
                )
        if best and len({name for _, name in best}) == 1:
            where = "clean images" if place == "clean" else f"{place} shifts"
            said.append(f"On {where} {NAMES.get(best[0][1], best[0][1])} is best at every number of images.")
    return tuple(said)
