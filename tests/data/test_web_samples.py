"""WebDatasets in files: shards, keys, labels, and every sample once in one order."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TESTS, Run
from PIL import Image

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError
from alphatune.data.cache import with_cache
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples
from alphatune.data.fingerprint import fingerprint
from alphatune.data.label_order import is_ambiguous
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.readable import without_unreadable
from alphatune.data.splits import open_splits
from alphatune.jobs.opening import resolved_paths
from alphatune.settings import TuneSettings

NAMES = ["cat", "ant", "bee"] * 4
TRUTH = [2, 0, 1] * 4
CPU = torch.device("cpu")
Members = dict[str, bytes]


def image(i: int, kind: str = "PNG") -> bytes:
    """A grey image whose brightness says which it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (10 * i,) * 3).save(buffer, kind)
    return buffer.getvalue()


def shard(path: Path, samples: Sequence[Members], start: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i, members in enumerate(samples, start):
            for key, content in members.items():
                info = tarfile.TarInfo(f"{i:05}.{key}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def labelled(label: Callable[[int], Members], count: int = 12) -> list[Members]:
    return [{"png": image(i), **label(i)} for i in range(count)]


def by_number(count: int = 12) -> list[Members]:
    return labelled(lambda i: {"cls": str(TRUTH[i % 12]).encode()}, count)


def three_shards(folder: Path, samples: Sequence[Members], stem: str = "s") -> Path:
    """Of 5, 5 and 2 samples."""
    for number in range(3):
        shard(folder / f"{stem}-{number:03}.tar", samples[5 * number : 5 * number + 5], 5 * number)
    return folder


def read(examples: Examples, workers: int = 0, batch_size: int = 5) -> tuple[list[int], list[int], list[int]]:
    """Which images came, their labels and their ids."""
    batches = Batches(examples, Preprocessing((3, 6, 6), crop_pct=1.0), batch_size, CPU, workers)
    parts = list(batches.host_batches())
    which = [round(float(i.float().mean()) / 10) for part in parts for i in part.inputs]
    return which, [int(t) for p in parts for t in p.targets], [int(t) for p in parts for t in p.ids]


# --- shards -----------------------------------------------------------------------------------------


def test_shards_without_info_are_counted_and_read_in_order(tmp_path: Path) -> None:
    folder = three_shards(tmp_path / "set", by_number())
    (folder / "._s-000.tar").write_bytes(b"what a Mac leaves")
    names = [folder / f"s-{n:03}.tar" for n in range(3)]
    for location in (
        folder,
        folder / "s-{000..002}.tar",
        folder / "s-00{0,1,2}.tar",
        folder / "s-*.tar",
        folder / "s-00[0-2].tar",
        "::".join(map(str, names)),
        f"file:{folder}/s-{{000..002}}.tar",
    ):
        examples = open_data(f"wds/{location}")
        assert len(examples) == 12
        assert read(examples) == (list(range(12)), TRUTH, list(range(12))), location
        assert examples.warnings == ()
    assert read(open_data(f"wds/{folder}", split="s-{001..002}.tar"))[0] == list(range(5, 12))
    assert read(open_data(f"wds/{folder}", split="s-{001..002}.tar|7"))[0] == list(range(5, 12))
    assert len(open_data(f"wds/{names[2]}")) == 2
    assert len(open_data("wds/set/s-{000..001}.tar", data_root=str(tmp_path))) == 10
    assert len(open_data("wds/whatever", data_root=str(folder))) == 12


def test_ten_comes_after_two(tmp_path: Path) -> None:
    samples = by_number()
    for number in range(12):
        shard(tmp_path / f"s{number}.tar", samples[number : number + 1])
    for location in (tmp_path, tmp_path / "s*.tar"):
        assert read(open_data(f"wds/{location}"))[0] == list(range(12))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_does_not_depend_on_workers(tmp_path: Path, workers: int) -> None:
    examples = open_data(f"wds/{three_shards(tmp_path, by_number())}")
    assert read(examples, workers) == (list(range(12)), TRUTH, list(range(12)))
    assert read(examples, workers, batch_size=1) == read(examples)
    part = examples.take(np.array([1, 6, 7, 11]))
    assert read(part, workers)[0] == [1, 6, 7, 11]
    assert read(pickle.loads(pickle.dumps(examples)), workers) == read(examples)


def test_several_processes_see_every_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader does not share out shards by itself, which would leave each process a part of its part."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    examples = open_data(f"wds/{three_shards(tmp_path, by_number())}")
    assert read(examples)[0] == list(range(12))
    info = {"name": "validation", "num_samples": 12, "shard_lengths": [5, 5, 2]}
    info["filenames"] = [f"s-{n:03}.tar" for n in range(3)]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": info}}))
    pytest.importorskip("webdataset")
    assert read(open_data(f"wds/pipe:cat {tmp_path}"))[0] == list(range(12))


@pytest.mark.parametrize("layout", ["names", "folders", "info"])
def test_splits(tmp_path: Path, layout: str) -> None:
    samples = by_number()
    if layout == "folders":
        three_shards(tmp_path / "train", samples)
        shard(tmp_path / "val" / "s-000.tar", by_number(3))
    else:
        three_shards(tmp_path, samples, "my-train")
        shard(tmp_path / "my-val-000.tar", by_number(3))
    if layout == "info":
        splits = {
            split: {"name": split, "filenames": sorted(p.name for p in tmp_path.glob(f"*{split}*")),
                    "num_samples": count, "shard_lengths": lengths}
            for split, count, lengths in (("train", 12, [5, 5, 2]), ("val", 3, [3]))
        }  # fmt: skip
        (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    data = f"wds/{tmp_path}"
    assert len(open_data(data)) == len(open_data(data, split="validation")) == 3
    assert read(open_data(data, split="train"))[0] == list(range(12))
    with pytest.raises(ConfigurationError, match=r"no split 'test' \(it has: train, val\)"):
        open_data(data, split="test")
    found = open_splits(data)
    assert (len(found.train), len(found.validation)) == (12, 3)


def test_training_holds_out_of_shards_without_splits(tmp_path: Path) -> None:
    found = open_splits(f"wds/{three_shards(tmp_path, by_number())}", val_fraction=0.25)
    assert sorted([*found.train.indices, *found.validation.indices]) == list(range(12))
    assert len(open_splits(f"wds/{tmp_path}/s-*.tar", val_fraction=0.25).validation) == 3


def test_a_shard_that_is_in_training_and_validation(tmp_path: Path) -> None:
    three_shards(tmp_path, labelled(lambda i: {"cls": b"1"}))
    found = open_splits(f"wds/{tmp_path}/s-{{000..001}}.tar", val_data=f"wds/{tmp_path}/s-002.tar")
    assert (len(found.train), len(found.validation)) == (10, 2)
    for how in (
        {"data": f"wds/{tmp_path}", "split": "s-002.tar"},
        {"data": f"wds/{tmp_path}/s-*.tar", "val_data": f"wds/{tmp_path}/s-002.tar"},
        {"data": f"wds/{tmp_path}", "train_split": "s-{000..001}.tar", "split": "s-{001..002}.tar"},
    ):
        with pytest.raises(DataError, match="are the same"):
            open_splits(**how)


@pytest.mark.parametrize(
    ("data", "split", "kind", "said"),
    [
        ("s-{000..004}.tar", None, DataError, "2 of 5 shards of .* are not there, first .*s-003.tar"),
        ("t-*.tar", None, DataError, r"no shard is called .*t-\*.tar"),
        ("t-{0..1}.tar", None, DataError, "2 of 2 shards"),
        ("absent", None, DataError, "1 of 1 shards"),
        ("s-{000,000}.tar", None, DataError, r"names .*s-000.tar twice"),
        ("s-{000..002}.tar", "validation", ConfigurationError, "has no splits"),
        ("", "validation", ConfigurationError, "no split 'validation'"),
        ("", "u-{0..1}.tar", DataError, "2 of 2 shards"),
        ("empty", None, DataError, "no shards in"),
    ],
)
def test_shards_that_are_not_there(tmp_path: Path, data: str, split: str, kind: type, said: str) -> None:
    three_shards(tmp_path, by_number())
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind, match=said) as error:
        open_data(f"wds/{tmp_path}/{data}", split=split)
    assert "\n" not in str(error.value)


def test_the_number_that_info_gives_is_compared(tmp_path: Path) -> None:
    info = {"name": "validation", "num_samples": 13, "shard_lengths": [5, 5, 2]}
    info["filenames"] = [f"s-{n:03}.tar" for n in range(3)]
    three_shards(tmp_path, by_number())
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": info}}))
    (said,) = open_data(f"wds/{tmp_path}").warnings
    assert "holds 12 samples, and its _info.json or pattern says 13" in said
    (tmp_path / "_info.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*_info\.json"):
        open_data(f"wds/{tmp_path}")


@pytest.mark.parametrize("left", [0.3, 0.5, 0.77])
def test_a_truncated_shard_is_named(tmp_path: Path, left: float) -> None:
    three_shards(tmp_path, by_number())
    content = (tmp_path / "s-001.tar").read_bytes()
    used = 5 * 4 * 512  # two headers and two blocks a sample
    (tmp_path / "s-001.tar").write_bytes(content[: int(used * left)])
    with pytest.raises(DataError, match=r"s-001\.tar"):
        open_data(f"wds/{tmp_path}")


def test_compressed_shards(tmp_path: Path) -> None:
    import gzip

    plain = shard(tmp_path / "plain.tar", by_number())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "s.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read(open_data(f"wds/{tmp_path / 'set'}"), workers=1)[:2] == (list(range(12)), TRUTH)


def test_content_identifies_the_data(tmp_path: Path) -> None:
    before = fingerprint(open_data(f"wds/{three_shards(tmp_path, by_number())}"))
    assert before == fingerprint(open_data(f"wds/{tmp_path}"))
    samples = by_number()
    samples[3]["png"] = image(20)
    assert before != fingerprint(open_data(f"wds/{three_shards(tmp_path, samples)}"))


# --- keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "kind"),
    [("jpg", "JPEG"), ("jpeg", "JPEG"), ("JPEG", "JPEG"), ("PNG", "PNG"), ("webp", "WEBP"), ("ppm", "PPM"),
     ("bmp", "BMP"), ("input.png", "PNG"), ("image.png", "PNG")],
)  # fmt: skip
def test_keys_of_images(tmp_path: Path, key: str, kind: str) -> None:
    samples = [{key: image(i, kind), "cls": b"%d" % t} for i, t in enumerate(TRUTH)]
    examples = open_data(f"wds/{shard(tmp_path / 's.tar', samples)}")
    assert read(examples)[:2] == (list(range(12)), TRUTH)
    said = [] if key.lower() in ("jpg", "jpeg", "png", "webp") else [key]
    assert ["images by key" in w and k in w for w, k in zip(examples.warnings, said, strict=True)] == [
        True
    ] * len(said)


def test_each_sample_has_its_own_kind_of_image(tmp_path: Path) -> None:
    kinds = [("jpg", "JPEG"), ("png", "PNG"), ("JPEG", "JPEG")] * 4
    samples = [
        {"cls": b"0", key: image(i, kind), "seg.png": image(20)} for i, (key, kind) in enumerate(kinds)
    ]
    assert read(open_data(f"wds/{shard(tmp_path / 's.tar', samples)}"))[0] == list(range(12))


def test_members_need_not_be_neighbours_and_junk_is_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        add("README", b"x")
        add("__meta__.json", b"{}")
        for i, t in enumerate(TRUTH):
            add(f"./a/{i:02}.cls", b"%d\n" % t)
            add(f"./a/._{i:02}.png", b"x")
        for i in range(12):
            add(f"./a/{i:02}.png", image(i))
    assert read(open_data(f"wds/{tmp_path / 's.tar'}"))[:2] == (list(range(12)), TRUTH)


def test_keys_that_cannot_be_guessed(tmp_path: Path) -> None:
    two = shard(tmp_path / "two.tar", [{"png": image(i), "jpg": image(20), "cls": b"0"} for i in range(3)])
    with pytest.raises(ConfigurationError, match=r"image of 00000 in .*two\.tar\? There is png, jpg"):
        open_data(f"wds/{two}")
    assert read(open_data(f"wds/{two}", input_key="png"))[0] == [0, 1, 2]
    assert read(open_data(f"wds/{two}", input_key="tif;png;jpg"))[0] == [0, 1, 2]
    with pytest.raises(
        ConfigurationError, match="no images of the key pnk; its keys are png, jpg, cls"
    ) as error:
        open_data(f"wds/{two}", input_key="pnk")
    assert "did you mean png" in error.value.hint
    with pytest.raises(ConfigurationError, match="key or field klass; its keys are png, jpg, cls"):
        open_data(f"wds/{two}", input_key="png", target_key="klass")
    bare = shard(tmp_path / "bare.tar", [{"png": image(i)} for i in range(3)])
    with pytest.raises(ConfigurationError, match="has no labels; its keys are png"):
        open_data(f"wds/{bare}")
    assert open_data(f"wds/{bare}", labelled=False).targets.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("lacks", "said"), [("png", "no image"), ("cls", r"no label \(cls\)")])
