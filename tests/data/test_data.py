"""Folders, archives and dataset strings: order, labels, limits, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, write_images
from PIL import Image
from timm.data import get_img_extensions

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError, ResourceError
from alphatune.data.custom_loader import LoaderBatches
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples
from alphatune.data.loading import Batches, automatic_batch_size
from alphatune.data.preprocessing import Preprocessing

PREPROCESSING = Preprocessing().override(input_size=(12,), crop_pct=1.0)


def batches(examples: Examples, batch_size: int = 5, workers: int = 0) -> Batches:
    return Batches(examples, PREPROCESSING, batch_size, torch.device("cpu"), workers)


def all_of(loaded: Batches) -> tuple[torch.Tensor, list[int], list[int]]:
    parts = list(loaded)
    return (
        torch.cat([b.inputs for b in parts]),
        torch.cat([b.targets for b in parts]).tolist(),
        torch.cat([b.ids for b in parts]).tolist(),
    )


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tar_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.add(file, file.relative_to(folder), recursive=False)
    return path


# --- folders and archives --------------------------------------------------------------------


def test_folder_and_archive_give_the_same_examples(image_folder: Path, tmp_path: Path) -> None:
    archive = tar_of(image_folder, tmp_path / "images.tar")
    folder_images, folder_targets, folder_ids = all_of(batches(open_data(image_folder)))
    tar_images, tar_targets, tar_ids = all_of(batches(open_data(archive)))
    assert torch.equal(folder_images, tar_images)
    assert folder_targets == tar_targets
    assert folder_ids == tar_ids == list(range(48))
    assert open_data(image_folder).classes == CLASSES


def test_pixels_are_those_of_torchvision(image_folder: Path) -> None:
    from torchvision import transforms

    file = sorted((image_folder / "ant").iterdir())[0]
    reference = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std)]
    )(Image.open(file).convert("RGB"))
    images, _, _ = all_of(batches(open_data(image_folder)))
    assert torch.equal(images[0], reference)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_workers_change_nothing(image_folder: Path, tmp_path: Path, workers: int, kind: str) -> None:
    data = image_folder if kind == "folder" else tar_of(image_folder, tmp_path / "images.tar")
    examples = open_data(data)
    expected = all_of(batches(examples))  # opens the archive in this process first
    got = all_of(batches(examples, workers=workers))
    assert torch.equal(got[0], expected[0])
    assert got[1:] == expected[1:]


def test_a_temporary_folder_with_a_long_path(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that handed tensors over by a socket in it, whose path must be short, were waited for forever."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    examples = open_data(image_folder)
    expected, got = all_of(batches(examples)), all_of(batches(examples, workers=2))
    assert torch.equal(got[0], expected[0])
    assert list(folder.iterdir()) == []


def test_split_subfolder_goes_by_any_of_its_names(tmp_path: Path) -> None:
    write_images(tmp_path / "val", per_class=1)
    write_images(tmp_path / "train", per_class=2)
    assert len(open_data(tmp_path)) == 4
    assert len(open_data(tmp_path, split="train")) == 8


def test_formats_beyond_jpeg_and_png_are_not_dropped(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "d", per_class=1)
    for suffix in ("bmp", "webp", "tiff", "ppm", "JPG"):
        Image.new("RGB", (12, 12)).save(folder / "ant" / f"x.{suffix}")
    before = get_img_extensions()
    assert Counter(open_data(folder).targets.tolist())[0] == 6
    assert get_img_extensions() == before


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_other_pixel_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "d" / "a"
    folder.mkdir(parents=True)
    Image.new(mode, (20, 14)).save(folder / ("x.tiff" if mode in ("CMYK", "I;16") else "x.png"))
    images, _, _ = all_of(batches(open_data(tmp_path / "d")))
    assert images.shape == (1, 3, 12, 12)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"this is text", "truncated"])
def test_unreadable_image_is_named_not_replaced(tmp_path: Path, workers: int, content: bytes | str) -> None:
    folder = write_images(tmp_path / "d", per_class=3)
    victim = folder / "bee" / "001.png"
    victim.write_bytes(victim.read_bytes()[:300] if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"bee/001\.png") as error:
        all_of(batches(open_data(folder), workers=workers))
    assert "\n" not in str(error.value)


def test_archive_that_holds_an_image_twice_is_refused(image_folder: Path, tmp_path: Path) -> None:
    archive = tar_of(image_folder, tmp_path / "images.tar")
    with tarfile.open(archive, "a") as again:
        again.add(image_folder / "ant" / "003.png", "ant/003.png")
    with pytest.raises(DataError, match=r"ant/003\.png twice"):
        open_data(archive)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing", "no such folder"),
        (lambda p: (p / "e").mkdir() or p / "e", "no images found"),
        (lambda p: put(p / "x.tar", b""), "no images|cannot read"),
        (lambda p: put(p / "x.tar", b"junk" * 400), "cannot read"),
        (lambda p: put(p / "x.tar.gz", b"junk"), "cannot read .*x.tar.gz"),
        (lambda p: put(p / "x.zip", b"junk"), "cannot read .*x.zip"),
        (lambda p: put(p / "x.rar", b"junk"), "expected a folder"),
    ],
    ids=["missing", "empty", "empty tar", "corrupt tar", "tar.gz", "zip", "rar"],
)
def test_what_cannot_be_opened_says_so(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(make(tmp_path))


# --- class maps and limits -------------------------------------------------------------------


def test_class_map_relabels_by_name(image_folder: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "map.txt"
    mapping.write_text("zebra\ndog\ncat\nbee\nant\n")
    examples = open_data(image_folder, class_map=mapping)
    assert examples.targets[:12].tolist() == [4] * 12
    assert examples.classes == ("zebra", "dog", "cat", "bee", "ant")


def test_class_map_that_lacks_a_folder_is_an_error_not_a_drop(image_folder: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "map.txt"
    mapping.write_text("ant\nbee\ncat\n")
    with pytest.raises(DataError, match="'dog'"):
        open_data(image_folder, class_map=mapping)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the class map"),
        (b"\xff\xfe\x00", "cannot read the class map"),
        (b"", "is empty"),
        (b"ant\n\nbee\ncat\ndog\n", "line 2 .* is empty"),
        (b"ant\nbee\ncat\nant\ndog\n", "line 4 .* repeats 'ant'"),
    ],
)
def test_unusable_class_map(image_folder: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "map.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_data(image_folder, class_map=path)


def test_class_map_from_windows(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_bytes("\ufeffdog\r\ncat\r\nbee\r\nant\r\n\r\n".encode())
    assert open_data(image_folder, class_map=path).targets[0] == 3


# --- splits ----------------------------------------------------------------------------------


def test_train_and_test_are_never_mixed(tmp_path: Path) -> None:
    """timm labels an image by its innermost folder, so both splits would look like one set."""
    for split in ("train", "test"):
        write_images(tmp_path / "d" / split, per_class=1)
    with pytest.raises(ConfigurationError, match="splits test, train"):
        open_data(tmp_path / "d")
    with pytest.raises(ConfigurationError, match="no split 'tset'") as error:
        open_data(tmp_path / "d", split="tset")
    assert "test, train" in error.value.hint
    examples = open_data(tmp_path / "d", split="test")
    assert (len(examples), examples.split) == (4, "test")
    archive = tar_of(tmp_path / "d", tmp_path / "d.tar")
    for split in (None, "test"):
        with pytest.raises(ConfigurationError, match="archive of the splits test, train"):
            open_data(archive, split=split)


def test_a_class_may_be_called_valid(tmp_path: Path) -> None:
    write_images(tmp_path / "d", per_class=2, classes=("invalid", "valid"))
    assert open_data(tmp_path / "d").classes == ("invalid", "valid")


def test_images_outside_class_folders(image_folder: Path) -> None:
    with pytest.raises(DataError, match="outside class folders"):
        open_data(image_folder / "ant")


def test_a_split_that_is_not_there(image_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="no split 'test'"):
        open_data(image_folder, split="test")


def test_limit_is_stratified_seeded_and_ordered() -> None:
    targets = np.repeat([0, 1, 2], [50, 30, 20])
    examples = Examples("", "", "", (), targets, np.arange(100), load=None)
    part = examples.limit(10, seed=1)
    assert Counter(part.targets.tolist()) == {0: 5, 1: 3, 2: 2}
    assert (np.diff(part.indices) > 0).all()
    assert (targets[part.indices] == part.targets).all()
    assert np.array_equal(part.indices, examples.limit(10, seed=1).indices)
    assert not np.array_equal(part.indices, examples.limit(10, seed=2).indices)
    assert len(examples.limit(7, 0)) == 7
    assert examples.limit(1000, 0) is examples
    with pytest.raises(ConfigurationError):
        examples.limit(0, 0)


def test_limited_run_is_a_subset(image_folder: Path) -> None:
    examples = open_data(image_folder)
    images, targets, _ = all_of(batches(examples))
    part = all_of(batches(examples.limit(9, seed=3), workers=2))
    assert len(part[2]) == 9
    assert torch.equal(part[0], images[part[2]])
    assert part[1] == [targets[i] for i in part[2]]


# --- timm dataset strings --------------------------------------------------------------------


def test_torch_dataset(tmp_path: Path) -> None:
    """CIFAR-10 in the layout torchvision downloads, made here."""
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], ""]]:
        content = {"data": rng.integers(0, 255, (6, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3, 4, 5]}
        if name == CIFAR10.meta["filename"]:
            content = {"label_names": [f"class {i}" for i in range(10)]}
        (base / name).write_bytes(pickle.dumps(content))
    digest = lambda n: hashlib.md5((base / n).read_bytes()).hexdigest()  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:  # torchvision checks the download's hash
        patch.setattr(CIFAR10, "train_list", [[n, digest(n)] for n, _ in CIFAR10.train_list])
        patch.setattr(CIFAR10, "test_list", [[n, digest(n)] for n, _ in CIFAR10.test_list])
        patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digest(CIFAR10.meta["filename"])})
        examples = open_data("torch/cifar10", data_root=str(tmp_path))
    assert len(examples) == 6
    assert examples.classes[3] == "class 3"
    images, targets, _ = all_of(batches(examples, workers=2))
    assert images.shape == (6, 3, 12, 12)
    assert targets == [0, 1, 2, 3, 4, 5]


def test_torch_image_folder_string(image_folder: Path) -> None:
    examples = open_data("torch/image_folder", data_root=str(image_folder))
    assert examples.classes == CLASSES
    assert torch.equal(all_of(batches(examples))[0], all_of(batches(open_data(image_folder)))[0])


def test_hugging_face_dataset(image_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"image": {"bytes": f.read_bytes(), "path": f.name}, "label": CLASSES.index(f.parent.name)}
        for f in sorted(image_folder.rglob("*.png"))
    ]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    folder = tmp_path / "set"
    folder.mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "validation-00000.parquet")
    examples = open_data(f"hfds/{folder}", data_root=str(tmp_path / "cache"))
    assert examples.classes == CLASSES
    got = all_of(batches(examples, workers=2))
    expected = all_of(batches(open_data(image_folder)))
    assert torch.equal(got[0], expected[0])
    assert got[1] == expected[1]
    mapping = tmp_path / "map.txt"
    mapping.write_text("\n".join(reversed(CLASSES)))
    assert open_data(f"hfds/{folder}", data_root=str(tmp_path / "cache"), class_map=mapping).targets[0] == 3


def write_webdataset(folder: Path, images: Path, broken: int | None = None) -> Path:
    folder.mkdir()
    files = sorted(images.rglob("*.png"))
    with tarfile.open(folder / "val-000000.tar", "w") as archive:
        for i, file in enumerate(files):
            content = file.read_bytes() if i != broken else b"no image"
            label = str(CLASSES.index(file.parent.name)).encode()
            for suffix, data in (("png", content), ("cls", label)):
                info = tarfile.TarInfo(f"{i:05}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    split = {
        "name": "validation",
        "num_samples": len(files),
        "filenames": ["val-000000.tar"],
        "shard_lengths": [len(files)],
    }
    (folder / "_info.json").write_text(json.dumps({"splits": {"validation": split}}))
    return folder


@pytest.mark.parametrize("address", ["", "pipe:cat "])
@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset(image_folder: Path, tmp_path: Path, address: str, workers: int) -> None:
    pytest.importorskip("webdataset")
    folder = write_webdataset(tmp_path / "wds", image_folder)
    examples = open_data(f"wds/{address}{folder}")
    expected = all_of(batches(open_data(image_folder)))
    got = all_of(batches(examples, workers=workers))
    assert torch.equal(got[0], expected[0])
    assert got[1:] == expected[1:]
    part = all_of(batches(examples.limit(9, seed=3), workers=workers))
    assert torch.equal(part[0], expected[0][part[2]])


def test_broken_image_in_a_stream_is_not_skipped(image_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    folder = write_webdataset(tmp_path / "wds", image_folder, broken=7)
    with pytest.raises(DataError, match="unreadable example after 7 others"):
        open_data(f"wds/pipe:cat {folder}")


@pytest.mark.parametrize(
    ("data", "options", "kind"),
    [
        ("torch/nothing_known", {"data_root": "."}, AlphatuneError),
        ("torch/cifar10", {}, ConfigurationError),
        ("torch/cifar10", {"data_root": "/nonexistent"}, DataError),
        ("hfds//nonexistent/set", {}, AlphatuneError),
        ("wds//nonexistent/set", {}, AlphatuneError),
    ],
)
def test_dataset_strings_that_cannot_be_opened(data: str, options: dict, kind: type) -> None:
    with pytest.raises(kind) as error:
        open_data(data, **options)
    assert "\n" not in str(error.value)


# --- loaders ---------------------------------------------------------------------------------


def test_a_loader_of_ones_own() -> None:
    got = list(
        LoaderBatches(
            [(torch.zeros(2, 3), [1, 0]), (torch.zeros(1, 3), torch.tensor([2]))], torch.device("cpu")
        )
    )
    assert [b.targets.tolist() for b in got] == [[1, 0], [2]]
    assert [b.ids.tolist() for b in got] == [[0, 1], [2]]


@pytest.mark.parametrize(
    "item", [torch.zeros(2, 3), (torch.zeros(2, 3), torch.full((2,), 0.5)), (torch.zeros(2, 3), [1])]
)
def test_a_loader_of_something_else_is_refused(item: object) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        list(LoaderBatches([item], torch.device("cpu")))


def test_a_source_that_shrinks_is_noticed(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    examples = open_data(folder)
    (folder / "ant" / "000.png").unlink()
    with pytest.raises(DataError, match=r"ant/000\.png"):
        all_of(batches(examples))


def test_columns_of_other_names(image_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"img": {"bytes": next(image_folder.rglob("*.png")).read_bytes(), "path": None}, "fine_label": 2}]
    features = datasets.Features(
        {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=list(CLASSES))}
    )
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "set" / "validation-0.parquet")
    examples = open_data(
        f"hfds/{tmp_path / 'set'}", data_root=str(tmp_path / "c"), input_key="img", target_key="fine_label"
    )
    assert all_of(batches(examples))[1] == [2]


def test_a_worker_that_dies_is_a_resource_error() -> None:
    def die(index: int) -> tuple[object, str]:
        os._exit(9)

    examples = Examples("memory", "", "", (), np.zeros(8, dtype=np.int64), np.arange(8), load=die)
    with pytest.raises(ResourceError, match="worker process"):
        list(batches(examples, workers=1))


def test_batch_size_depends_on_the_image_size_alone() -> None:
    sizes = [
        automatic_batch_size(Preprocessing(input_size=(3, s, s)), torch.device("cpu"))
        for s in (32, 224, 2000)
    ]
    assert sizes == [128, 32, 8]
