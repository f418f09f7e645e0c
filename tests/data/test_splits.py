"""What trains and what validates: never the same image, the same draw for the same seed, all classes."""

from __future__ import annotations

import gc
import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, SHARED, write_images
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, Flowers102

from alphatune.core.errors import ConfigurationError, DataError, ResourceError
from alphatune.core.versions import is_at_least
from alphatune.data.datasets import open_data
from alphatune.data.decoding import read_image
from alphatune.data.examples import Examples
from alphatune.data.loading import Batches
from alphatune.data.named_datasets import NAMES
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.splits import Splits, open_splits
from alphatune.data.stratification import hold_out, partition

PREPROCESSING = Preprocessing().override(input_size=(12,), crop_pct=1.0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks up a host's address is refused, loudly."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels(examples: Examples) -> list[bytes]:
    images = [read_image(examples.load(int(i))[0], "RGB") for i in examples.indices]
    return [image.tobytes() for image in images]


def loaded(examples: Examples, workers: int = 0) -> tuple[torch.Tensor, list[int]]:
    parts = list(Batches(examples, PREPROCESSING, 7, torch.device("cpu"), workers))
    return torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]).tolist()


def counts(examples: Examples | None) -> set[int]:
    """How many images the classes have: one number if they all have the same."""
    assert examples is not None
    assert np.array_equal(np.unique(examples.targets), np.arange(len(examples.classes)))
    return set(Counter(examples.targets.tolist()).values())


def assert_disjoint(splits: Splits) -> None:
    """By the pixels: every image that the fixtures write is different."""
    parts = [splits.train, splits.validation] + ([splits.test] if splits.test else [])
    seen = [set(pixels(part)) for part in parts]
    assert [len(s) for s in seen] == [len(part) for part in parts]
    assert len(set().union(*seen)) == sum(map(len, seen))


# --- the published layouts, small --------------------------------------------------------------


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_cifar(root: Path, kind: type[CIFAR10], patch: pytest.MonkeyPatch, per_class: int = 10) -> None:
    """Every batch holds ``per_class`` images of every class; torchvision is told their checksums."""
    base = root / kind.base_folder
    base.mkdir(parents=True)
    classes = 100 if kind is CIFAR100 else 10
    rng = np.random.default_rng(0)
    listed: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for attribute, batches in listed.items():
        for name, _ in getattr(kind, attribute):
            labels = rng.permutation(np.repeat(np.arange(classes), per_class)).tolist()
            data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
            key = "fine_labels" if kind is CIFAR100 else "labels"
            (base / name).write_bytes(pickle.dumps({"data": data, key: labels}))
            batches.append([name, md5(base / name)])
    meta = base / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [f"class {i}" for i in range(classes)]}))
    patch.setattr(kind, "train_list", listed["train_list"])
    patch.setattr(kind, "test_list", listed["test_list"])
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})


def write_svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    listed = {}
    for split, per_class in (("train", 10), ("extra", 20), ("test", 4)):
        url, name, _ = SVHN.split_list[split]
        labels = rng.permutation(np.repeat(np.arange(1, 11), per_class))  # 10 stands for the digit 0
        images = rng.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        savemat(root / name, {"X": images, "y": labels[:, None]})
        listed[split] = [url, name, md5(root / name)]
    patch.setattr(SVHN, "split_list", listed)


