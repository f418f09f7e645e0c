"""Data sets that Hugging Face's ``datasets`` reads: columns, labels, splits, and what they say."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, Run
from PIL import Image

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples
from alphatune.data.fingerprint import fingerprint
from alphatune.data.label_order import is_ambiguous
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.splits import open_splits

datasets = pytest.importorskip("datasets")
COLOURS = [(20 * i, 255 - 20 * i, 7 * i) for i in range(12)]
NAMES = ["cat", "ant", "bee"] * 4
Open = Callable[..., Examples]


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = [png(colour) for colour in COLOURS]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Write these columns as a parquet folder, and open it."""

    def opened(columns: dict[str, Any], features: dict[str, Any] | None = None, **how: Any) -> Examples:
        return open_data(
            f"hfds/{write(tmp_path / 'set', columns, features)}", data_root=str(tmp_path / "cache"), **how
        )

    return opened


def write(
    folder: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, split: str = "validation"
) -> Path:
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(columns)
    for name, feature in (features or {}).items():
        table = table.cast_column(name, feature)
    table.to_parquet(folder / f"{split}-00000.parquet")
    return folder


def colours(examples: Examples, workers: int = 0) -> list[tuple[int, ...]]:
    loaded = Batches(
        examples, Preprocessing((3, 6, 6), crop_pct=1.0), 5, torch.device("cpu"), workers
    ).host_batches()
    return [tuple(image[:, 0, 0].tolist()) for batch in loaded for image in batch.inputs]


