"""Small pictures of the examples whose prediction flipped, for the report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alphatune.data.loading import Batches
from alphatune.reports.scores import Thumbnail, flipped_rows
from alphatune.statistics.scores import Scores

#: the longer side of a thumbnail, in pixels
SIDE = 96


def make_thumbnails(batches: Batches, before: Scores, after: Scores, most: int) -> tuple[Thumbnail, ...]:
    """Of the images as the model saw them, resized and cropped: at most so many each way.

    None of an uncached stream: it would have to be read again from its beginning.
    """
    rows = np.sort(flipped_rows(before, after, most))
    if not len(rows) or (batches.examples.load is None and batches.cache == "none"):
        return ()
    images = (image for batch in batches.take(rows).host_batches() for image in batch.inputs)
    load = batches.examples.load
    names = [load(int(i))[1] if load else f"example {i}" for i in batches.examples.indices[rows]]
    return tuple(
        Thumbnail(int(row), _short(name, batches.examples.root), _small(image.numpy()))
        for row, name, image in zip(rows, names, images, strict=True)
    )


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(C, H, W) of any size and one or three channels as (h, w, 3)."""
    pixels = np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def _short(name: str, root: str) -> str:
    """The name within the data, which says more than where that lies on this machine."""
    return name.removeprefix(root).lstrip("/")