def write_jpeg(file: Path, number: int) -> None:
    """A plain image that no other number has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = (number % 8 * 32 + 16, number // 8 % 8 * 32 + 16, number // 64 * 32 + 16)
    Image.new("RGB", (8, 8), colour).save(file, quality=100, subsampling=0)


def write_caltech256(root: Path, sizes: tuple[int, ...] = (80, 83, 90)) -> None:
    base, number = root / "caltech256" / "256_ObjectCategories", 0
    names = ("001.ak47", "002.american-flag", "257.clutter")
    for label, (name, size) in enumerate(zip(names, sizes, strict=True)):
        for i in range(size):
            write_jpeg(base / name / f"{label + 1:03}_{i + 1:04}.jpg", number)
            number += 1
    (base / "001.ak47" / "RENAME2").write_text("lies in the published archive, too")


def write_flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    base = root / "flowers-102"
    for i in range(1, 409):
        write_jpeg(base / "jpg" / f"image_{i:05}.jpg", i)
    ids = np.arange(1, 409).reshape(4, 102)
    savemat(base / "imagelabels.mat", {"labels": np.tile(np.arange(1, 103), 4)})
    savemat(base / "setid.mat", {"trnid": ids[0], "valid": ids[1], "tstid": ids[2:].ravel()})
    files = {
        kind: (name, md5(base / name)) if (base / name).exists() else (name, checksum)
        for kind, (name, checksum) in Flowers102._file_dict.items()
    }
    patch.setattr(Flowers102, "_file_dict", files)


def write_cub2011(root: Path) -> None:
    base = root / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red winged_Blackbird"]
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for i in range(1, 3 * 36 + 1):
        label = (i - 1) // 36
        path = f"{names[label]}/bird_{i:04}.jpg"
        write_jpeg(base / "images" / path, i)
        lines["images"].append(f"{i} {path}")
        lines["image_class_labels"].append(f"{i} {label + 1}")
        lines["train_test_split"].append(f"{i} {int(i % 3 > 0)}")
    for name, rows in lines.items():
        (base / f"{name}.txt").write_text("\n".join(rows) + "\n")
    (base / "classes.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(names)))


def write_imagenet(root: Path) -> None:
    number = 0
    for split, per_class in (("train", 5), ("val", 2)):
        for wnid in ("n01440764", "n01443537", "n02086240"):
            for i in range(per_class):
                write_jpeg(root / split / wnid / f"{split}_{i}.JPEG", number)
                number += 1


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All seven datasets, side by side."""
    root = tmp_path / "data"
    root.mkdir()
    write_cifar(root, CIFAR10, monkeypatch)
    write_cifar(root, CIFAR100, monkeypatch)
    write_svhn(root, monkeypatch)
    write_caltech256(root)
    write_flowers102(root, monkeypatch)
    write_cub2011(root)
    write_imagenet(root)
    return root


# --- datasets by name ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "train", "validation", "test"),
    [
        ("cifar10", 10, 40, 10, 10),
        ("CIFAR100", 100, 8, 2, 10),
        ("svhn", 10, 24, 6, 4),
        ("Caltech256", 2, 40, 10, 30),
        ("flowers102", 102, 1, 1, 2),
        ("cub2011", 3, 18, 6, 12),
        ("imagenet", 3, 5, 2, None),
    ],
)
def test_named_dataset_has_the_splits_of_the_paper(
    data_root: Path, name: str, classes: int, train: int, validation: int, test: int | None
) -> None:
    splits = open_splits(name, data_root=str(data_root))
    assert counts(splits.train) == {train}
    assert counts(splits.validation) == {validation}
    assert (splits.test is None) if test is None else counts(splits.test) == {test}
    assert len(splits.train.classes) == classes
    assert splits.train.classes == splits.validation.classes
    assert splits.train.split == "train"
    assert splits.validation.split == "validation"
    assert {splits.train.source, splits.validation.source} == {name.lower()}
    assert_disjoint(splits)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides(data_root: Path, name: str) -> None:
    first, again, other = (open_splits(name, data_root=str(data_root), split_seed=s) for s in (3, 3, 4))
    assert pixels(first.validation) == pixels(again.validation)
    assert pixels(first.train) == pixels(again.train)
    if name in ("flowers102", "imagenet"):  # their own validation split
        assert pixels(first.validation) == pixels(other.validation)
    else:
        assert pixels(first.validation) != pixels(other.validation)