def test_samples_without_image_or_label_are_named(tmp_path: Path, lacks: str, said: str) -> None:
    samples = by_number()
    for i in (7, 9):
        samples[i].pop(lacks)
        samples[i]["note"] = b"x"
    with pytest.raises(
        DataError, match=rf"2 of 12 samples .* {said}, first 00007 in .*s-001\.tar, which has"
    ):
        open_data(f"wds/{three_shards(tmp_path, samples)}")


def test_a_sample_that_comes_twice_in_a_shard(tmp_path: Path) -> None:
    with tarfile.open(shard(tmp_path / "s.tar", by_number()), "a") as archive:
        info = tarfile.TarInfo("00003.png")
        archive.addfile(info, io.BytesIO(b""))
    with pytest.raises(DataError, match=r"s\.tar holds 00003\.png twice"):
        open_data(f"wds/{tmp_path / 's.tar'}")


# --- labels -----------------------------------------------------------------------------------------

LABELS: dict[str, Callable[[int], Members]] = {
    "cls": lambda i: {"cls": b" %d\n" % TRUTH[i]},
    "CLS": lambda i: {"CLS": b"%d" % TRUTH[i]},
    "txt": lambda i: {"txt": b"%d" % TRUTH[i]},
    "label": lambda i: {"label": b"%d" % TRUTH[i], "txt": b"a caption"},
    "json": lambda i: {"json": json.dumps({"label": TRUTH[i], "id": i}).encode()},
    "json class": lambda i: {"json": json.dumps({"class_id": TRUTH[i], "width": i}).encode()},
    "json one-hot": lambda i: {"json": json.dumps({"label": np.eye(3)[TRUTH[i]].tolist()}).encode()},
    "json and cls": lambda i: {"json": json.dumps({"label": 7}).encode(), "cls": b"%d" % TRUTH[i]},
    "json without and txt": lambda i: {"json": b'{"width": 7}', "txt": b"%d" % TRUTH[i]},
}


