"""Small pictures of the examples whose prediction flipped, for the report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alphatune.data.conditions import Conditions
from alphatune.data.examples import Examples
from alphatune.data.loading import Batches
from alphatune.reports.scores import ShiftExample, Thumbnail, flipped_rows
from alphatune.statistics.conditions import conditions_of
from alphatune.statistics.scores import Scores

#: the longer side of a thumbnail, in pixels
SIDE = 96
#: images that show what a shift does
EXAMPLES = 4


def make_thumbnails(
    batches: Batches | Conditions, before: Scores, after: Scores, most: int
) -> tuple[Thumbnail, ...]:
    """Of the images as the model saw them, resized and cropped: at most so many each way.

    None of an uncached stream: it would have to be read again from its beginning.
    """
    rows = np.sort(flipped_rows(before, after, most))
    if not len(rows) or (batches.examples.load is None and batches.cache == "none"):
        return ()
    images = (image for batch in batches.take(rows).host_batches() for image in batch.inputs)
    return tuple(
        Thumbnail(int(row), name, _small(image.numpy()))
        for row, name, image in zip(rows, _names(batches, rows), images, strict=True)
    )


def make_shift_examples(conditions: Conditions) -> tuple[ShiftExample, ...]:
    """The same few clean images under each shift; of a data set of the user's own its own."""
    if conditions.examples.load is None and conditions.cache == "none":
        return ()
    number = conditions_of(conditions.ids)
    found = []
    for k, name in enumerate(conditions.names, 1):
        positions = np.flatnonzero(number == k)
        positions = positions[np.unique(np.linspace(0, len(positions) - 1, EXAMPLES).astype(np.int64))]
        images = (image for batch in conditions.take(positions).host_batches() for image in batch.inputs)
        for severity, image in zip(conditions.severities[positions], images, strict=True):
            found.append(ShiftExample(name, int(severity), _small(image.numpy())))
    return tuple(found)


def _names(data: Batches | Conditions, rows: NDArray[np.int64]) -> list[str]:
    """The images' names within their data, and their condition if they have one."""
    if isinstance(data, Batches):
        return [_name(data.examples, int(index)) for index in data.examples.indices[rows]]
    return [
        f"{_name(examples, int(examples.indices[place]))} ({data.names[k - 1]})"
        for k, place in zip(conditions_of(data.ids)[rows], data.places[rows], strict=True)
        for examples in [data.batches_of(int(k)).examples]
    ]


def _name(examples: Examples, index: int) -> str:
    return _short(examples.load(index)[1], examples.root) if examples.load else f"example {index}"


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(C, H, W) of any size and one or three channels as (h, w, 3)."""
    pixels = np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def _short(name: str, root: str) -> str:
    """The name within the data, which says more than where that lies on this machine."""
    return name.removeprefix(root).lstrip("/")
