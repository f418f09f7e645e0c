"""The order of labels is that of the model's outputs, or the run says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import alphatune
from alphatune.core.errors import ConfigurationError
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples
from alphatune.data.label_order import LEAST_DIFFERENCE, check_label_order, is_ambiguous, near_chance
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing

NUMBERS = tuple(map(str, range(12)))
NATURAL, TEXT = NUMBERS, tuple(sorted(NUMBERS))


def numbered_by_name(classes: tuple[str, ...], per_class: int = 20) -> Examples:
    targets = np.repeat(np.arange(len(classes)), per_class)
    return Examples("d", "", "", classes, targets, np.arange(len(targets)), load=None, numbered_by_name=True)


def answers(examples: Examples, order: tuple[str, ...], right: float, seed: int = 0) -> np.ndarray:
    """What a model trained with an order of names predicts."""
    rng = np.random.default_rng(seed)
    truth = np.asarray([order.index(examples.classes[t]) for t in examples.targets])
    return np.where(rng.random(len(truth)) < right, truth, rng.integers(0, len(order), len(truth)))


def check(examples: Examples, predicted: np.ndarray) -> list[str]:
    return check_label_order(examples, examples.targets, predicted)


@pytest.mark.parametrize(
    ("present", "trained", "first"),
    [
        (NATURAL, TEXT, "output 2 would be '10' and not '2'"),
        (TEXT, NATURAL, "output 2 would be '2' and not '10'"),
        (("apple", "Zebra"), ("Zebra", "apple"), "output 0 would be 'Zebra' and not 'apple'"),
        (("Ant", "Zoo", "bee"), ("Ant", "bee", "Zoo"), "output 1 would be 'bee' and not 'Zoo'"),
    ],
)
def test_an_order_that_fits_clearly_better_stops(
    present: tuple[str, ...], trained: tuple[str, ...], first: str
) -> None:
    examples = numbered_by_name(present)
    assert is_ambiguous(examples)
    with pytest.raises(ConfigurationError) as error:
        check(examples, answers(examples, trained, 0.9))
    assert first in error.value.message
    assert "top-1 is" in error.value.message
    assert "`class_map" in error.value.hint
    assert check(examples, answers(examples, present, 0.9)) == []  # proved


def test_two_classes_of_many_that_are_swapped(tmp_path: Path) -> None:
    """A fifth of a point of top-1 in all, and yet these labels are wrong."""
    names = (*(f"c{i:03}" for i in range(498)), "x10", "x9")
    natural = (*names[:498], "x9", "x10")
    examples = numbered_by_name(natural)
    with pytest.raises(ConfigurationError, match="output 498 would be 'x10'"):
        check(examples, answers(examples, names, 0.8))
    assert check(examples, answers(examples, natural, 0.8)) == []


def test_what_the_images_do_not_tell_is_a_warning() -> None:
    examples = numbered_by_name(NATURAL)
    few = examples.take(np.arange(0, len(examples), 60))
    (note,) = check(few, answers(few, TEXT, 1.0))
    assert "4 images do not tell" in note
    assert "output 2 would be '10'" in note
    guesses = np.random.default_rng(0).integers(0, 12, len(examples))
    assert len(check(examples, guesses)) == 1


def test_orders_that_agree_are_not_spoken_of() -> None:
    for classes in (("ant", "bee"), ("n01440764", "n01443537"), ("001", "002", "010")):
        examples = numbered_by_name(classes)
        assert not is_ambiguous(examples)
        assert check(examples, np.zeros(len(examples), int)) == []
    mapped = replace(numbered_by_name(NATURAL), numbered_by_name=False, class_map="map.txt")
    assert check(mapped, answers(mapped, TEXT, 0.9)) == []


def test_labels_counted_from_another_number() -> None:
    plain = Examples("d", "", "", (), np.repeat(np.arange(1, 10), 20), np.arange(180), load=None)
    with pytest.raises(ConfigurationError, match="label 1 would be output 0 and not 1"):
        check(plain, plain.targets - 1)
    with pytest.raises(ConfigurationError, match="label 1 would be output 2 and not 1"):
        check(plain, plain.targets + 1)
    assert check(plain, plain.targets) == []
    assert "counted from 1" in check(plain, np.zeros(180, int) + 5)[0]
    assert check(replace(plain, targets=plain.targets - 1), plain.targets * 0) == []


@given(
    st.lists(st.text("aAbB019", min_size=1, max_size=4), min_size=2, max_size=8, unique=True),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=200)
def test_the_order_the_model_knows_is_never_refused(names: list[str], seed: int) -> None:
    """And one that it does not know never passes in silence, if some classes differ."""
    from alphatune.data.label_order import _ORDERS

    orders = {tuple(sorted(names, key=key)) for key in _ORDERS.values()}
    for order in orders:
        examples = numbered_by_name(order, per_class=30)
        check(examples, answers(examples, order, 0.6, seed))
        for trained in orders - {order}:
            with pytest.raises(ConfigurationError):
                check(examples, answers(examples, trained, 0.95, seed))


def test_near_chance() -> None:
    assert near_chance(np.arange(10), 0.15, "at alpha = 0")[0].startswith("top-1 at alpha = 0 is 0.1500")
    assert near_chance(np.arange(10), 0.2) == []


# --- the commands and the library ------------------------------------------------------------


class Brightness(nn.Module):
    """Tells twelve greys apart, whose classes it counts in the order of their names as text."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, affine=False)
        torch.nn.init.constant_(self.bn.running_mean, 1e-7)  # 0 would say that nothing was trained
        self.register_buffer("greys", torch.tensor([[int(name) / 12] for name in TEXT]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -100 * (self.bn(x).mean((1, 2, 3))[:, None] - self.greys.T) ** 2


def brightness() -> nn.Module:
    return Brightness()


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("greys")
    for name in NUMBERS:
        (root / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (int(name) * 255 // 12 + 1 + i,) * 3).save(root / name / f"{i}.png")
    return root


HOW = (
    f"{__file__}:brightness", "--input-size", 8, "--crop-pct", 1, "--mean", "0,0,0", "--std", "1,1,1", "--workers", 0,
)  # fmt: skip


def test_commands_stop_at_the_wrong_order(run: Run, tmp_path: Path, greys: Path) -> None:
    for command in (("evaluate",), ("tune", "-o", tmp_path / "out", "--alphas", "0,0.01")):
        code, out, err = run(command[0], *HOW, "--data", greys, *command[1:])
        assert code == 2, err
        assert "top-1 is 1.0000 with the labels in plain order" in err
        assert "output 2 would be '10' and not '2'" in err
        assert not (tmp_path / "out").exists()
    mapping = tmp_path / "map.txt"
    mapping.write_text("\n".join(TEXT))
    code, out, err = run("evaluate", *HOW, "--data", greys, "--class-map", mapping, "--format", "json")
    assert (code, json.loads(out)["metrics"]["top1"]) == (0, 1.0), err
    assert "top-1" not in err


def test_the_library_stops_too(greys: Path) -> None:
    prepare = Preprocessing((3, 8, 8), (0, 0, 0), (1, 1, 1), crop_pct=1.0)
    batches = Batches(open_data(greys), prepare, 16, torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="not in the model's order"):
        alphatune.tune(Brightness(), batches, alphas="0,0.01")


def test_evaluate_warns_near_chance(run: Run, tmp_path: Path, greys: Path) -> None:
    mapping = tmp_path / "map.txt"
    mapping.write_text("\n".join(TEXT[1:] + TEXT[:1]))
    code, out, _ = run("evaluate", *HOW, "--data", greys, "--class-map", mapping, "--format", "json")
    assert code == 0
    assert "top-1 is 0.0000, close to chance (0.0833)" in json.loads(out)["warnings"][-1]


def test_train_warns_near_chance(run: Run, tmp_path: Path, greys: Path) -> None:
    from conftest import TINY

    code, out, err = run(
        "train", TINY, "--data", greys, "--input-size", 8, "--epochs", 1, "--lr", 0, "--val-fraction", 0.34,
        "--batch-size", 8, "--workers", 0, "-o", tmp_path / "run", "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    assert any("top-1 on the validation examples is" in note for note in json.loads(out)["warnings"])


def test_thresholds_are_what_the_docs_say() -> None:
    docs = (ROOT / "docs" / "models-and-data.md").read_text()
    assert f"{100 * LEAST_DIFFERENCE:g} points" in docs