@pytest.mark.parametrize("kind", list(LABELS))
def test_numbers(tmp_path: Path, kind: str) -> None:
    examples = open_data(f"wds/{three_shards(tmp_path, labelled(LABELS[kind]))}")
    assert examples.targets.tolist() == TRUTH
    assert bool(examples.warnings) == (kind not in ("cls", "CLS", "json and cls"))


@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
@pytest.mark.parametrize("mapped", [False, True])
def test_names(tmp_path: Path, kind: str, mapped: bool) -> None:
    order = ["dog", "cat", "bee", "ant"]
    (tmp_path / "map.txt").write_text("\n".join(order))
    text = lambda i: json.dumps({"label": NAMES[i]}) if kind == "json" else NAMES[i] + "\n"  # noqa: E731
    folder = three_shards(tmp_path / "set", labelled(lambda i: {kind: text(i).encode()}))
    examples = open_data(f"wds/{folder}", class_map=tmp_path / "map.txt" if mapped else None)
    assert [examples.classes[t] for t in examples.targets] == NAMES
    assert examples.classes == (tuple(order) if mapped else ("ant", "bee", "cat"))
    assert any("'ant' is output 0" in said for said in examples.warnings) == (not mapped)


def test_numbers_by_a_class_map(tmp_path: Path) -> None:
    """Of ids that the map lists; of outputs, where it does not list numbers."""
    (tmp_path / "ids.txt").write_text("2\n1\n0\n")
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    folder = three_shards(tmp_path / "set", by_number())
    assert open_data(f"wds/{folder}", class_map=tmp_path / "ids.txt").targets.tolist() == [0, 2, 1] * 4
    assert open_data(f"wds/{folder}", class_map=tmp_path / "names.txt").targets.tolist() == TRUTH