# --- columns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"input_key": "picture"}, "no column of images called picture; it has image, label, note"),
        ({"target_key": "labels"}, "no column of labels called labels; it has image, label, note"),
    ],
)
def test_a_column_that_is_not_there(opened: Open, keys: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        opened({"image": PNGS, "label": NAMES, "note": NAMES}, **keys)
    assert ("did you mean label?" in error.value.hint) == ("target_key" in keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"id": range(12), "note": NAMES},  # no images
        {"image": PNGS, "note": NAMES},  # no labels
        {"left": PNGS, "right": PNGS, "label": NAMES},  # which images?
        {"image": PNGS, "category": NAMES, "species": NAMES},  # which labels?
    ],
)
def test_columns_that_cannot_be_guessed_are_listed(opened: Open, columns: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        opened({name: list(values) for name, values in columns.items()})
    assert all(name in error.value.message for name in columns if name not in ("image", "label"))
    assert "`input_key" in error.value.hint or "`target_key" in error.value.hint


@pytest.mark.parametrize("name", ["image", "img", "jpg", "picture", "Image", "something"])
@pytest.mark.parametrize("kind", ["image", "bytes", "object"])
def test_columns_of_images(opened: Open, name: str, kind: str) -> None:
    cells: Any = [{"bytes": content, "path": None} for content in PNGS] if kind == "object" else PNGS
    features = {name: datasets.Image()} if kind == "image" else None
    examples = opened({name: cells, "category": [0, 1, 2] * 4, "caption": NAMES}, features)
    assert colours(examples) == COLOURS
    assert examples.targets.tolist() == [0, 1, 2] * 4
    (said,) = examples.warnings
    assert "labels by column 'category'" in said
    assert (f"images by column {name!r}" in said) == (name != "image")


def test_images_that_are_files_beside_the_table(opened: Open, tmp_path: Path) -> None:
    """Their content counts in what identifies the data."""
    paths = []
    for i, content in enumerate(PNGS):
        (tmp_path / f"{i}.png").write_bytes(content)
        paths.append(str(tmp_path / f"{i}.png"))
    examples = opened({"image": paths, "label": [0, 1, 2] * 4})
    assert colours(examples, workers=1) == COLOURS
    before = fingerprint(examples)
    (tmp_path / "3.png").write_bytes(PNGS[4])
    assert fingerprint(examples) != before


def test_a_column_of_something_else(opened: Open) -> None:
    with pytest.raises(DataError, match=r"column 'label' of .* holds no encoded images but int64"):
        opened({"image": PNGS, "label": [0] * 12}, input_key="label")
    with pytest.raises(DataError, match=r"column 'image' of .* holds no encoded images but List"):
        opened({"image": [[[0, 1], [2, 3]]] * 12, "label": [0] * 12})
    with pytest.raises(ConfigurationError, match="no column of labels called image; it has label"):
        opened({"image": PNGS, "label": [0] * 12}, target_key="image")


def test_a_damaged_table_says_what_is_wrong(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"image": PNGS, "label": NAMES})
    table = next(folder.iterdir())
    table.write_bytes(table.read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot open .*[Pp]arquet") as error:
        open_data(f"hfds/{folder}", data_root=str(tmp_path / "cache"))
    assert "\n" not in str(error.value)


def test_an_image_that_is_missing_is_named(opened: Open) -> None:
    with pytest.raises(DataError, match="no image in row 3"):
        colours(
            opened({"image": [*PNGS[:3], None, *PNGS[4:]], "label": [0] * 12}, {"image": datasets.Image()})
        )


# --- labels -----------------------------------------------------------------------------------------


def test_texts_are_numbered_in_their_order_and_said(opened: Open) -> None:
    examples = opened({"image": PNGS, "label": NAMES})
    assert [examples.classes[t] for t in examples.targets] == NAMES
    assert examples.classes == ("ant", "bee", "cat")
    (said,) = examples.warnings
    assert "3 classes in the order of text, 'ant' is output 0" in said


@pytest.mark.parametrize("classified", [False, True])
def test_a_class_map_says_which_output_a_text_is(opened: Open, tmp_path: Path, classified: bool) -> None:
    order = ["dog", "cat", "bee", "ant"]
    (tmp_path / "map.txt").write_text("\n".join(order))
    names = ["ant", "bee", "cat"]
    labels = [names.index(name) for name in NAMES] if classified else NAMES
    features = {"label": datasets.ClassLabel(names=names)} if classified else None
    examples = opened({"image": PNGS, "label": labels}, features, class_map=tmp_path / "map.txt")
    assert [order[t] for t in examples.targets] == NAMES
    assert examples.warnings == ()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_texts_of_numbers_are_never_sorted_as_texts(
    opened: Open, tmp_path: Path, mapped: bool, padded: bool
) -> None:
    """Sorted as texts, "10" would be output 2."""
    texts = [f"{i:03}" if padded else str(i) for i in range(12)]
    (tmp_path / "map.txt").write_text("\n".join(reversed(texts)))
    examples = opened({"image": PNGS, "label": texts}, class_map=tmp_path / "map.txt" if mapped else None)
    assert examples.targets.tolist() == (list(range(11, -1, -1)) if mapped else list(range(12)))
    assert len(examples.warnings) == (not mapped)


def test_labels_that_a_map_does_not_list_are_refused_though_they_look_like_numbers(
    opened: Open, tmp_path: Path
) -> None:
    (tmp_path / "map.txt").write_text("\n".join(f"class-{i}" for i in range(13)))
    with pytest.raises(DataError, match="12 of 12 classes are not in"):
        opened({"image": PNGS, "label": [f"{i:03}" for i in range(1, 13)]}, class_map=tmp_path / "map.txt")


@pytest.mark.parametrize("kind", ["int", "float", "bool", "list of one", "one-hot", "one-hot floats"])
def test_numbers(opened: Open, kind: str) -> None:
    truth = [0, 1] * 6 if kind == "bool" else [0, 1, 2] * 4
    labels: dict[str, Any] = {
        "int": truth,
        "float": [float(t) for t in truth],
        "bool": [bool(t) for t in truth],
        "list of one": [[t] for t in truth],
        "one-hot": np.eye(3, dtype=int)[truth].tolist(),
        "one-hot floats": np.eye(3)[truth].tolist() if kind != "bool" else [],
    }
    examples = opened({"image": PNGS, "label": labels[kind]})
    assert examples.targets.tolist() == truth
    assert ["one-hot" in said for said in examples.warnings] == [True] * kind.startswith("one-hot")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, None, 1, None] * 3, "6 of 12 examples of .* have no label, the first is row 1"),
        (["a", "b", "", "a"] * 3, "3 of 12 examples of .* have no label, the first is row 2"),
        ([0, 1, 2, -1] * 3, "label -1 .* so are 3 of 12, first row 3"),
        ([0, 0.5, 1, 2] * 3, r"fractions or NaN in 3 of 12, first 0\.5 \(row 1\)"),
        (
            [[0, 1, 1], [1, 0, 0]] * 6,
            "expected one label for each image .* 6 have no 1 or several, first row 0 with 2",
        ),
        ([[0], [0, 1]] * 6, r"expected one label for each image .* got 2 \(row 1\)"),
        ([[]] * 12, "12 of 12 examples of .* have no label"),
    ],
)
def test_labels_that_are_refused(opened: Open, labels: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        opened({"image": PNGS, "label": labels})
    assert "column 'label'" in error.value.message
    assert error.value.hint or "fractions" in said


def test_class_labels_without_a_label(opened: Open) -> None:
    """As test sets on the hub have them."""
    with pytest.raises(DataError, match=r"label -1 .* so are 12 of 12, first row 0") as error:
        opened({"image": PNGS, "label": [-1] * 12}, {"label": datasets.ClassLabel(names=["a", "b"])})
    assert "another split" in error.value.hint


def test_images_without_labels_will_do_where_labels_do_not_matter(opened: Open) -> None:
    for columns in (
        {"image": PNGS},
        {"image": PNGS, "label": [None] * 12},
        {"image": PNGS, "label": [-1] * 12},
    ):
        assert opened(columns, labelled=False).targets.tolist() == [0] * 12


@pytest.mark.parametrize(
    ("names", "ambiguous"), [(["2", "10"], True), (["Zebra", "apple"], True), (["ant", "bee"], False)]
)
def test_class_names_reach_the_checks_of_their_order(opened: Open, names: list[str], ambiguous: bool) -> None:
    examples = opened({"image": PNGS, "label": [0, 1] * 6}, {"label": datasets.ClassLabel(names=names)})
    assert examples.classes == tuple(names)
    assert is_ambiguous(examples) == ambiguous


def test_a_label_within_objects(opened: Open) -> None:
    examples = opened({"image": PNGS, "info": [{"y": i % 3} for i in range(12)]}, target_key="info.y")
    assert examples.targets.tolist() == [0, 1, 2] * 4


# --- splits -----------------------------------------------------------------------------------------


def test_splits_that_are_absent_list_those_that_are_there(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "set", {"image": PNGS, "label": [0, 1, 2] * 4}, split=split)
    how = {"data": f"hfds/{tmp_path / 'set'}", "data_root": str(tmp_path / "cache")}
    with pytest.raises(ConfigurationError, match="holds the splits test, train and no validation split"):
        open_data(**how)
    with pytest.raises(ConfigurationError, match=r"no split 'valid' \(it has: test, train\)"):
        open_data(**how, split="valid")
    assert open_data(**how, split="training").split == "train"
    both = open_data(**how, split="train[:2]+test[50%:]")
    assert colours(both) == [*COLOURS[:2], *COLOURS[6:]]
    assert both.targets.tolist() == [0, 1, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("train", "validation"), [("train+test", "test"), ("train[:6]", "train+test"), ("all", "test")]
)
def test_sums_of_splits_that_overlap(tmp_path: Path, train: str, validation: str) -> None:
    for split in ("train", "test"):
        write(tmp_path / "set", {"image": PNGS, "label": [0] * 12}, split=split)
    with pytest.raises(DataError, match="are the same"):
        open_splits(
            f"hfds/{tmp_path / 'set'}", data_root=str(tmp_path / "cache"), train_split=train, split=validation
        )


def test_slices_of_one_table_are_other_data(tmp_path: Path) -> None:
    """Their files are the same, and so may their labels be."""
    write(tmp_path / "set", {"image": PNGS, "label": [0] * 12}, split="train")
    how = {"data": f"hfds/{tmp_path / 'set'}", "data_root": str(tmp_path / "cache")}
    first, second = (fingerprint(open_data(**how, split=s)) for s in ("train[:6]", "train[6:]"))
    assert first is not None
    assert first != second


def test_what_save_to_disk_wrote_is_read_by_either_name(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"img": PNGS, "label": NAMES})
    datasets.DatasetDict({"validation": table}).save_to_disk(tmp_path / "set")
    plain, named = open_data(tmp_path / "set"), open_data(f"hfds/{tmp_path / 'set'}")
    assert plain.targets.tolist() == named.targets.tolist()
    assert colours(plain) == colours(named, workers=2) == COLOURS
    assert plain.classes == named.classes == ("ant", "bee", "cat")