@pytest.mark.parametrize("name", NAMES)
def test_named_images_and_labels_are_those_of_the_files(data_root: Path, name: str) -> None:
    """Every example, found by its pixels in files read by other means, has that file's class."""
    truth: dict[bytes, str] = {}
    if name.startswith("cifar"):
        base = data_root / ("cifar-10-batches-py" if name == "cifar10" else "cifar-100-python")
        for file in base.iterdir():
            batch = pickle.loads(file.read_bytes())
            labels = batch.get("labels", batch.get("fine_labels", []))
            for row, label in zip(batch.get("data", []), labels, strict=True):
                truth[row.reshape(3, 1024).T.tobytes()] = f"class {label}"
    elif name == "svhn":
        from scipy.io import loadmat

        for file in data_root.glob("*_32x32.mat"):
            content = loadmat(file)
            for i, label in enumerate(content["y"][:, 0]):
                truth[content["X"][..., i].tobytes()] = str(label % 10)
    elif name == "flowers102":
        for file in (data_root / "flowers-102" / "jpg").iterdir():
            label = (int(file.stem[-5:]) - 1) % 102
            truth[Image.open(file).convert("RGB").tobytes()] = (
                Flowers102.classes[label] if hasattr(Flowers102, "classes") else str(label)
            )
    else:
        pattern = {
            "caltech256": "caltech256/*/*/*.jpg",
            "cub2011": "CUB_200_2011/images/*/*.jpg",
            "imagenet": "*/n*/*.JPEG",
        }[name]
        for file in data_root.glob(pattern):
            truth[Image.open(file).convert("RGB").tobytes()] = file.parent.name
    splits = open_splits(name, data_root=str(data_root))
    for part in (splits.train, splits.validation, splits.test):
        if part is not None:
            named = [part.classes[target] for target in part.targets]
            assert [truth[p] for p in pixels(part)] == named


@pytest.mark.parametrize("name", NAMES)
def test_named_datasets_in_worker_processes(data_root: Path, name: str) -> None:
    validation = open_splits(name, data_root=str(data_root)).validation.limit(20, 0)
    images, targets = loaded(validation)
    in_workers, in_workers_targets = loaded(validation, workers=2)
    assert torch.equal(images, in_workers)
    assert targets == in_workers_targets == validation.targets.tolist()
    copy = pickle.loads(pickle.dumps(validation.load))  # what a spawned worker gets
    index = int(validation.indices[-1])
    assert read_image(copy(index)[0], "RGB").tobytes() == pixels(validation)[-1]


@pytest.mark.parametrize("name", NAMES)
def test_data_that_are_not_there_are_not_fetched(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is not in") as error:
        open_splits(name, data_root=str(tmp_path))
    assert "`data_root" in error.value.hint
    assert ("`download`" in error.value.hint) == (name not in ("cub2011", "imagenet"))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_download_asks_the_network_where_it_can(tmp_path: Path, name: str, capsys) -> None:
    kind = ConfigurationError if name in ("cub2011", "imagenet") else DataError
    message = "by hand" if kind is ConfigurationError else "no network in this test"
    with pytest.raises(kind, match=message) as error:
        open_splits(name, data_root=str(tmp_path), download=True)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["cifar10", "svhn", "flowers102"])
def test_files_that_are_not_the_published_ones(tmp_path: Path, name: str) -> None:
    """Here torchvision's own checksums stand, and made-up files do not pass."""
    with pytest.MonkeyPatch.context() as patch:
        write_cifar(tmp_path, CIFAR10, patch)
        write_svhn(tmp_path, patch)
        write_flowers102(tmp_path, patch)
    with pytest.raises(DataError, match="not the published ones") as error:
        open_splits(name, data_root=str(tmp_path))
    assert "`download`" in error.value.hint


def test_incomplete_folders_of_named_datasets(tmp_path: Path) -> None:
    write_caltech256(tmp_path, sizes=(80, 79, 5))
    with pytest.raises(DataError, match=r"expected at least 80 examples .* got 79"):
        open_splits("caltech256", data_root=str(tmp_path))
    write_cub2011(tmp_path)
    labels = tmp_path / "CUB_200_2011" / "image_class_labels.txt"
    labels.write_text(labels.read_text().partition("\n")[2])
    with pytest.raises(DataError, match=r"image_class_labels\.txt .* differ"):
        open_splits("cub2011", data_root=str(tmp_path))
    labels.unlink()
    with pytest.raises(DataError, match="cannot read cub2011"):
        open_splits("cub2011", data_root=str(tmp_path))
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    with pytest.raises(DataError, match="val/"):
        open_splits("imagenet", data_root=str(tmp_path))


def test_cub_folder_itself_may_be_the_root(data_root: Path) -> None:
    inside = open_splits("cub2011", data_root=str(data_root / "CUB_200_2011"))
    assert pixels(inside.train) == pixels(open_splits("cub2011", data_root=str(data_root)).train)


