"""Labels in a file: every image gets its own, or the file is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from conftest import TINY, Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples
from alphatune.data.splits import open_splits

LABELS = {"a.png": "cat", "b.png": "dog", "c 1.png": "cat", "d,2.png": "eel", "é.png": "dog"}


def put_images(root: Path, names: Any) -> Path:
    """One-pixel images, each of a colour of its own."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1), (number % 256, number // 256, 7)).save(path, "PNG")
    return root


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_images(tmp_path_factory.mktemp("flat"), LABELS)


def labels_of(examples: Examples, root: Path | None = None) -> dict[str, str]:
    """What each image is labelled as; the image is known by its name, not its place."""
    assert examples.load is not None
    found = {}
    for index, target in zip(examples.indices, examples.targets, strict=True):
        name = Path(examples.load(int(index))[1]).name
        found[name] = examples.classes[target] if examples.classes else str(target)
    return found


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(rows: list[list[str]], delimiter: str = ",", end: str = "\n") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    return text.getvalue()


# --- forms -----------------------------------------------------------------------------------

PAIRS = [list(pair) for pair in LABELS.items()]
STEMS = [[name.removesuffix(".png"), label] for name, label in PAIRS]
BOXES = [[stem, f"{label} 85 1 499 272 {label} 1 2 3 4"] for stem, label in STEMS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", table([["file", "label"], *PAIRS])),
        ("windows.csv", b"\xef\xbb\xbf" + table([["file", "label"], *PAIRS], end="\r\n").encode()),
        ("utf-16.csv", table([["file", "label"], *PAIRS]).encode("utf-16")),
        ("no-header.csv", table(PAIRS)),
        ("label-first.csv", table([["class", "image_id"], *[[label, stem] for stem, label in STEMS]])),
        ("more.csv", table([["lesion", "image_id", "dx", "age"], *[["x1", s, x, "50"] for s, x in STEMS]])),
        ("semicolons.csv", table([["id", "species"], *PAIRS], ";")),
        ("l.tsv", table(PAIRS, "\t")),
        ("kaggle.csv", table([["ImageId", "PredictionString"], *BOXES])),
        ("val_annotations.txt", table([[n, x, "0", "32", "44", "62"] for n, x in PAIRS], "\t")),
        ("caffe.txt", "\n".join(f"{n} {x}" for n, x in PAIRS)),
        ("folders.txt", "\n".join(f"/data/val/{n} {x}" for n, x in PAIRS)),
        ("windows.txt", "\n".join(f"D:\\sets\\val\\{n}\t{x}" for n, x in PAIRS)),
        ("bucket.csv", table([["path", "label"], *[[f"s3://bucket/val/{n}", x] for n, x in PAIRS]])),
        ("dots.csv", table([["path", "label"], *[[f"./{n}", x] for n, x in PAIRS]])),
        ("metadata.jsonl", "\n".join(json.dumps({"file_name": n, "label": x, "box": [1]}) for n, x in PAIRS)),
        ("l.json", json.dumps([{"file_name": n, "label": x} for n, x in PAIRS])),
        ("map.json", json.dumps(LABELS)),
        ("by-class.json", json.dumps({c: [n for n, x in PAIRS if x == c] for c in ("cat", "dog", "eel")})),
        ("dataset.json", json.dumps({"labels": PAIRS})),
        ("order.txt", "\n".join(LABELS[n] for n in sorted(LABELS))),
        ("nfd.csv", unicodedata.normalize("NFD", table([["file", "label"], *PAIRS]))),
    ],
)
def test_forms_are_known_by_their_content(
    tmp_path: Path, flat: Path, name: str, content: str | bytes
) -> None:
    path = written(tmp_path, name, content)
    examples = open_data(flat, labels=path)
    assert labels_of(examples) == LABELS
    assert examples.classes == ("cat", "dog", "eel")
    assert "'cat' is output 0" in examples.warnings[-1]
    archive = tmp_path / "flat.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(flat, "val")
    assert labels_of(open_data(archive, labels=path)) == LABELS


