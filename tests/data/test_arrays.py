"""Images and labels in arrays: every layout gives the images and labels that were put in, or is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Run

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError, UntrustedError
from alphatune.data.cache import with_cache
from alphatune.data.datasets import open_data
from alphatune.data.decoding import read_image
from alphatune.data.examples import Examples
from alphatune.data.fingerprint import files_of, fingerprint
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.splits import open_splits

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 8, 6, 3)).astype(np.uint8)
GREY = RNG.integers(0, 256, (12, 8, 6)).astype(np.uint8)
LABELS = np.arange(12) % 3
CPU = torch.device("cpu")


def pixels(examples: Examples, mode: str = "RGB") -> np.ndarray:
    images = (read_image(examples.load(int(i))[0], mode) for i in examples.indices)  # type: ignore[misc]
    return np.stack([np.asarray(image) for image in images])


def check(examples: Examples, images: np.ndarray = COLOUR, labels: np.ndarray = LABELS) -> None:
    np.testing.assert_array_equal(pixels(examples, "L" if images.ndim == 3 else "RGB"), images)
    np.testing.assert_array_equal(examples.targets, labels)
    assert examples.targets.dtype == np.int64


def npz(path: Path, **arrays: object) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "labels"), ("image", "label"), ("X", "y"), ("x", "y"), ("data", "labels"), ("data", "targets"),
        ("arr_0", "arr_1"), ("imgs", "target"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["npz", "npy", "npy folder", "pt"])
def test_names_of_arrays(tmp_path: Path, images: str, labels: str, kind: str) -> None:
    path = tmp_path / f"d.{kind[:3].strip()}"
    if kind == "npz":
        npz(path, **{images: COLOUR, labels: LABELS, "extra": np.zeros(3)})
    elif kind == "pt":
        torch.save({images: torch.from_numpy(COLOUR), labels: torch.from_numpy(LABELS)}, path)
    else:
        np.save(tmp_path / f"{images}.npy", COLOUR)
        np.save(tmp_path / f"{labels}.npy", LABELS)
        path = tmp_path / f"{images}.npy" if kind == "npy" else tmp_path
    check(open_data(path))


@pytest.mark.parametrize(
    "names",
    [
        ("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "Y_{}"), ("{}.data", "{}.targets"), ("{}-img", "{}-label"),
    ],
)  # fmt: skip
def test_splits_of_arrays(tmp_path: Path, names: tuple[str, str]) -> None:
    content = {}
    for shift, split in enumerate(("train", "val", "test")):
        content |= {names[0].format(split): COLOUR + shift, names[1].format(split): (LABELS + shift) % 3}
    path = npz(tmp_path / "d.npz", **content)
    for shift, split in enumerate(("train", None, "test")):
        check(open_data(path, split=split), COLOUR + np.uint8(shift), (LABELS + shift) % 3)
    assert open_data(path).split == "val"
    with pytest.raises(ConfigurationError, match="no split 'extra'") as error:
        open_data(path, split="extra")
    assert error.value.hint == "it has: test, train, val"
    splits = open_splits(str(path))
    assert (splits.train.split, splits.validation.split) == ("train", "val")


def test_no_validation_split(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", x_train=COLOUR, y_train=LABELS, x_test=COLOUR, y_test=LABELS)
    with pytest.raises(ConfigurationError, match="holds the splits test, train and no validation split"):
        open_data(path)
    splits = open_splits(str(path), val_fraction=0.25)
    assert (len(splits.train), len(splits.validation)) == (9, 3)
    with pytest.raises(ConfigurationError, match="has no split 'test'"):
        open_data(npz(tmp_path / "e.npz", x=COLOUR, y=LABELS), split="test")


def test_names_that_nobody_guesses(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", pictures=COLOUR, kind=LABELS)
    with pytest.raises(DataError, match=r"no images and labels in .*: it holds pictures, kind"):
        open_data(path)
    check(open_data(path, input_key="pictures", target_key="kind"))
    path = npz(tmp_path / "d.npz", images=COLOUR, data=COLOUR, labels=LABELS)
    with pytest.raises(DataError, match="images and data: which are meant"):
        open_data(path)
    check(open_data(path, input_key="data"))


def test_names_of_classes(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", images=COLOUR, labels=LABELS, class_names=["ant", "bee", "cat"])
    assert open_data(path).classes == ("ant", "bee", "cat")
    (tmp_path / "map.txt").write_text("cat\nbee\nant\n")
    assert open_data(path, class_map=tmp_path / "map.txt").targets[:3].tolist() == [2, 1, 0]
    with pytest.raises(DataError, match=r"label 2 .*names for 2 classes"):
        open_data(npz(path, images=COLOUR, labels=LABELS, classes=["ant", "bee"]))


# --- shapes, types and labels ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (GREY, GREY), (GREY[..., None], GREY), (GREY[:, None], GREY), (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (COLOUR.astype(np.int64), COLOUR), (COLOUR.astype(np.uint16), COLOUR), (COLOUR.astype(np.uint16) * 257, COLOUR),
        ((COLOUR / 255).astype(np.float32), COLOUR), (COLOUR / 255, COLOUR), (GREY > 127, (GREY > 127) * np.uint8(255)),
        ((COLOUR.transpose(0, 3, 1, 2) / 255).astype(np.float32), COLOUR),
        (np.concatenate([COLOUR, GREY[..., None]], 3), COLOUR),
    ],
)  # fmt: skip
def test_shapes_and_types(tmp_path: Path, given: np.ndarray, wanted: np.ndarray) -> None:
    check(open_data(npz(tmp_path / "d.npz", images=given, labels=LABELS)), wanted)


def test_a_conversion_is_said(tmp_path: Path) -> None:
    def said(images: np.ndarray) -> str:
        return "".join(open_data(npz(tmp_path / "d.npz", images=images, labels=LABELS)).warnings)

    assert said(COLOUR) == ""
    assert said(COLOUR.astype(np.uint16) * 257).startswith("16-bit pixels are scaled to 8 (value >> 8)")
    assert said(COLOUR.astype(np.int32)).startswith("int32 pixels are taken as 8 bits: none is above 255")
    assert said(COLOUR / 255).startswith("float64 pixels are scaled to 8 bits (value × 255)")


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (COLOUR.astype(np.float32), "got float32 from 0"),
        (COLOUR / 127.5 - 1, "got float64 from -1"),
        (np.full_like(GREY, np.nan, dtype=np.float32), "got float32 from nan"),
        (COLOUR.astype(np.int32) - 1, "got int32 from -1"),
        (COLOUR.astype(np.int32) * 300, "got int32 from 0"),
        (COLOUR.reshape(12, -1), r"got \(12, 144\)"),
        (np.zeros((12, 3, 9, 3), np.uint8), r"got \(12, 3, 9, 3\)"),
        (np.zeros((12, 8, 8, 5), np.uint8), r"got \(12, 8, 8, 5\)"),
        (COLOUR.astype(str), "expected numbers"),
        (COLOUR[:7], "7 images and 12 labels"),
    ],
)
def test_images_that_are_refused(tmp_path: Path, images: np.ndarray, what: str) -> None:
    with pytest.raises(DataError, match=what):
        open_data(npz(tmp_path / "d.npz", images=images, labels=LABELS))


@pytest.mark.parametrize(
    "labels",
    [LABELS[:, None], LABELS.astype(np.uint8), LABELS.astype(np.float32), np.eye(3)[LABELS], np.eye(3, dtype=bool)[LABELS]],
)  # fmt: skip
def test_labels(tmp_path: Path, labels: np.ndarray) -> None:
    examples = open_data(npz(tmp_path / "d.npz", images=COLOUR, labels=labels))
    check(examples)
    assert ("one-hot" in "".join(examples.warnings)) == (labels.ndim == 2 and labels.shape[1] == 3)


def test_labels_that_are_texts(tmp_path: Path) -> None:
    texts = np.array(["bee", "ant", "cat"])[LABELS]
    for given in (texts, texts.astype(bytes)):
        examples = open_data(npz(tmp_path / "d.npz", images=COLOUR, labels=given))
        assert examples.classes == ("ant", "bee", "cat")
        assert [examples.classes[t] for t in examples.targets] == texts.tolist()
        assert "3 classes in the order of text" in examples.warnings[0]


def test_labels_that_begin_at_one(tmp_path: Path) -> None:
    (said,) = open_data(npz(tmp_path / "d.npz", images=COLOUR, labels=LABELS + 1)).warnings
    assert said.startswith("labels run from 1 to 3: none is 0")


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (LABELS - 1, "label -1 .* is negative"), (LABELS + 0.5, "whole numbers"), (np.full(12, np.nan), "whole numbers"),
        (RNG.integers(0, 2, (12, 14)), r"one label for each image .* \(12, 14\)"), (np.zeros((12, 2, 2)), "one label"),
    ],
)  # fmt: skip
def test_labels_that_are_refused(tmp_path: Path, labels: np.ndarray, what: str) -> None:
    with pytest.raises(DataError, match=what):
        open_data(npz(tmp_path / "d.npz", images=COLOUR, labels=labels))


# --- nothing in the file is run ------------------------------------------------------------------


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch harmed",)


def refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path if path.is_dir() else path.parent)
    with pytest.raises(UntrustedError, match=r"would run code|Python objects") as error:
        open_data(path, split="test" if path.is_dir() else None)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3
    assert not Path("harmed").exists()


@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "cifar"])
def test_objects_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"images.{kind}"
    harmful = np.array([Harmful()] * 12, dtype=object)
    if kind == "npz":
        npz(path, images=harmful, labels=LABELS)
    elif kind == "npy":
        np.save(path, harmful, allow_pickle=True)
        np.save(tmp_path / "labels.npy", LABELS)
    elif kind == "pt":
        torch.save((Harmful(), torch.from_numpy(LABELS)), path)
    else:
        path = cifar10(tmp_path / "cifar", data=Harmful())
    refused(path, monkeypatch)


def test_an_array_of_objects_in_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(cifar10(tmp_path / "cifar", data=np.array([[1], None], dtype=object)), monkeypatch)


@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "cifar"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"images.{kind}"
    if kind == "npz":
        npz(path, images=COLOUR, labels=LABELS)
    elif kind == "npy":
        np.save(path, COLOUR)
        np.save(tmp_path / "labels.npy", LABELS)
    elif kind == "pt":
        torch.save((torch.from_numpy(COLOUR), torch.from_numpy(LABELS)), path)
    else:
        path = cifar10(tmp_path / "cifar") / "test_batch"
    whole = path.read_bytes()
    data = path.parent if kind == "cifar" else path
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            try:
                examples = open_data(data, split="test" if kind == "cifar" else None)
                pixels(examples)
            except AlphatuneError as error:
                assert "\n" not in error.message  # noqa: PT017
    path.write_bytes(whole)


# --- CIFAR, MNIST ---------------------------------------------------------------------------------

CIFAR = RNG.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)


def cifar10(folder: Path, data: object = None) -> Path:
    """As published: pickles of Python 2, whose texts are bytes."""
    folder.mkdir(parents=True)
    rows = CIFAR.transpose(0, 3, 1, 2).reshape(6, -1)
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        content = {
            b"data": (rows + np.uint8(i)) if data is None else data,
            b"labels": [(k + i) % 10 for k in range(6)], b"batch_label": b"a batch", b"filenames": [b"x.png"] * 6,
        }  # fmt: skip
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = {b"label_names": [f"class {i}".encode() for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    (folder / "readme.html").write_text("page")
    return folder


def cifar100(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, name in enumerate(("train", "test")):
        content = {
            "data": CIFAR.transpose(0, 3, 1, 2).reshape(6, -1) + np.uint8(i),
            "fine_labels": [k * 7 for k in range(6)], "coarse_labels": [0] * 6,
        }  # fmt: skip
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine {i}" for i in range(100)]}))
    return folder


@pytest.mark.parametrize("packed", [None, "tar", "tar.gz"])
@pytest.mark.parametrize("kind", ["10", "100"])
def test_cifar(tmp_path: Path, kind: str, packed: str | None) -> None:
    path = (
        cifar10(tmp_path / "cifar-10-batches-py") if kind == "10" else cifar100(tmp_path / "cifar-100-python")
    )
    if packed:
        archive = tmp_path / f"cifar.{packed}"
        with tarfile.open(archive, "w:gz" if packed == "tar.gz" else "w") as tar:
            tar.add(path, path.name)
        path = archive
    examples = open_data(path, split="test")
    if kind == "10":
        check(examples, CIFAR + np.uint8(5), (np.arange(6) + 5) % 10)
        train = open_data(path, split="train")
        check(
            train,
            np.concatenate([CIFAR + np.uint8(i) for i in range(5)]),
            (np.arange(30) % 6 + np.arange(30) // 6) % 10,
        )
        assert examples.classes[3] == "class 3"
    else:
        check(examples, CIFAR + np.uint8(1), np.arange(6) * 7)
        assert examples.classes[14] == "fine 14"
    with pytest.raises(ConfigurationError, match="holds the splits test, train and no validation split"):
        open_data(path)
    assert fingerprint(examples) != fingerprint(open_data(path, split="train"))


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, ">u4").tobytes()
        + array.astype(np.uint8).tobytes()
    )


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_mnist(tmp_path: Path, packed: str) -> None:
    for split, shift in (("train", 0), ("t10k", 1)):
        for kind, array in (("images-idx3", GREY + np.uint8(shift)), ("labels-idx1", (LABELS + shift) % 3)):
            content = idx(array)
            (tmp_path / f"{split}-{kind}-ubyte{packed}").write_bytes(
                gzip.compress(content) if packed else content
            )
    check(open_data(tmp_path, split="test"), GREY + np.uint8(1), (LABELS + 1) % 3)
    check(open_data(tmp_path, split="train"), GREY)
    file = tmp_path / f"t10k-images-idx3-ubyte{packed}"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="t10k-images"):
        open_data(tmp_path, split="test")


@pytest.mark.parametrize("form", ["pair", "splits", "splits of dictionaries"])
def test_torch_files(tmp_path: Path, form: str) -> None:
    pair = (torch.from_numpy(COLOUR).permute(0, 3, 1, 2), torch.from_numpy(LABELS))
    content = {
        "pair": pair,
        "splits": {"train": pair, "val": pair},
        "splits of dictionaries": {"val": {"data": pair[0], "targets": pair[1]}},
    }[form]
    torch.save(content, tmp_path / "d.pt")
    check(open_data(tmp_path / "d.pt"))
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}, "epoch": 3}, tmp_path / "d.pt")
    with pytest.raises(DataError, match=r"no images and labels in .*: it holds .*epoch"):
        open_data(tmp_path / "d.pt")


# --- data sets that were saved --------------------------------------------------------------------


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label"), ("photo", "kind")])
@pytest.mark.parametrize("splits", [False, True])
def test_a_saved_data_set(tmp_path: Path, image: str, label: str, splits: bool) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            image: datasets.Image(),
            label: datasets.ClassLabel(names=["ant", "bee", "cat"]),
        }
    )
    rows = [{"id": i, image: Image.fromarray(COLOUR[i]), label: int(LABELS[i])} for i in range(12)]
    table = datasets.Dataset.from_list(rows, features=features)
    (datasets.DatasetDict({"train": table, "validation": table}) if splits else table).save_to_disk(
        tmp_path / "set"
    )
    examples = open_data(tmp_path / "set")
    check(examples)
    assert examples.classes == ("ant", "bee", "cat")
    assert examples.split == ("validation" if splits else "")
    assert fingerprint(examples)
    two = Batches(examples.decoded_by("pil"), Preprocessing((3, 8, 8), crop_pct=1.0), 4, CPU, 2)
    assert sum(len(batch) for batch in two.host_batches()) == 12
    if image == "photo":
        check(open_data(tmp_path / "set", input_key=image, target_key=label))
        with pytest.raises(
            ConfigurationError, match=f"no column of images called picture; it has id, {image}, {label}"
        ):
            open_data(tmp_path / "set", input_key="picture")


def test_labels_of_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    def save(labels: list[object]) -> Path:
        rows = {"image": [Image.fromarray(COLOUR[i]) for i in range(3)], "label": labels}
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(
            tmp_path / str(labels[0])
        )
        return tmp_path / str(labels[0])

    examples = open_data(save(["bee", "ant", "bee"]))
    assert (examples.classes, examples.targets.tolist()) == (("ant", "bee"), [1, 0, 1])
    with pytest.raises(DataError, match=r"1 of 3 examples of .* have no label, the first is row 1"):
        open_data(save([1, None, 0]))
    with pytest.raises(DataError, match="one label for each image"):
        open_data(save([[1, 1, 0], [0, 0, 1], [0, 0, 0]]))


# --- everything else about examples ---------------------------------------------------------------


def test_limit_cache_workers_and_fingerprint(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "d.npz", val_images=COLOUR, val_labels=LABELS, test_images=COLOUR, test_labels=LABELS
    )
    examples = open_data(path).limit(6, seed=1)
    np.testing.assert_array_equal(pixels(examples), COLOUR[examples.indices])
    one = Batches(examples, Preprocessing((3, 8, 8), crop_pct=1.0), 4, CPU)
    two = with_cache(Batches(examples, one.preprocessing, 4, CPU, 2), "ram")
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.ids, second.ids)
    assert fingerprint(open_data(path)) == fingerprint(open_data(path))
    assert fingerprint(open_data(path)) != fingerprint(open_data(path, split="test"))
    before = fingerprint(open_data(path))
    npz(path, val_images=COLOUR + np.uint8(1), val_labels=LABELS, test_images=COLOUR, test_labels=LABELS)
    assert fingerprint(open_data(path)) != before


def test_tune(tmp_path: Path, tiny_checkpoint: Path, run: Run) -> None:
    images = RNG.integers(0, 256, (40, 12, 12, 3)).astype(np.uint8)
    path = npz(tmp_path / "d.npz", test_images=images, test_labels=np.arange(40)[:, None] % 4)
    code, out, err = run("tune", TINY, "--checkpoint", tiny_checkpoint, "--data", path, "--split", "test",
                         "--input-size", 12, "--alphas", "0,0.1", "--workers", 0, "--format", "json",
                         "-o", tmp_path / "out")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["data"]["split"] == "test"
    assert files_of(open_data(path, split="test")) == [str(path)]  # what a result that is kept depends on


def test_training(tmp_path: Path, run: Run) -> None:
    images = RNG.integers(0, 256, (60, 12, 12, 3)).astype(np.uint8)
    path = npz(tmp_path / "d.npz", train_images=images[:40], train_labels=np.arange(40) % 4,
               val_images=images[40:], val_labels=np.arange(20) % 4)  # fmt: skip
    code, _, err = run("train", TINY, "--data", path, "--input-size", 12, "--epochs", 1, "--batch-size", 8,
                         "--workers", 0, "--format", "json", "-q", "-o", tmp_path / "out")  # fmt: skip
    assert code == 0, err


def test_what_is_in_no_array_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", COLOUR)
    with pytest.raises(DataError, match="no images and labels"):
        open_data(tmp_path / "images.npy")
    with io.BytesIO() as file:
        np.save(file, COLOUR)
        (tmp_path / "d.npz").write_bytes(file.getvalue())
    with pytest.raises(DataError, match=r"cannot read .*d\.npz"):
        open_data(tmp_path / "d.npz")
