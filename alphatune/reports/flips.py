"""Images whose prediction became right or wrong, as a page shows them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphatune.core.errors import InputError
from alphatune.reports.before_after import Comparison
from alphatune.reports.scores import StoredScores

#: moves that a page lists
MOST_MOVES = 10
#: images of fewer pixels a side are enlarged as squares, and stored without loss
TINY = 64


@dataclass(frozen=True)
class Move:
    """How many examples of a class were predicted as this before and as that after."""

    truth: str
    before: str
    after: str
    count: int
    effect: str


@dataclass(frozen=True)
class Picture:
    """One image and what the model made of it; confidences are those of the predicted classes."""

    name: str
    source: str  # data: URI
    width: int
    height: int
    truth: str
    before: str
    after: str
    before_confidence: float
    after_confidence: float
    became_right: bool

    @property
    def tiny(self) -> bool:
        return max(self.width, self.height) < TINY

    @property
    def text(self) -> str:
        """In place of the image."""
        return f"{self.name}: {self.truth}, predicted {self.before} before and {self.after} after"


def frequent_moves(stored: StoredScores, compared: Comparison) -> tuple[Move, ...]:
    """The moves that most examples made, of those that more than one made."""
    before, after = compared.before, compared.after
    rows = np.flatnonzero(before.predicted != after.predicted)
    moves = np.stack([before.targets[rows], before.predicted[rows], after.predicted[rows]], axis=1)
    kinds, counts = np.unique(moves, axis=0, return_counts=True)
    found = []
    for index in np.argsort(-counts, kind="stable")[:MOST_MOVES]:
        truth, was, now = (int(label) for label in kinds[index])
        effect = "became right" if now == truth else "became wrong" if was == truth else "still wrong"
        if counts[index] > 1:
            name = stored.class_name
            found.append(Move(name(truth), name(was), name(now), int(counts[index]), effect))
    return tuple(found)


def pictures(stored: StoredScores, compared: Comparison) -> tuple[Picture, ...]:
    """The thumbnails whose prediction flipped, those whose loss changed most first.

    Raises:
        InputError: a thumbnail of an example that is not there.
    """
    before, after = compared.before, compared.after
    rows = np.array([t.row for t in stored.thumbnails], dtype=np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(before):
        raise InputError("damaged scores.npz: a thumbnail belongs to no example")
    change = np.abs(after.loss[rows].astype(np.float64) - before.loss[rows])
    found = []
    for index in np.argsort(-change, kind="stable"):
        thumbnail, row = stored.thumbnails[index], int(rows[index])
        if before.top1[row] == after.top1[row]:
            continue
        height, width, _ = thumbnail.pixels.shape
        found.append(
            Picture(
                thumbnail.name,
                data_uri(thumbnail.pixels),
                width,
                height,
                stored.class_name(int(before.targets[row])),
                stored.class_name(int(before.predicted[row])),
                stored.class_name(int(after.predicted[row])),
                float(before.confidence[row]),
                float(after.confidence[row]),
                bool(after.top1[row]),
            )
        )
    return tuple(found)


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image (H, W, 3) within a page."""
    from PIL import Image

    content, kind = io.BytesIO(), "png" if max(pixels.shape[:2]) < TINY else "jpeg"
    Image.fromarray(pixels).save(content, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