def test_a_folder_of_images(image_folder: Path, tmp_path: Path) -> None:
    """As ``datasets`` reads class folders; each image by its own path."""
    examples = open_data(f"hfds/{image_folder}", data_root=str(tmp_path / "cache"), split="train")
    plain = open_data(image_folder)
    assert examples.classes == plain.classes == CLASSES
    assert np.bincount(examples.targets).tolist() == np.bincount(plain.targets).tolist()


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory, cifar_test: Path) -> tuple[Path, Path, list[str]]:
    """Sixty images in class folders and as a table with their names, and the options of its network."""
    import tarfile

    root = tmp_path_factory.mktemp("cifar")
    with tarfile.open(cifar_test) as archive:
        members = [m for m in archive.getmembers() if m.isfile()]
        kept = [m for i, m in enumerate(members) if i % (len(members) // 60) == 0]
        images = [archive.extractfile(m).read() for m in kept]  # type: ignore[union-attr]
    names = [Path(m.name).parent.name for m in kept]
    for i, (content, name) in enumerate(zip(images, names, strict=True)):
        (root / "folders" / name).mkdir(parents=True, exist_ok=True)
        (root / "folders" / name / f"{i}.jpg").write_bytes(content)
    write(root / "set", {"img": images, "label": names})
    weights = cifar_test.parent / "resnet-cifar10" / "resnet20-12fca82f.th"
    how = "--input-size 32 --crop-pct 1 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --format json"
    return root, weights, how.split()


@pytest.mark.slow
def test_figures_are_those_of_the_folder_and_nothing_else_is_printed(
    cifar: tuple[Path, Path, list[str]], run: Run
) -> None:
    root, weights, how = cifar
    command = ["evaluate", "alphatune.models.cifar:resnet20", "--checkpoint", weights, *how, "--data"]
    code, plain, err = run(*command, root / "folders")
    assert code == 0, err
    table = [*command, f"hfds/{root / 'set'}", "--data-root"]
    ran = subprocess.run(
        [sys.executable, "-m", "alphatune", *map(str, table), str(root / "cache"), "-q"],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    one, other = (json.loads(text)["metrics"] for text in (plain, ran.stdout))
    assert one == pytest.approx(other, abs=1e-6)
    code, _, err = run(*table, root / "second")
    lines = err.splitlines()
    assert code == 0
    assert lines
    assert all(line.startswith(("preprocessing", "warning: ", "weights taken")) for line in lines), err
    assert any("images by column 'img'" in line for line in lines)
    assert any("10 classes in the order of text" in line for line in lines)


def test_faults_are_one_line_and_have_their_exit_codes(cifar: tuple[Path, Path, list[str]], run: Run) -> None:
    root, weights, how = cifar
    write(root / "many", {"image": PNGS, "label": list(range(1, 13))})
    write(root / "none", {"image": PNGS, "label": [-1] * 12})
    command = ["evaluate", "alphatune.models.cifar:resnet20", "--checkpoint", weights, *how[:-2]]
    command += ["--data-root", root / "cache", "--data"]
    for data, options, expected, said in (
        ("set", ["--input-key", "image"], 2, "called image; it has img, label"),
        ("set", ["--target-key", "cls"], 2, "called cls; it has img, label"),
        ("set", ["--split", "test"], 2, "it has: validation"),
        ("many", [], 2, "label 12, the model 10 outputs"),
        ("none", [], 3, "so are 12 of 12"),
    ):
        code, out, err = run(*command, f"hfds/{root / data}", *options)
        assert (code, out, len(err.splitlines())) == (expected, "", 1), err
        assert said in err