def test_texts_of_numbers_are_numbers(tmp_path: Path) -> None:
    folder = three_shards(tmp_path, labelled(lambda i: {"cls": b"%02d" % i}))
    assert open_data(f"wds/{folder}").targets.tolist() == list(range(12))


def test_a_field_that_is_told(tmp_path: Path) -> None:
    content = lambda i: {"label": 0, "real": {"y": TRUTH[i]}, "z": TRUTH[i]}  # noqa: E731
    data = f"wds/{three_shards(tmp_path, labelled(lambda i: {'json': json.dumps(content(i)).encode()}))}"
    assert open_data(data, target_key="z").targets.tolist() == TRUTH
    assert open_data(data, target_key="real.y").targets.tolist() == TRUTH
    with pytest.raises(ConfigurationError, match="field zz; the fields of json are label, real, z"):
        open_data(data, target_key="zz")


def test_the_field_that_info_names(tmp_path: Path) -> None:
    three_shards(tmp_path, labelled(lambda i: {"cls": b"0", "json": json.dumps({"real": TRUTH[i]}).encode()}))
    info = {"name": "validation", "num_samples": 12, "shard_lengths": [5, 5, 2], "alt_label": "real"}
    info["filenames"] = [f"s-{n:03}.tar" for n in range(3)]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": info}}))
    examples = open_data(f"wds/{tmp_path}")
    assert examples.targets.tolist() == TRUTH
    assert "labels by field 'real' of json" in examples.warnings[0]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (lambda i: {"cls": b"-1" if i == 6 else b"1"}, r"so are 1 of 12, first 00006 in .*s-001\.tar"),
        (
            lambda i: {"cls": b"" if i == 6 else b"1"},
            r"1 of 12 .* no label, the first is 00006 in .*s-001\.tar",
        ),
        (lambda i: {"json": b'{"label": null}' if i > 5 else b'{"label": 1}'}, "6 of 12 .* no label.* 00006"),
        (
            lambda i: {"json": b"{}" if i == 6 else b'{"label": 1}'},
            "no field label in their json, first 00006",
        ),
        (lambda i: {"json": b"{" if i == 6 else b'{"label": 1}'}, r"cannot read the label \(json\) of 00006"),
        (lambda i: {"cls": b"\xff\xfe" if i == 6 else b"1"}, r"cannot read the label \(cls\) of 00006"),
        (
            lambda i: {"json": b'{"label": "a"}' if i == 6 else b'{"label": 1}'},
            r"texts and numbers: 1 \(00000 in .*, 'a' \(00006",
        ),
        (lambda i: {"json": b'{"label": [0, 1, 1]}'}, "one label for each image"),
        (lambda i: {"json": b'{"label": [0]}' if i else b'{"label": [0, 1]}'}, r"got 2 \(00000"),
        (lambda i: {"json": b'{"label": {"a": 1}}'}, "one label for each image"),
        (lambda i: {"json": b'{"label": 1.5}'}, r"fractions or NaN in 12 of 12, first 1\.5 \(00000"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, label: Callable[[int], Members], said: str) -> None:
    with pytest.raises(AlphatuneError, match=said) as error:
        open_data(f"wds/{three_shards(tmp_path, labelled(label))}")
    assert isinstance(error.value, DataError)


