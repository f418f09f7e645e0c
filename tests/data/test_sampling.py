"""Batches as a function of seed and epoch; the samplers of the paper's section 4.4."""

from __future__ import annotations

import numpy as np
import pytest

from alphatune.core.errors import ConfigurationError
from alphatune.data.sampling import Sampling, epoch_batches, steps_per_epoch

TARGETS = np.repeat(np.arange(10), 13)


def test_an_epoch_draws_no_example_twice() -> None:
    batches = epoch_batches(TARGETS, Sampling(16), epoch=0)
    assert batches.shape == (130 // 16, 16)
    assert len(np.unique(batches)) == batches.size


def test_batches_depend_on_seed_and_epoch_only() -> None:
    first = epoch_batches(TARGETS, Sampling(16, seed=1), epoch=3)
    assert np.array_equal(first, epoch_batches(TARGETS, Sampling(16, seed=1), epoch=3))
    assert not np.array_equal(first, epoch_batches(TARGETS, Sampling(16, seed=1), epoch=4))
    assert not np.array_equal(first, epoch_batches(TARGETS, Sampling(16, seed=2), epoch=3))


@pytest.mark.parametrize("order", ["shuffled", "blocks"])
def test_batches_of_few_classes(order: str) -> None:
    sampling = Sampling(32, classes_per_batch=4, batch_order=order)
    for epoch in range(3):
        for batch in epoch_batches(TARGETS, sampling, epoch):
            labels = TARGETS[batch]
            classes, counts = np.unique(labels, return_counts=True)
            assert len(classes) == 4
            assert counts.tolist() == [8] * 4
            runs = 1 + np.count_nonzero(np.diff(labels))
            assert (runs == 4) == (order == "blocks")


def test_few_classes_are_drawn_with_replacement() -> None:
    """Eight of thirteen images, many times over: without replacement no batch would repeat one."""
    batches = epoch_batches(np.repeat(np.arange(10), 130), Sampling(104, classes_per_batch=1), 0)
    assert any(len(np.unique(batch)) < 104 for batch in batches)


def test_every_class_takes_part() -> None:
    sampling = Sampling(4, classes_per_batch=2)
    assert set(TARGETS[epoch_batches(TARGETS, sampling, 0)].ravel()) == set(range(10))


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 10, "classes_per_batch": 4}, "divide"),
        ({"batch_size": 10, "classes_per_batch": 0}, "divide"),
        ({"batch_size": 10, "batch_order": "blocks"}, "needs"),
        ({"batch_size": 10, "batch_order": "sorted"}, "unknown"),
    ],
)
def test_impossible_samplings(parts: dict, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Sampling(**parts)


def test_too_few_examples_or_classes() -> None:
    with pytest.raises(ConfigurationError, match="as many training examples"):
        steps_per_epoch(5, Sampling(6))
    with pytest.raises(ConfigurationError, match="10 classes"):
        epoch_batches(TARGETS, Sampling(22, classes_per_batch=11), 0)
