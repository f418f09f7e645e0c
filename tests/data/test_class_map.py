"""Class maps: every form that people keep them in gives the same order, or is refused with the line."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY, Run, write_images
from hypothesis import given, settings
from hypothesis import strategies as st

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.data.class_map import apply_class_map, only_present
from alphatune.data.class_map_file import read_class_map
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples

NAMES = ["ant", "bee", "cat", "dog"]
SYNSETS = ["n01440764", "n01443537", "n02012849", "n03126707"]
WORDS = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane"]


def written(folder: Path, content: str | bytes, name: str = "map.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def first_names(path: Path) -> list[str]:
    return [names[0] for names in read_class_map(path)]


# --- forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines", "ant\nbee\ncat\ndog\n"),
        ("windows", b"\xef\xbb\xbfant\r\nbee\r\ncat\r\ndog\r\n\r\n"),
        ("old-mac", "ant\rbee\rcat\rdog\r"),
        ("utf-16", "ant\nbee\ncat\ndog\n".encode("utf-16")),
        ("index-name", "0,ant\n1,bee\n2,cat\n3,dog\n"),
        ("name-index", "ant,0\nbee,1\ncat,2\ndog,3\n"),
        ("shuffled", "dog,3\nant,0\ncat,2\nbee,1\n"),
        ("header", "class_index,class_name\n0,ant\n1,bee\n2,cat\n3,dog\n"),
        ("name-header", "name,label\ndog,3\nant,0\ncat,2\nbee,1\n"),
        ("three-columns", "id,name,images\n0,ant,7\n1,bee,7\n2,cat,9\n3,dog,9\n"),
        ("tabs", "0\tant\n1\tbee\n2\tcat\n3\tdog\n"),
        ("semicolons", "3;dog\n2;cat\n1;bee\n0;ant\n"),
        ("spaces", "0 ant\n1 bee\n2 cat\n3 dog\n"),
        ("spaces-after", "dog 3\ncat 2\nbee 1\nant 0\n"),
        ("json-list", '["ant", "bee", "cat", "dog"]'),
        ("json-by-name", '{"dog": 3, "ant": 0, "bee": 1, "cat": 2}'),
        ("json-by-index", '{"3": "dog", "0": "ant", "1": "bee", "2": "cat"}'),
        (
            "config.json",
            '{"id2label": {"0": "ant", "1": "bee", "2": "cat", "3": "dog"}, "label2id": {"ant": 0}}',
        ),
        ("yaml-list", "- ant\n- bee\n- cat\n- dog\n"),
        ("yaml-by-index", "0: ant\n1: bee\n2: cat\n3: dog\n"),
        ("yaml-by-name", "dog: 3\nant: 0\ncat: 2\nbee: 1\n"),
        ("yolo", "path: ../data\ntrain: images\nnc: 4\nnames:\n  0: ant\n  1: bee\n  2: cat\n  3: dog\n"),
        ("yolo-list", "nc: 4\nnames: ['ant', 'bee', 'cat', 'dog']\n"),
        ("yaml-flow", "{0: ant, 1: bee, 2: cat, 3: dog}"),
    ],
)
def test_forms_are_known_by_their_content(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert first_names(written(tmp_path, content)) == NAMES
    if name.startswith("json"):
        assert first_names(written(tmp_path, content, "m.json")) == NAMES
    if name.startswith(("yaml", "yolo")):
        assert first_names(written(tmp_path, content, "m.yaml")) == NAMES


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(f"{s} {w}" for s, w in zip(SYNSETS, WORDS, strict=True)),
        "\n".join(f"{i} {s} {w}" for i, (s, w) in enumerate(zip(SYNSETS, WORDS, strict=True))),
        "index,synset,words\n" + "\n".join(f'{i},{s},"{WORDS[i]}"' for i, s in enumerate(SYNSETS)),
        json.dumps({str(i): [s, WORDS[i]] for i, s in enumerate(SYNSETS)}),
        json.dumps([[s, w] for s, w in zip(SYNSETS, WORDS, strict=True)]),
    ],
    ids=["lines", "index and lines", "table", "imagenet_class_index.json", "list"],
)
def test_folders_may_be_called_by_synset_or_by_words(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    assert first_names(path) == SYNSETS

    def labels(*classes: str) -> list[int]:
        return apply_class_map(examples_of(*classes), str(path)).targets.tolist()

    assert labels(*SYNSETS) == [0, 1, 2, 3]
    assert labels("goldfish, Carassius auratus", "n01440764") == [1, 0]
    with pytest.raises(DataError, match="class 'crane' may be 'n02012849' and 'n03126707'"):
        labels("crane")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0,ant\n1,bee\n3,dog\n", r"no index 2: after it comes 3 \(line 3\)"),
        ("1,ant\n2,bee\n", "no index 0"),
        ("ant 1\nbee 2\n", "no index 0"),
        ("0,ant\n1,bee\n1,dog\n", "line 3 .* repeats the index 1 of line 2"),
        ("0,ant\n1,bee\n2,ant\n", "line 3 .* repeats 'ant' of line 1"),
        ("ant\nbee\nant\n", "line 3 .* repeats 'ant' of line 1"),
        ("caf\u00e9\nbee\ncafe\u0301\n", "line 3 .* repeats"),
        ('{"ant": 0, "bee": 1, "ant": 2}', "'ant' of .* repeats 'ant'"),
        ("names:\n  0: ant\n  0: bee\n", "'0' of .* repeats the index 0"),
        ('{"0": 1, "1": 0}', "two numbers"),
        ("0,1\n1,0\n", "two numbers"),
        ('["ant", null]', "no name"),
        ('["ant", true]', "no name"),
        ('{"ant": "x"}', "maps 'ant' to no index"),
        ("[" * 5000, "cannot read|no list"),
        ('{"a": 1', "cannot read|not in|no index"),
        ("&a [*a]", "no name|cannot read|no list"),
        ("name\nant\nbee\n", "line 1 .* looks like a heading"),
        ("ant\0bee\n", "zero bytes"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path, content, "map.yaml" if content[0] == "&" else "map.txt")
    with pytest.raises(DataError, match=message):
        apply_class_map(examples_of("ant"), str(path))


def test_numbers_that_can_be_read_in_one_way_only(tmp_path: Path) -> None:
    """Labels counted from 1 are names; 0 to n − 1 are outputs."""
    assert first_names(written(tmp_path, '{"1": 0, "2": 1, "3": 2}')) == ["1", "2", "3"]
    assert first_names(written(tmp_path, "7,0\n9,1\n")) == ["7", "9"]
    assert first_names(written(tmp_path, "class 1\nclass 0\nclass 10\n")) == [
        "class 1",
        "class 0",
        "class 10",
    ]


def test_yaml_words_stay_words(tmp_path: Path) -> None:
    assert first_names(written(tmp_path, "0: no\n1: yes\n2: 1.50\n3: null\n")) == [
        "no",
        "yes",
        "1.50",
        "null",
    ]


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp"))
    | st.sampled_from(", \"'é;#:-\t"),
    min_size=1,
    max_size=9,
).map(str.strip)
LISTS = st.lists(
    TEXT.filter(bool), min_size=1, max_size=12, unique_by=lambda n: unicodedata.normalize("NFC", n)
)


@given(names=LISTS, form=st.integers(0, 5), mix=st.randoms(use_true_random=False), data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_map_says_what_was_written_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], form: int, mix: Any, data: Any
) -> None:
    """Against the list it was made from; a quick refusal is allowed for forms that cannot quote."""
    pairs = list(enumerate(names))
    mix.shuffle(pairs)

    def quoted(text: object) -> str:
        return '"' + str(text).replace('"', '""') + '"'

    ending = data.draw(st.sampled_from(["\n", "\r\n"]))
    exact, content = [
        lambda: (False, ending.join(names)),
        lambda: (True, ending.join(f"{i},{quoted(n)}" for i, n in pairs)),
        lambda: (True, ending.join(["name,index", *(f"{quoted(n)},{i}" for i, n in pairs)])),
        lambda: (True, json.dumps({str(i): n for i, n in pairs}, ensure_ascii=data.draw(st.booleans()))),
        lambda: (True, json.dumps(names)),
        lambda: (True, yaml.safe_dump({"names": dict(pairs)}, allow_unicode=True)),
    ][form]()
    form_of_names = data.draw(st.sampled_from(["NFC", "NFD"]))
    content = data.draw(st.sampled_from(["", "\ufeff"])) + unicodedata.normalize(form_of_names, content)
    path = written(tmp_path_factory.mktemp("map"), content)
    expected = [unicodedata.normalize("NFC", name) for name in names]
    try:
        found = first_names(path)
    except DataError:
        # Numbers both ways, or a list of names that all look like something else.
        numbers = all(n.isdecimal() for n in names)
        assert numbers or not exact
        return
    if exact:
        assert found == expected
        return
    # A bare list is read as it stands, unless all of its lines say an index: then by that.
    assert found == expected or sorted(read_class_map(path)) != sorted((n,) for n in expected)


# --- applied ---------------------------------------------------------------------------------


def examples_of(*classes: str, per_class: int = 1) -> Examples:
    targets = np.repeat(np.arange(len(classes)), per_class)
    return Examples("data", "", "", classes, targets, np.arange(len(targets)), load=None)


def numbered(*labels: int) -> Examples:
    return Examples("data", "", "", (), np.asarray(labels), np.arange(len(labels)), load=None)


@pytest.mark.parametrize("folder", ["NFC", "NFD"])
@pytest.mark.parametrize("file", ["NFC", "NFD"])
def test_unicode_forms_are_one_name(tmp_path: Path, folder: str, file: str) -> None:
    path = written(tmp_path, unicodedata.normalize(file, "bee\ncafé\n"))
    mapped = apply_class_map(examples_of(unicodedata.normalize(folder, "café")), str(path))
    assert mapped.targets.tolist() == [1]
    assert mapped.warnings == ()


def test_a_difference_in_case_is_said_or_refused(tmp_path: Path) -> None:
    path = str(written(tmp_path, "bee\ncat\n"))
    mapped = apply_class_map(examples_of("Cat", "bee"), path)
    assert mapped.targets.tolist() == [1, 0]
    assert mapped.warnings == ("class 'Cat' taken for 'cat' of the class map",)
    with pytest.raises(DataError, match="'Cat' and 'cat' are both output 1"):
        apply_class_map(examples_of("Cat", "cat"), path)
    both = str(written(tmp_path, "Cat\ncat\n"))
    assert apply_class_map(examples_of("cat", "Cat"), both).targets.tolist() == [1, 0]
    with pytest.raises(DataError, match="'CAT' may be 'Cat' and 'cat'"):
        apply_class_map(examples_of("CAT"), both)


def test_warnings_of_the_data_survive_a_map(tmp_path: Path) -> None:
    from dataclasses import replace

    path = str(written(tmp_path, "a\nb\n"))
    assert apply_class_map(replace(examples_of("b"), warnings=("said",)), path).warnings == ("said",)


def test_numbers_are_outputs_or_listed(tmp_path: Path) -> None:
    lines = str(written(tmp_path, "ant\nbee\ncat\n"))
    mapped = apply_class_map(numbered(2, 0, 2), lines)
    assert (mapped.targets.tolist(), mapped.classes) == ([2, 0, 2], ("ant", "bee", "cat"))
    with pytest.raises(DataError, match="run from 1 to 3"):
        apply_class_map(numbered(1, 3), lines)
    listed = str(written(tmp_path, "1\n3\n2\n", "ids.txt"))
    assert apply_class_map(numbered(1, 3, 2), listed).targets.tolist() == [0, 1, 2]


def test_classes_that_are_present() -> None:
    from dataclasses import replace

    examples = replace(numbered(5, 1, 5), classes=("a", "b", "c", "d", "e", "f"))
    present = only_present(examples)
    assert present.targets.tolist() == [1, 0, 1]
    assert (present.classes, present.outputs) == (("b", "f"), (1, 5))
    assert "2 of 6 outputs are scored" in present.warnings[-1]
    with pytest.raises(ConfigurationError, match="which of the outputs"):
        only_present(numbered(0, 1))
    with pytest.raises(ConfigurationError, match="1 class"):
        only_present(replace(examples, targets=np.asarray([1, 1, 1])))


# --- the commands ----------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [3, 5, 30])
def test_a_map_of_other_length_than_the_model(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, lines: int
) -> None:
    data = write_images(tmp_path / "d", per_class=3, classes=("ant", "bee", "cat"))
    names = ["ant", "bee", "cat", *(f"no{i}x" for i in range(30))][:lines]
    mapping = written(tmp_path, "\n".join(names))
    how = (TINY, "--checkpoint", tiny_checkpoint, "--data", data, "--class-map", mapping, "--input-size", 12)
    for command in (("evaluate",), ("tune", "-o", tmp_path / "out")):
        code, _, err = run(command[0], *how, *command[1:])
        assert code == 2
        assert f"names {lines} classes, the model has 4 outputs" in err


def test_scores_of_the_classes_present(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Against the same logits, cut by hand; and tune and its cached pass agree with evaluate."""
    import torch
    from tiny import tiny

    from alphatune.data.loading import Batches
    from alphatune.data.preprocessing import Preprocessing

    data = write_images(tmp_path / "d", per_class=6, classes=("bee", "dog", "ant"))
    mapping = written(tmp_path, "ant\nbee\ncat\ndog\n")
    flags = (
        TINY, "--checkpoint", tiny_checkpoint, "--data", data, "--class-map", mapping, "--input-size", "12",
        "--crop-pct", 1, "--workers", 0, "--classes-only-present",
    )  # fmt: skip
    code, out, err = run("evaluate", *flags, "--format", "json")
    assert code == 0, err
    document = json.loads(out)
    assert "3 of 4 outputs are scored" in err
    assert (document["data"]["classes"], document["data"]["classes_only_present"]) == (3, True)
    prepare = Preprocessing(input_size=(3, 12, 12), crop_pct=1.0)
    examples = open_data(data, class_map=mapping)
    model = tiny().eval()
    weights = torch.load(tiny_checkpoint)["state_dict"]
    model.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()})
    batch = next(iter(Batches(examples, prepare, 18, torch.device("cpu"))))
    with torch.no_grad():
        logits = model(batch.inputs)[:, [0, 1, 3]].double()
    own = torch.tensor([{0: 0, 1: 1, 3: 2}[int(t)] for t in batch.targets])
    loss = torch.nn.functional.cross_entropy(logits, own).item()
    assert document["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert document["metrics"]["top1"] == pytest.approx((logits.argmax(1) == own).double().mean().item())
    assert document["metrics"]["top5"] == 1.0
    code, out, err = run("tune", *flags, "--format", "json", "-o", tmp_path / "out", "--alphas", "0,0.1")
    assert code == 0, err
    tuned = json.loads(out)
    assert tuned["curve"][0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert "classes_only_present = true" in (tmp_path / "out/run.toml").read_text()
    code, out, err = run("evaluate", tmp_path / "out", "--trust-code", *flags[3:], "--format", "json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(tuned["chosen"]["metrics"]["loss"], rel=1e-5)


def test_which_outputs_are_scored_is_part_of_what_the_data_are() -> None:
    from dataclasses import replace

    from alphatune.data.examples import ArrayLoad
    from alphatune.data.fingerprint import fingerprint

    one = replace(examples_of("a", "b"), load=ArrayLoad(np.zeros((2, 4, 4, 3), np.uint8)), outputs=(0, 1))
    assert fingerprint(one) != fingerprint(replace(one, outputs=(0, 2)))