def test_names_reach_the_checks_of_their_order(tmp_path: Path) -> None:
    folder = three_shards(tmp_path, labelled(lambda i: {"cls": b"class %d" % i}))
    assert is_ambiguous(open_data(f"wds/{folder}"))


# --- what shards can do as any other images do ----------------------------------------------------------


def test_images_that_cannot_be_read_are_named_or_left_out(tmp_path: Path) -> None:
    samples = by_number()
    samples[6]["png"] = b"no image"
    examples = open_data(f"wds/{three_shards(tmp_path, samples)}")
    with pytest.raises(DataError, match=r"s-001\.tar/00006\.png"):
        read(examples)
    batches = Batches(examples, Preprocessing((3, 6, 6), crop_pct=1.0), 5, CPU)
    kept, left_out = without_unreadable(batches, "skip")
    assert (len(kept), len(left_out)) == (11, 1)
    assert read(kept.examples)[0] == [i for i in range(12) if i != 6]


def test_limit_and_cache(tmp_path: Path) -> None:
    examples = open_data(f"wds/{three_shards(tmp_path, by_number())}").limit(6, seed=1)
    assert np.bincount(examples.targets).tolist() == [2, 2, 2]
    assert read(examples)[0] == examples.indices.tolist()
    plain = Batches(examples, Preprocessing((3, 6, 6), crop_pct=1.0), 4, CPU)
    for one, other in zip(with_cache(replace(plain, workers=2), "ram"), plain, strict=True):
        assert torch.equal(one.inputs, other.inputs)