def test_parquet(tmp_path: Path, flat: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "l.parquet"
    frame = pandas.DataFrame({"file_name": list(LABELS), "label": list(LABELS.values()), "raw": [b"x"] * 5})
    frame.to_parquet(path)
    assert labels_of(open_data(flat, labels=path)) == LABELS
    frame["label"] = [3, 1, 0, 2, 1]
    frame.to_parquet(path)
    assert labels_of(open_data(flat, labels=path)) == dict(zip(LABELS, "31021", strict=True))
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot read the labels"):
        open_data(flat, labels=path)


def test_numbers_stay_numbers(tmp_path: Path, flat: Path) -> None:
    for cells in (["3", "1", "0", "2", "1"], ["3.0", "1.0", "0.0", "2.0", "1.0"]):
        path = written(
            tmp_path, "l.csv", table([["file", "label"], *map(list, zip(LABELS, cells, strict=True))])
        )
        examples = open_data(flat, labels=path)
        assert labels_of(examples) == dict(zip(LABELS, "31021", strict=True))
        assert examples.classes == ()
        assert "labels are numbers, of the model's outputs from 0" in examples.warnings[-1]


def test_labels_named_by_a_class_map(tmp_path: Path, flat: Path) -> None:
    path = written(tmp_path, "l.csv", table(PAIRS))
    mapping = written(tmp_path, "map.txt", "eel\ndog\nant\ncat\n")
    examples = open_data(flat, labels=path, class_map=mapping)
    assert labels_of(examples) == LABELS
    assert examples.targets.max() == 3
    ids = written(
        tmp_path, "ids.csv", table([[n, {"cat": "7", "dog": "9", "eel": "12"}[x]] for n, x in PAIRS])
    )
    mapping = written(tmp_path, "ids.txt", "12\n7\n9\n")
    assert labels_of(open_data(flat, labels=ids, class_map=mapping))["a.png"] == "7"


def test_columns_are_shown_and_chosen(tmp_path: Path, flat: Path) -> None:
    rows = [["left", "right", "label", "class"]] + [
        [n, f"{i}.png", x, str(i)] for i, (n, x) in enumerate(PAIRS)
    ]
    path = written(tmp_path, "l.csv", table(rows))
    with pytest.raises(ConfigurationError, match=r"which column .* 'label', 'class'") as error:
        open_data(flat, labels=path)
    assert "`label_column" in error.value.hint
    examples = open_data(flat, labels=path, label_column="label")
    assert "images by column 'left', labels by column 'label'" in examples.warnings[-1]
    assert labels_of(examples) == LABELS
    assert labels_of(open_data(flat, labels=path, path_column="1", label_column="3")) == LABELS
    with pytest.raises(DataError, match=r"5 of 5 labels .* '0\.png'"):
        open_data(flat, labels=path, path_column="right", label_column="label")
    with pytest.raises(ConfigurationError, match="no column 'lable'") as error:
        open_data(flat, labels=path, label_column="lable")
    assert "label" in error.value.hint


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (PAIRS[:-1], "1 of 5 images .* have no label .*é.png"),
        ([*PAIRS, ["z.png", "cat"]], "1 of 6 labels .* 'z.png' .line 6."),
        ([["z.png", "cat"], *PAIRS], "1 of 6 labels .* 'z.png' .line 1."),
        ([*PAIRS, ["a", "dog"]], "a.png twice: line 1 and line 6"),
        ([*PAIRS[:-1], ["é.png", ""]], "line 5 .* has no label"),
        ([["a.png", "cat", "x"], *PAIRS[1:]], "line 2 .* has 2 columns, line 1 has 3"),
        ([["q.png", "cat"]], "no column .* names images"),
        ([[n, "-1"] for n in LABELS], "label -1"),
        ([[n] for n in LABELS], "images and nothing else"),
    ],
)
def test_every_image_is_named_once(tmp_path: Path, flat: Path, rows: list[list[str]], message: str) -> None:
    with pytest.raises(AlphatuneError, match=message):
        open_data(flat, labels=written(tmp_path, "l.csv", table(rows)))


def test_a_name_that_may_be_of_two_images(tmp_path: Path) -> None:
    data = put_images(tmp_path / "d", ["x/1.png", "y/1.png", "2.png"])
    rows = [["x/1.png", "cat"], ["y/1.png", "dog"], ["2.png", "eel"]]
    examples = open_data(data, labels=written(tmp_path, "l.csv", table(rows)))
    found = {
        Path(examples.load(int(i))[1]).parent.name: examples.classes[t]
        for i, t in zip(examples.indices, examples.targets, strict=True)
    }  # type: ignore[misc]
    assert (found["x"], found["y"]) == ("cat", "dog")
    with pytest.raises(DataError, match=r"line 2 .* may be 2 images: .*1\.png"):
        open_data(
            data, labels=written(tmp_path, "l.csv", table([["x/1.png", "cat"], ["1.png", "dog"], rows[2]]))
        )
    with pytest.raises(DataError, match=r"labels .* 'z/1\.png'"):
        open_data(data, labels=written(tmp_path, "l.csv", table([rows[0], ["z/1.png", "dog"], rows[2]])))