def test_options_that_a_named_dataset_has_no_use_for(data_root: Path) -> None:
    for option in ({"val_fraction": 0.1}, {"val_data": "x"}, {"train_split": "train"}, {"split": "test"}):
        with pytest.raises(ConfigurationError, match="splits of its own"):
            open_splits("cifar10", data_root=str(data_root), **option)
    with pytest.raises(ConfigurationError, match="`data_root"):
        open_splits("cifar10")


def test_named_data_can_be_evaluated_by_split(data_root: Path) -> None:
    splits = open_splits("cub2011", data_root=str(data_root))
    for split, part in (("train", splits.train), ("val", splits.validation), ("test", splits.test)):
        assert part is not None
        assert pixels(open_data("cub2011", data_root=str(data_root), split=split)) == pixels(part)
    default = open_data("CUB2011", data_root=str(data_root))
    assert np.array_equal(default.indices, splits.validation.indices)
    with pytest.raises(ConfigurationError, match="no split 'extra'"):
        open_data("cub2011", data_root=str(data_root), split="extra")
    with pytest.raises(ConfigurationError, match="it has: train, validation"):
        open_data("imagenet", data_root=str(data_root), split="test")


def test_a_folder_called_like_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    assert open_data("cifar10").classes == CLASSES
    assert open_splits("cifar10").train.classes == CLASSES
    with pytest.raises(DataError, match="cifar10 is not in"):
        open_splits("cifar10", data_root=str(tmp_path))


