"""The order in which examples are drawn: at random, class by class, and whole images at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alphatune.statistics.conditions import conditions_of, first_of_image, has_conditions, images_of

Positions = NDArray[np.int64]


def stratified_order(targets: NDArray[np.int64], seed: int) -> Positions:
    """All positions in random order, every class spread evenly: each beginning is a stratified sample."""
    rng = np.random.default_rng(seed)
    key = np.empty(len(targets))
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        key[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(key, kind="stable")


def image_order(targets: NDArray[np.int64], ids: NDArray[np.int64], seed: int) -> Positions:
    """All positions, images in stratified order, with the examples of an image next to each other.

    Images of other data sets than the first are strata of their own.
    """
    if not has_conditions(ids):
        return stratified_order(targets, seed)
    rows = first_of_image(ids)
    # An image's first condition tells which data set it is of.
    strata = targets[rows] * (conditions_of(ids).max() + 1) + conditions_of(ids)[rows]
    rank = np.empty(len(rows), np.int64)
    rank[stratified_order(strata, seed)] = np.arange(len(rows))
    place = np.unique(images_of(ids), return_inverse=True)[1]
    return np.argsort(rank[place], kind="stable")


def whole_images(order: Positions, ids: NDArray[np.int64], stop: int) -> int:
    """Where to cut an order, at ``stop`` or soon after it, so that no image is in both parts."""
    if has_conditions(ids):
        images = images_of(ids[order])
        while 0 < stop < len(order) and images[stop] == images[stop - 1]:
            stop += 1
    return stop


def halves_of(targets: NDArray[np.int64], ids: NDArray[np.int64], seed: int) -> tuple[Positions, Positions]:
    """Two halves of the positions, class by class and image by image, each in increasing order."""
    order = image_order(targets, ids, seed)
    if not has_conditions(ids):
        return np.sort(order[::2]), np.sort(order[1::2])
    images = images_of(ids[order])
    number = np.cumsum(np.r_[0, images[1:] != images[:-1]])
    return np.sort(order[number % 2 == 0]), np.sort(order[number % 2 == 1])
