"""Examples that are one image under several conditions, and means over conditions.

An example's id holds both: the condition's number, from 1, above bit 40, and the
image's below it. Ids without a condition are plain examples, each of its own image.

What conditions share is the image, so it is images that are drawn, and differences
are paired image by image. ``by_image`` makes one number an image whose mean is the
mean over the conditions, each of equal weight:

    v_i = I · Σ_{e of image i} d_e / (K · n_{k(e)}),    mean_i v_i = mean_k mean_{e of k} d_e

with K conditions of n_k examples, and I images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 40
_MASK = (1 << BITS) - 1

Ids = NDArray[np.int64]


def example_ids(condition: int, images: Ids) -> Ids:
    """The ids of some images under a condition, which is counted from 1."""
    return images | (np.int64(condition) << BITS)


def conditions_of(ids: Ids) -> Ids:
    """The condition of each example (n,); 0 for plain examples."""
    return ids >> BITS


def images_of(ids: Ids) -> Ids:
    """The image of each example (n,)."""
    return ids & _MASK


def has_conditions(ids: Ids) -> bool:
    """Whether these are images under conditions, and not plain examples."""
    return len(ids) > 0 and int(ids.max()) > _MASK


def mean_over_conditions(values: NDArray[Any], ids: Ids) -> Any:
    """Mean over the last axis, each condition of equal weight: (..., n) to (...)."""
    if not has_conditions(ids):
        return values.mean(axis=-1, dtype=np.float64)
    number = conditions_of(ids)
    return np.mean(
        [values[..., number == k].mean(axis=-1, dtype=np.float64) for k in np.unique(number)], axis=0
    )


def by_image(values: NDArray[Any], ids: Ids, *, only: int | None = None) -> NDArray[Any]:
    """One number an image whose mean is that over the conditions: (..., n) to (..., images), images in order.

    Plain examples come back as they are.

    Args:
        only: one condition, whose mean it is instead.
    """
    if not has_conditions(ids):
        return values
    number = conditions_of(ids)
    images, place = np.unique(images_of(ids), return_inverse=True)
    kept = np.unique(number) if only is None else np.array([only])
    result = np.zeros((*values.shape[:-1], len(images)))
    for k in kept:  # an image comes once in a condition
        rows = number == k
        result[..., place[rows]] += values[..., rows] * (len(images) / (len(kept) * rows.sum()))
    return result


def count_images(ids: Ids) -> int:
    """How many images the examples are of."""
    return len(np.unique(images_of(ids))) if has_conditions(ids) else len(ids)


def first_of_image(ids: Ids) -> NDArray[np.int64]:
    """Row of one example of each image, images in the order of ``by_image``."""
    rows: NDArray[np.int64] = np.unique(images_of(ids), return_index=True)[1]
    return rows