def test_class_map_numbers_a_named_dataset(data_root: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "map.txt"
    mapping.write_text("n02086240\nn01443537\nn01440764\n")
    plain = open_splits("imagenet", data_root=str(data_root))
    mapped = open_splits("imagenet", data_root=str(data_root), class_map=str(mapping))
    for before, after in ((plain.train, mapped.train), (plain.validation, mapped.validation)):
        assert np.array_equal(after.targets, 2 - before.targets)


# --- folders, archives and dataset strings -------------------------------------------------------


@pytest.fixture
def train_and_val(tmp_path: Path) -> Path:
    """Four classes, five images each to train on and two to validate on."""
    root = tmp_path / "both"
    number = 0
    for split, per_class in (("train", 5), ("val", 2), ("test", 3)):
        for name in CLASSES:
            for i in range(per_class):
                write_jpeg(root / split / name / f"{i}.jpg", number)
                number += 1
    return root


def test_the_folders_own_splits(train_and_val: Path) -> None:
    splits = open_splits(str(train_and_val))
    assert (counts(splits.train), counts(splits.validation)) == ({5}, {2})
    assert_disjoint(splits)
    by_test = open_splits(str(train_and_val), split="test")
    assert counts(by_test.validation) == {3}
    assert_disjoint(by_test)


def test_fraction_of_the_training_folder(train_and_val: Path) -> None:
    splits = open_splits(str(train_and_val), val_fraction=0.4)
    assert (counts(splits.train), counts(splits.validation)) == ({3}, {2})
    assert set(pixels(splits.train)) | set(pixels(splits.validation)) == set(
        pixels(open_data(train_and_val, split="train"))
    )
    shutil.rmtree(train_and_val / "val")
    default = open_splits(str(train_and_val))  # a tenth of five, but of every class at least one
    assert (counts(default.train), counts(default.validation)) == ({4}, {1})
    assert_disjoint(default)


def test_fraction_of_a_folder_without_splits(image_folder: Path) -> None:
    splits = open_splits(str(image_folder), val_fraction=0.25, split_seed=1)
    assert (counts(splits.train), counts(splits.validation)) == ({9}, {3})
    assert_disjoint(splits)
    same, other = (open_splits(str(image_folder), val_fraction=0.25, split_seed=s) for s in (1, 2))
    assert np.array_equal(same.validation.indices, splits.validation.indices)
    assert not np.array_equal(other.validation.indices, splits.validation.indices)
    assert splits.validation.split == "0.25, seed 1"


def test_validation_data_of_their_own(train_and_val: Path, tmp_path: Path) -> None:
    archive = tmp_path / "val.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(train_and_val / "val", ".")
    for val_data in (archive, train_and_val / "val"):
        splits = open_splits(str(train_and_val / "train"), val_data=str(val_data))
        assert (counts(splits.train), counts(splits.validation)) == ({5}, {2})
        assert_disjoint(splits)


def test_the_same_images_never_train_and_validate(train_and_val: Path, tmp_path: Path) -> None:
    train = train_and_val / "train"
    (tmp_path / "link").symlink_to(train)
    for options in (
        {"data": str(train), "val_data": str(train)},
        {"data": str(train), "val_data": str(tmp_path / "link")},
        {"data": str(train_and_val), "val_data": str(train)},
        {"data": str(train_and_val), "split": "train"},
        {"data": "torch/folder", "data_root": str(train), "split": "validation"},
    ):
        with pytest.raises(DataError, match="are the same"):
            open_splits(**options)


def test_classes_must_be_the_same(train_and_val: Path, tmp_path: Path) -> None:
    shutil.move(train_and_val / "val" / "dog", train_and_val / "val" / "eel")
    with pytest.raises(DataError, match="'dog' is in training only") as error:
        open_splits(str(train_and_val))
    assert "`class_map" in error.value.hint
    shutil.copytree(train_and_val / "val" / "eel", train_and_val / "val" / "dog")
    with pytest.raises(DataError, match="'eel' is in validation only"):
        open_splits(str(train_and_val))
    mapping = tmp_path / "map.txt"
    mapping.write_text("eel\ndog\ncat\nbee\nant\n")
    with pytest.raises(DataError, match="'eel', which no training example has"):
        open_splits(str(train_and_val), class_map=str(mapping))
    shutil.rmtree(train_and_val / "val" / "eel")
    splits = open_splits(str(train_and_val), class_map=str(mapping))
    assert splits.train.classes == splits.validation.classes == ("eel", "dog", "cat", "bee", "ant")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "between 0 and 1"),
        ({"val_fraction": 1.0}, "between 0 and 1"),
        ({"val_fraction": float("nan")}, "between 0 and 1"),
        ({"val_fraction": 0.1, "split": "val"}, "`val_fraction` and `split`"),
        ({"val_fraction": 0.1, "val_data": "x"}, "`val_fraction` and `val_data`"),
        ({"val_data": "cifar10"}, "training split of its own"),
        ({"train_split": "tarin"}, "no split 'tarin'"),
        ({"split": "vla"}, "no split 'vla'"),
    ],
)
def test_options_that_cannot_be_right(train_and_val: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_splits(str(train_and_val), **options)


def test_one_image_of_a_class_stays_in_training(tmp_path: Path) -> None:
    write_images(tmp_path / "d", per_class=3)
    for file in sorted((tmp_path / "d" / "cat").iterdir())[1:]:
        file.unlink()
    splits = open_splits(str(tmp_path / "d"), val_fraction=0.9)
    assert Counter(splits.train.targets.tolist()) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert Counter(splits.validation.targets.tolist()) == {0: 2, 1: 2, 3: 2}
    assert "1 of 4 classes" in splits.train.warnings[-1]
    write_images(tmp_path / "e", per_class=1)
    with pytest.raises(DataError, match="nothing to hold out"):
        open_splits(str(tmp_path / "e"))


def test_timms_validation_split_of_cifar_is_the_test_set(data_root: Path) -> None:
    splits = open_splits("torch/cifar10", data_root=str(data_root), val_fraction=0.2)
    default = open_splits("torch/cifar10", data_root=str(data_root))
    test = set(pixels(open_splits("cifar10", data_root=str(data_root)).test))
    for each, per_class in ((splits, 10), (default, 5)):
        assert counts(each.validation) == {per_class}
        assert_disjoint(each)
        assert not test & set(pixels(each.validation))
    asked = open_splits("torch/cifar10", data_root=str(data_root), split="validation")
    assert set(pixels(asked.validation)) == test
    with pytest.raises(DataError, match="are the same"):
        open_splits("torch/cifar10", data_root=str(data_root), split="training")


def test_torch_folder_string_finds_its_splits(train_and_val: Path) -> None:
    splits = open_splits("torch/image_folder", data_root=str(train_and_val))
    assert (counts(splits.train), counts(splits.validation)) == ({5}, {2})
    flat = open_splits("torch/image_folder", data_root=str(train_and_val / "train"), val_fraction=0.2)
    assert (counts(flat.train), counts(flat.validation)) == ({4}, {1})
    assert_disjoint(flat)


def test_hugging_face_splits_and_slices(image_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    (tmp_path / "set").mkdir()
    for split, of_three in (("train", (0, 1)), ("validation", (2,))):
        rows = [
            {"image": {"bytes": f.read_bytes(), "path": f.name}, "label": CLASSES.index(f.parent.name)}
            for i, f in enumerate(sorted(image_folder.rglob("*.png")))
            if i % 3 in of_three
        ]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(tmp_path / "set" / f"{split}-00000.parquet")
    how = {"data": f"hfds/{tmp_path / 'set'}", "data_root": str(tmp_path / "cache")}
    assert_disjoint(open_splits(**how))
    assert counts(open_splits(**how).validation) == {4}
    held = open_splits(**how, val_fraction=0.25)
    assert (counts(held.train), counts(held.validation)) == ({6}, {2})
    if not is_at_least("timm", "1.0.31"):
        pytest.skip("timm before 1.0.31 looks the number of a slice's images up where it is not")
    sliced = open_splits(**how, train_split="train[4:]", split="validation")
    assert len(sliced.train) == 28
    with pytest.raises(DataError, match="are the same"):
        open_splits(**how, train_split="train", split="train[4:]")


# --- stratification ------------------------------------------------------------------------------


def test_partition_is_disjoint_stratified_and_ordered() -> None:
    targets = np.random.default_rng(0).choice(4, 500, p=[0.6, 0.3, 0.08, 0.02])
    kept, held = partition(targets, hold_out(0.3), seed=5)
    assert sorted([*kept, *held]) == list(range(500))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    for label in range(4):
        assert abs((targets[held] == label).sum() - 0.3 * (targets == label).sum()) <= 0.5


def test_partition_draws_every_example_equally_often() -> None:
    """Each of ten examples is held out with probability 0.3: 600 draws are within 4.5 σ."""
    times = np.zeros(10)
    for seed in range(600):
        times[partition(np.zeros(10, dtype=int), hold_out(0.3), seed)[1]] += 1
    assert times.sum() == 1800
    assert np.abs(times - 180).max() < 4.5 * np.sqrt(600 * 0.3 * 0.7)


def test_partition_does_not_depend_on_the_machine() -> None:
    """Should a NumPy release change its stream, published splits change: that must not go unnoticed."""
    held = partition(np.arange(20) % 2, hold_out(0.2), seed=7)[1]
    assert held.tolist() == [1, 10, 15, 18]


# --- compressed archives -------------------------------------------------------------------------


def packed(folder: Path, path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, ".")
    return path


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("alphatune-*"))


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("i.tar.gz", "w:gz"),
        ("i.tgz", "w:gz"),
        ("i.tar.bz2", "w:bz2"),
        ("i.tar.xz", "w:xz"),
        ("I.TAR.GZ", "w:gz"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_compressed_archive_reads_like_the_folder(
    image_folder: Path, tmp_path: Path, temporary_folder: Path, name: str, mode: str, workers: int
) -> None:
    archive = packed(image_folder, tmp_path / name, mode)
    before = archive.read_bytes()
    examples = open_data(archive)
    assert (examples.source, examples.root) == (str(archive), str(archive))
    expected = loaded(open_data(image_folder))
    got = loaded(examples, workers)
    assert torch.equal(got[0], expected[0])
    assert got[1] == expected[1]
    assert leftovers()
    part = examples.limit(5, 0)
    del examples
    gc.collect()
    assert len(loaded(part, workers)[1]) == 5  # the copy lives as long as anything reads from it
    del part
    gc.collect()
    assert not leftovers()
    assert archive.read_bytes() == before


def test_other_processes_never_remove_the_archive(
    image_folder: Path, tmp_path: Path, temporary_folder: Path
) -> None:
    load = open_data(packed(image_folder, tmp_path / "i.tar.gz", "w:gz")).load
    expected = read_image(load(0)[0], "RGB").tobytes()  # type: ignore[misc]
    spawned = pickle.loads(pickle.dumps(load))  # what a spawned worker gets
    assert read_image(spawned(0)[0], "RGB").tobytes() == expected
    del spawned

    def drop() -> None:
        load.__dict__.clear()
        gc.collect()

    forked = multiprocessing.get_context("fork").Process(target=drop)
    forked.start()
    forked.join(60)
    assert forked.exitcode == 0
    assert read_image(pickle.loads(pickle.dumps(load))(0)[0], "RGB").tobytes() == expected


def test_archive_is_cut_short(image_folder: Path, tmp_path: Path, temporary_folder: Path) -> None:
    for name, mode in (("i.tar.gz", "w:gz"), ("i.tar.bz2", "w:bz2"), ("i.tar.xz", "w:xz")):
        archive = packed(image_folder, tmp_path / name, mode)
        archive.write_bytes(archive.read_bytes()[:-600])
        with pytest.raises(DataError, match=f"cannot read .*{name}") as error:
            open_data(archive)
        assert "\n" not in str(error.value)
        assert "alphatune-" not in str(error.value)
        archive.write_bytes(b"")
        with pytest.raises(DataError, match=f"(cannot read|no images found in) .*{name}"):
            open_data(archive)
    assert not leftovers()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_no_room_to_decompress(
    image_folder: Path, tmp_path: Path, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full answers every write with "no space left on device"."""
    archive = packed(image_folder, tmp_path / "i.tar.gz", "w:gz")

    def full(prefix: str) -> str:
        (temporary_folder / "full").mkdir()
        (temporary_folder / "full" / "archive.tar").symlink_to("/dev/full")
        return str(temporary_folder / "full")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(ResourceError, match="no room to decompress") as error:
        open_data(archive)
    assert "TMPDIR" in error.value.hint
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "raise KeyboardInterrupt", "1 / 0"])
def test_nothing_is_left_however_the_process_ends(image_folder: Path, tmp_path: Path, ending: str) -> None:
    archive = packed(image_folder, tmp_path / "i.tar.gz", "w:gz")
    (tmp_path / "temporary").mkdir()
    code = (
        "import os, sys, pathlib; from alphatune.data.compressed import DecompressedTar\n"
        "kept = DecompressedTar(pathlib.Path(sys.argv[1])); print(kept.path.stat().st_size)\n" + ending
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(archive)],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert int(done.stdout) > 10_000
    assert list((tmp_path / "temporary").glob("alphatune-*")) == []


def test_compressed_archive_of_splits_is_refused(train_and_val: Path, tmp_path: Path) -> None:
    archive = packed(train_and_val, tmp_path / "d.tar.gz", "w:gz")
    with pytest.raises(ConfigurationError, match=r"d\.tar\.gz is an archive of the splits test, train"):
        open_splits(str(archive))


def test_cifar_training_archive() -> None:
    """The real one: 50 000 JPEGs, 5 000 a class."""
    archive = SHARED / "cifar10-jpeg-train.tar.gz"
    if not archive.exists():
        pytest.skip(f"{archive.name} is not beside the project")
    splits = open_splits(str(archive), val_fraction=0.2)
    assert (counts(splits.train), counts(splits.validation)) == ({4000}, {1000})
    assert not set(splits.train.indices) & set(splits.validation.indices)
    images, targets = loaded(splits.validation.limit(300, 0), workers=2)
    assert images.shape == (300, 3, 12, 12)
    assert targets == splits.validation.limit(300, 0).targets.tolist()
    for part in (splits.train.limit(200, 0), splits.validation.limit(200, 0)):
        folders = [part.load(int(i))[1].split("/")[0] for i in part.indices]  # type: ignore[misc]
        assert folders == [part.classes[target] for target in part.targets]
    with tarfile.open(archive) as tar:  # the first image straight from the archive
        member = tar.next()
        assert member is not None
        first = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")  # type: ignore[union-attr]
    source, name = splits.train.load(0)  # type: ignore[misc]
    assert (name, read_image(source, "RGB").tobytes()) == (member.name, first.tobytes())