def test_labels_alone_need_one_order(tmp_path: Path) -> None:
    data = put_images(tmp_path / "d", [f"{i:02}.png" for i in range(12)])
    path = written(tmp_path, "l.txt", "\n".join(str(i) for i in range(12)))
    assert labels_of(open_data(data, labels=path)) == {f"{i:02}.png": str(i) for i in range(12)}
    with pytest.raises(DataError, match="12 labels and no paths, for 13 images"):
        open_data(put_images(data, ["99.png"]), labels=path)
    unpadded = put_images(tmp_path / "u", [f"im{i}.png" for i in range(12)])
    with pytest.raises(DataError, match="order of the images is not clear"):
        open_data(unpadded, labels=path)


def test_the_devkit_has_an_order_of_its_own(tmp_path: Path) -> None:
    from scipy.io import savemat

    data = put_images(tmp_path / "d", ["ILSVRC2012_val_1.png", "ILSVRC2012_val_2.png"])
    truth = written(tmp_path, "ILSVRC2012_validation_ground_truth.txt", "2\n1\n")
    with pytest.raises(ConfigurationError, match="development kit") as error:
        open_data(data, labels=truth)
    assert "meta.mat" in error.value.hint
    listed = written(tmp_path, "ids.txt", "2\n1\n")
    assert open_data(data, labels=truth, class_map=listed).targets.tolist() == [0, 1]
    synsets = np.array([(1, "n02119789"), (2, "n01440764")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    examples = open_data(data, labels=truth)
    assert examples.classes == ("n01440764", "n02119789")
    assert examples.targets.tolist() == [0, 1]


# --- manifests, splits, images without labels ------------------------------------------------


def test_a_list_is_data(tmp_path: Path, flat: Path) -> None:
    beside = written(flat, "list.csv", table([["path", "label"], *PAIRS]))
    for manifest, root in (
        (beside, None),
        (written(tmp_path, "far.csv", table([[str(flat / n), x] for n, x in PAIRS])), None),
        (
            written(tmp_path, "root.jsonl", "\n".join(json.dumps({"image": n, "y": x}) for n, x in PAIRS)),
            flat,
        ),
    ):
        examples = open_data(manifest, data_root=root and str(root))
        assert labels_of(examples) == LABELS
        assert examples.numbered_by_name
    beside.unlink()
    with pytest.raises(DataError, match=r"no column .* names images in"):
        open_data(written(tmp_path, "lost.csv", table(PAIRS)))
    with pytest.raises(DataError, match=r"1 of 6 images .* 'gone.png' .line 6."):
        open_data(written(flat, "gone.csv", table([*PAIRS, ["gone.png", "cat"]])))
    with pytest.raises(DataError, match="twice: line 1 and line 6"):
        open_data(written(flat, "twice.csv", table([*PAIRS, ["./a.png", "cat"]])))
    for name in ("gone.csv", "twice.csv"):
        (flat / name).unlink()
    with pytest.raises(ConfigurationError, match="do not go with"):
        open_data(flat, path_column="x")
    with pytest.raises(ConfigurationError, match="do not go with"):
        open_data("cifar10", data_root=str(flat), labels=beside)


def test_splits_are_subfolders(tmp_path: Path) -> None:
    names = [f"{split}/{i}.png" for split in ("train", "val") for i in range(8)]
    data = put_images(tmp_path / "d", names)
    rows = [[n, "ab"[i % 2]] for i, n in enumerate(names)]
    path = written(tmp_path, "l.csv", table(rows))
    examples = open_data(data, labels=path)
    assert (examples.split, len(examples)) == ("val", 8)
    assert labels_of(examples)["3.png"] == "b"
    with pytest.raises(ConfigurationError, match="no split 'test'"):
        open_data(data, labels=path, split="test")
    splits = open_splits(str(data), labels=str(path))
    assert (splits.train.split, splits.validation.split) == ("train", "val")
    held = open_splits(str(data), labels=str(path), train_split="train", val_fraction=0.25)
    assert (len(held.train), len(held.validation)) == (6, 2)


def test_images_without_labels(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    rng = np.random.default_rng(0)
    data = tmp_path / "bare"
    data.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(data / f"{i}.png")
    labelled = tmp_path / "l.csv"
    labelled.write_text(table([[f"{i}.png", str(i % 4)] for i in range(12)]))
    how = (TINY, "--checkpoint", tiny_checkpoint, "--input-size", 12, "--workers", 0)
    code, out, err = run("inspect", *how, "--data", data, "--format", "json")
    assert code == 0, err
    assert json.loads(out)["data"]["n"] == 12
    code, out, err = run(
        "tune", *how, "--data", data, "--labels", labelled, "--recalibrate", data, "--alphas", "0,0.1",
        "-o", tmp_path / "out", "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["recalibration"]["data"]["n"] == 12
    assert document["data"]["labels"] == str(labelled)
    assert f'labels = "{labelled}"' in (tmp_path / "out" / "run.toml").read_text()
    code, _, err = run("evaluate", *how, "--data", data)
    assert (code, "--labels FILE" in err) == (3, True)
    code, out, err = run(
        "evaluate", *how, "--data", data, "--config", tmp_path / "out/run.toml", "--format", "json"
    )
    assert code == 0, err
    one_based = tmp_path / "one.csv"
    one_based.write_text(table([[f"{i}.png", str(i % 4 + 1)] for i in range(12)]))
    code, _, err = run("evaluate", *how, "--data", data, "--labels", one_based)
    assert (code, "the labels run from 1 to 4" in err) == (2, True)


@pytest.mark.parametrize(
    ("form", "option", "key", "network"),
    [("zip", "--recalibrate", "recalibration", "tiny"), ("gztar", "--calibrate", "calibration", "grouped")],
)
def test_flat_archives(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, form: str, option: str, key: str, network: str
) -> None:
    """What a folder of images without classes is good for, an archive of them is too, with the same figures."""
    rng = np.random.default_rng(0)
    bare = tmp_path / "bare"
    bare.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(bare / f"{i}.png")
    data = Path(shutil.make_archive(str(tmp_path / "packed"), form, bare))
    labels = tmp_path / "l.csv"
    labels.write_text(table([[f"{i}.png", str(i % 4)] for i in range(12)]))

    def document(*words: object, model: str = TINY) -> dict[str, Any]:
        how = ("--input-size", 12, "--workers", 0, "--format", "json")
        weights = ("--checkpoint", tiny_checkpoint) if model == TINY else ()
        code, out, err = run(words[0], model, *weights, *how, *words[1:])
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    measured = [document("evaluate", "--data", d, "--labels", labels)["metrics"] for d in (data, bare)]
    assert measured[0] == measured[1]
    assert document("inspect", "--data", data)["data"]["n"] == 12
    more = ("--labels", labels, "--alphas", "0,0.1", "-o", tmp_path / "out", option, data)
    tuned = document("tune", "--data", data, *more, model=TINY.replace(":tiny", f":{network}"))
    assert tuned[key]["data"]["n"] == 12


def test_a_label_that_changes_is_another_job(tmp_path: Path, flat: Path) -> None:
    from alphatune.data.fingerprint import fingerprint

    prints = set()
    for label in ("cat", "dog"):
        path = written(tmp_path, "l.csv", table([["a.png", label], *PAIRS[1:]]))
        prints.add(fingerprint(open_data(flat, labels=path)))
    assert len(prints) == 2


def test_a_label_that_is_also_a_name_is_no_path(tmp_path: Path) -> None:
    """Found by hypothesis: the label 0 is 0.png without its ending."""
    put_images(tmp_path / "d", ["0.png"])
    labels = written(tmp_path, "l.csv", "0,/data/x/0.png\n")
    assert labels_of(open_data(tmp_path / "d", labels=labels)) == {"0.png": "0"}


@pytest.mark.parametrize(
    "text", ["/data/x/0.png,0\n", "0,/data/x/0.png\n", "file_name,label\n/data/x/0.png,0\n"]
)
def test_paths_of_images_that_are_elsewhere_are_no_labels(tmp_path: Path, text: str) -> None:
    """Found by hypothesis, with images in a folder of another name."""
    put_images(tmp_path / "d", ["images/0.png"])
    labels = written(tmp_path, "l.csv", text)
    with pytest.raises(ConfigurationError, match="names the images"):
        open_data(tmp_path / "d", labels=labels)
    with pytest.raises(DataError, match=r"/data/x/0\.png"):
        open_data(tmp_path / "d", labels=labels, path_column="2" if text[0] == "0" else "1")


def test_a_column_called_name_is_believed_beside_one_of_paths(tmp_path: Path) -> None:
    put_images(tmp_path / "d", ["a/0.png", "a/1.png"])
    labels = written(tmp_path, "l.csv", "name,mask,label\n0,masks/0.png,cat\n1,masks/1.png,dog\n")
    assert labels_of(open_data(tmp_path / "d", labels=labels)) == {"0.png": "cat", "1.png": "dog"}


# --- against a plain reading -----------------------------------------------------------------

WORD = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp"))
    | st.sampled_from("01 ,\"'é;._-"),
    min_size=1,
    max_size=6,
).map(lambda t: t.strip().strip("."))
STEM = WORD.filter(lambda t: t and "/" not in t and "\\" not in t and len(t.encode()) < 60)


@given(
    stems=st.lists(
        STEM, min_size=1, max_size=7, unique_by=lambda t: unicodedata.normalize("NFC", t).casefold()
    ),
    data=st.data(),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_never_a_label_off_by_one(
    tmp_path_factory: pytest.TempPathFactory, stems: list[str], data: Any
) -> None:
    """Rows in any order, with or without header, folders, endings, further columns: the label of each, or a refusal."""
    folder = data.draw(st.sampled_from(["", "images/", "a/b/"]))
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    names = {stem: f"{folder}{unicodedata.normalize(form, stem)}.png" for stem in stems}
    root = tmp_path_factory.mktemp("d")
    put_images(root, names.values())
    kind = data.draw(st.sampled_from(["words", "numbers"]))
    one = WORD.filter(bool) if kind == "words" else st.integers(0, 99).map(str)
    truth = {stem: data.draw(one) for stem in stems}
    leading = data.draw(st.sampled_from(["", "images/", "/data/x/", "./"]))
    ending = data.draw(st.sampled_from([".png", ""]))
    rows = [[f"{leading}{stem}{ending}", label] for stem, label in truth.items()]
    rows = data.draw(st.permutations(rows))
    if data.draw(st.booleans()):
        rows = [[*row, str(i)] for i, row in enumerate(rows)]
    if data.draw(st.booleans()):
        rows = [["file_name", "label", "count"][: len(rows[0])], *rows]
    swapped = data.draw(st.booleans())
    rows = [row[::-1] for row in rows] if swapped else rows
    text = table(rows, data.draw(st.sampled_from(",;\t")), data.draw(st.sampled_from(["\n", "\r\n"])))
    written_as = data.draw(st.sampled_from(["csv", "json"]))
    if written_as == "json" and rows[0][-1 if swapped else 0] == "file_name":
        text = json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
    text = data.draw(st.sampled_from(["", "\ufeff"])) + unicodedata.normalize(
        data.draw(st.sampled_from(["NFC", "NFD"])), text
    )
    path = written(tmp_path_factory.mktemp("l"), "labels.txt", text)
    try:
        examples = open_data(root, labels=path)
    except AlphatuneError:
        return
    found = labels_of(examples)

    def plain(label: str) -> str:
        return unicodedata.normalize("NFC", label)

    expected = {Path(names[stem]).name: plain(label) for stem, label in truth.items()}
    if not examples.classes:
        expected = {name: str(int(float(label))) for name, label in expected.items()}
    assert found == expected


def test_plain_files_are_not_refused(tmp_path: Path) -> None:
    """The property above would hold if all were refused: here is what must be read."""
    rng = np.random.default_rng(0)
    names = [f"im {i}.png" for i in range(30)]
    data = put_images(tmp_path / "d", names)
    labels = {n: f"class, {rng.integers(5)}" for n in names}
    for delimiter in ",;\t":
        for header in ([], [["image", "label"]]):
            rows = header + [[n, x] for n, x in sorted(labels.items(), key=lambda _: rng.random())]
            path = written(tmp_path, "l.txt", table(rows, delimiter))
            assert labels_of(open_data(data, labels=path)) == labels


@pytest.mark.parametrize("listed", [True, False])
def test_padded_numbers_are_names_to_a_class_map(image_folder: Path, tmp_path: Path, listed: bool) -> None:
    """001 is not output 1 where the map lists 001 first; and refused where it lists other names."""
    images = sorted(path.relative_to(image_folder) for path in image_folder.rglob("*.png"))
    classes = sorted({str(path.parent) for path in images})
    rows = [f"{path},{classes.index(str(path.parent)) + 1:03}" for path in images]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "map.txt").write_text("\n".join(f"{n + 1:03}" if listed else f"c{n}" for n in range(5)))
    how = {"labels": tmp_path / "labels.csv", "class_map": tmp_path / "map.txt"}
    if listed:
        assert sorted(set(open_data(image_folder, **how).targets.tolist())) == [0, 1, 2, 3]
    else:
        with pytest.raises(DataError, match="4 of 4 classes are not in"):
            open_data(image_folder, **how)