def test_patterns_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_shards(tmp_path / "set", by_number())
    monkeypatch.chdir(tmp_path)
    for data in ("wds/set/s-{000..002}.tar", "wds/set/s-*.tar", "wds/set/s-000.tar::set/s-001.tar"):
        found = resolved_paths(TuneSettings(model="resnet18", data=data)).data
        expected = len(open_data(data))
        monkeypatch.chdir("/")
        assert len(open_data(found)) == expected
        monkeypatch.chdir(tmp_path)
    settings = TuneSettings(model="resnet18", data="wds/s-{0..2}.tar", data_root=str(tmp_path))
    assert resolved_paths(settings) == settings


def test_faults_are_one_line_and_have_their_exit_codes(
    tmp_path: Path, tiny_checkpoint: Path, run: Run
) -> None:
    three_shards(tmp_path / "set", labelled(lambda i: {"cls": NAMES[i].encode()}))
    (tmp_path / "map.txt").write_text("dog\ncat\nbee\nant\n")
    model = f"{TESTS / 'tiny.py'}:tiny"
    how = ["--input-size", "12", "--mean", "0,0,0", "--std", "1,1,1", "--crop-pct", "1", "--workers", "0"]
    command = ["evaluate", model, "--checkpoint", tiny_checkpoint, *how, "--data"]
    for data, options, expected, said in (
        ("set", [], 2, "3 classes, the model 4 outputs"),
        ("set", ["--class-map", tmp_path / "map.txt", "--input-key", "jpg"], 2, "its keys are png, cls"),
        ("set/t-*.tar", [], 3, "no shard is called"),
    ):
        code, out, err = run(*command, f"wds/{tmp_path / data}", *options)
        assert (code, out, len(err.splitlines())) == (expected, "", 1), err
        assert said in err
    code, _, err = run(*command, f"wds/{tmp_path / 'set'}", "--class-map", tmp_path / "map.txt", "-q")
    assert (code, err) == (0, "")
    assert "HF_HUB_DISABLE_PROGRESS_BARS" in os.environ


def test_a_folder_of_shards_without_the_prefix_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_data(str(three_shards(tmp_path, by_number())))
    assert "wds/" in str(error.value)
