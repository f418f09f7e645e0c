"""Training batches: the same whatever the workers, the cache and the interruption."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.data.augmentation import (
    augment_batch,
    derived_seed,
    resolve_augmentation,
    stored_preprocessing,
    training_transform,
)
from alphatune.data.datasets import open_data
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.sampling import Sampling
from alphatune.data.training_batches import DeviceBatches, DeviceCache, TrainingBatches

CPU = torch.device("cpu")
SMALL = Preprocessing((3, 12, 12), crop_pct=1.0)


def batches_of(folder: Path, augmentation: str = "cifar", workers: int = 0, **kwargs) -> TrainingBatches:
    sampling = kwargs.pop("sampling", Sampling(10, seed=3))
    return TrainingBatches(open_data(str(folder)), SMALL, augmentation, sampling, CPU, workers, **kwargs)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("augmentation", ["none", "crop", "cifar", "imagenet"])
def test_workers_change_nothing(image_folder: Path, augmentation: str, workers: int) -> None:
    alone = list(batches_of(image_folder, augmentation).between(0, 6))
    helped = list(batches_of(image_folder, augmentation, workers).between(0, 6))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.inputs, b.inputs)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("augmentation", ["cifar", "imagenet"])
def test_a_run_can_start_anywhere(image_folder: Path, augmentation: str, cached: bool) -> None:
    """48 images in batches of 10: four steps an epoch, so step 6 is in the second."""
    batches = batches_of(image_folder, augmentation)
    batches = batches.cached() if cached else batches
    whole = list(batches.between(0, 9))
    for a, b in zip(whole[6:], batches.between(6, 9), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.ids, b.ids)


def test_augmentation_leaves_the_callers_random_numbers_alone(image_folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for augmentation in ("cifar", "imagenet"):
        list(batches_of(image_folder, augmentation).between(0, 1))
        list(batches_of(image_folder, augmentation).cached().between(0, 1))
    assert torch.equal(torch.rand(3), expected)


def test_without_augmentation_cache_and_source_agree(image_folder: Path) -> None:
    batches = batches_of(image_folder, "none")
    for a, b in zip(batches.between(0, 4), batches.cached().between(0, 4), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.ids, b.ids)


def test_ids_and_labels_belong_to_the_images(image_folder: Path) -> None:
    plain = {
        int(i): x
        for b in Batches(open_data(str(image_folder)), SMALL, 7, CPU)
        for i, x in zip(b.ids, b.inputs, strict=True)
    }
    examples = open_data(str(image_folder))
    for batch in batches_of(image_folder, "none").between(0, 4):
        for id_, target, image in zip(batch.ids, batch.targets, batch.inputs, strict=True):
            assert torch.equal(plain[int(id_)], image)
            assert int(target) == examples.targets[int(id_)]


@pytest.mark.parametrize("cached", [False, True])
def test_processes_share_every_batch(image_folder: Path, cached: bool) -> None:
    """Rank r has the r-th consecutive share, so that ghost batches stay consecutive."""
    whole = batches_of(image_folder, "none")
    shares = [batches_of(image_folder, "none", rank=r, world_size=2) for r in range(2)]
    if cached:
        shares = [share.cached() for share in shares]
    for batch, *parts in zip(whole.between(0, 8), *(s.between(0, 8) for s in shares), strict=True):
        assert torch.equal(batch.ids, torch.cat([part.ids for part in parts]))
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))


def test_processes_augment_what_one_would(image_folder: Path) -> None:
    whole = next(iter(batches_of(image_folder).between(5, 6)))
    second = next(iter(batches_of(image_folder, rank=1, world_size=2).between(5, 6)))
    assert torch.equal(whole.inputs[5:], second.inputs)


def test_an_uneven_share_is_refused(image_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="shared by 3"):
        batches_of(image_folder, world_size=3)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", per_class=3)
    (folder / "ant" / "001.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"001\.png"):
        list(batches_of(folder).between(0, 1))


@pytest.mark.parametrize("augmentation", ["crop", "cifar"])
def test_batch_augmentation_does_what_the_image_augmentation_does(augmentation: str) -> None:
    """Every result is one of the 9 or 25 crops of the padded image, mirrored or not; all occur."""
    image = torch.arange(3 * 16 * 16, dtype=torch.int32).remainder(251).to(torch.uint8).reshape(3, 16, 16)
    preprocessing = Preprocessing((3, 16, 16), crop_pct=1.0)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    crops = {}
    for top, left, flip in itertools.product(range(5), range(5), (False, True)):
        crop = padded[:, top : top + 16, left : left + 16]
        crops[(top, left, flip)] = crop.flip(2) if flip else crop
    batch = augment_batch(image.expand(400, -1, -1, -1), augmentation, preprocessing, seed=1)
    transform = training_transform(augmentation, preprocessing)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    singles = [transform(pil) for _ in range(400)]
    for results in (batch, singles):
        found = [next(k for k, crop in crops.items() if torch.equal(crop, result)) for result in results]
        offsets = {key[:2] for key in found}
        assert len(offsets) == 25
        flips = np.mean([key[2] for key in found])
        assert flips == 0 if augmentation == "crop" else 0.4 < flips < 0.6


def test_imagenet_augmentation_crops_areas() -> None:
    preprocessing = Preprocessing((3, 24, 24), interpolation="bilinear")
    stored = stored_preprocessing("imagenet", preprocessing)
    assert stored.input_size == (3, 27, 27)
    rows = torch.arange(27, dtype=torch.uint8)[None, :, None].expand(3, 27, 27).contiguous()
    out = augment_batch(rows.expand(200, -1, -1, -1), "imagenet", preprocessing, seed=0).float()
    assert out.shape == (200, 3, 24, 24)
    heights = (out[:, 0, -1, 0] - out[:, 0, 0, 0]) / 27  # share of the height that was kept
    assert 0.2 < heights.min() < 0.5 < heights.max() <= 1
    assert not torch.equal(out[0], out[1])


def test_cached_batches_are_the_batches(image_folder: Path) -> None:
    plain = Batches(open_data(str(image_folder)), SMALL, 7, CPU)
    cached = DeviceBatches(DeviceCache.of(plain), SMALL, 7)
    assert len(cached) == len(plain)
    for a, b in zip(plain, cached, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.ids, b.ids)


def test_a_stream_needs_the_cache(image_folder: Path) -> None:
    from dataclasses import replace

    batches = batches_of(image_folder)
    stream = replace(batches, examples=replace(batches.examples, load=None))
    with pytest.raises(ConfigurationError, match="in order"):
        list(stream.between(0, 1))


def test_automatic_augmentation() -> None:
    assert resolve_augmentation("auto", SMALL) == "cifar"
    assert resolve_augmentation("auto", Preprocessing()) == "imagenet"
    with pytest.raises(ConfigurationError, match="unknown augmentation"):
        resolve_augmentation("mixup", SMALL)


def test_derived_seeds_differ() -> None:
    assert len({derived_seed(0, i) for i in range(1000)} | {derived_seed(1, i) for i in range(1000)}) > 1990
