"""Loaders of one's own, of the kinds that people have: taken, or refused by name; never a wrong figure without a word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from tiny import tiny
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import alphatune
from alphatune.core.errors import ConfigurationError
from alphatune.data import custom_loader
from alphatune.data.checksums import check_repeats, checksums
from alphatune.data.custom_loader import LoaderBatches
from alphatune.models.measurement import measure_moments

CPU = torch.device("cpu")
N = 24
X = torch.randn(N, 3, 12, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4


def read(loader: Any) -> tuple[Tensor, list[int], tuple[str, ...]]:
    batches = LoaderBatches(loader, CPU)
    got = list(batches)
    return torch.cat([b.inputs for b in got]), batches.targets.tolist(), batches.notes


def in_batches(make: Callable[[Tensor, Tensor], Any], size: int = 10) -> list[Any]:
    return [make(X[i : i + size], Y[i : i + size]) for i in range(0, N, size)]


def one_hot(y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y, 4)


class Keyed:
    """Has keys and entries, and is no Mapping, like a TensorDict."""

    def __init__(self, **entries: Any) -> None:
        self._entries = entries

    def keys(self) -> Any:
        return self._entries.keys()

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]


TAKEN: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "a third entry": (lambda x, y: (x, y, ["name"] * len(y)), ""),
    "arrays": (lambda x, y: (x.numpy(), y.numpy()), ""),
    "lists": (lambda x, y: (list(x), list(y)), ""),
    "lists of arrays": (lambda x, y: (list(x.numpy()), y.tolist()), ""),
    "examples": (lambda x, y: list(zip(x, y.tolist(), strict=True)), ""),
    "keyed examples": (
        lambda x, y: [{"image": i, "label": j} for i, j in zip(x, y.tolist(), strict=True)],
        "",
    ),
    "image, label": (lambda x, y: {"image": x, "label": y}, ""),
    "pixel_values, labels": (lambda x, y: {"pixel_values": x, "labels": y, "path": ["a"] * len(y)}, ""),
    "x, y": (lambda x, y: {"x": x, "y": y}, ""),
    "inputs, target": (lambda x, y: Keyed(inputs=x, target=y), ""),
    "(N, 1)": (lambda x, y: (x, y[:, None]), r"shape \(N, 1\)"),
    "whole floats": (lambda x, y: (x, y.double()), "float64 hold whole numbers"),
    "whole floats (N, 1)": (lambda x, y: {"image": x, "label": y[:, None].float()}, "whole numbers"),
    "one-hot": (lambda x, y: (x, one_hot(y)), "one-hot"),
    "one-hot floats": (lambda x, y: (x, one_hot(y).float()), "one-hot"),
    "one-hot bools": (lambda x, y: (x, one_hot(y).bool()), "one-hot"),
    "bytes": (lambda x, y: (x, y.to(torch.uint8)), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_taken(kind: str) -> None:
    make, said = TAKEN[kind]
    inputs, targets, notes = read(in_batches(make))
    assert torch.equal(inputs, X)
    assert targets == Y.tolist()
    assert len(notes) <= 2
    if said:
        assert any(re.search(said, note) for note in notes)
    else:
        assert notes == ()


def images(x: Tensor) -> list[Image.Image]:
    return [Image.new("RGB", (12, 12)) for _ in x]


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "two images": (lambda x, y: {"image": x, "input": x, "label": y}, "several entries.*images: 'image', 'input'"),
    "two labels": (lambda x, y: {"image": x, "label": y, "target": y}, "several entries.*labels: 'label', 'target'"),
    "no label": (lambda x, y: {"image": x, "fine_label": y}, "labels as one of label,.*'image', 'fine_label'"),
    "no image": (lambda x, y: {"jpg": x, "label": y}, "images as one of image,.*'jpg', 'label'"),
    "soft labels": (lambda x, y: (x, one_hot(y) * 0.9 + 0.025), r"soft labels of shape \(10, 4\).*mixup"),
    "several classes": (lambda x, y: (x, one_hot(y) | one_hot(y.roll(1))), "several classes an image"),
    "no class": (lambda x, y: (x, one_hot(y) * 0), "several classes an image, or none"),
    "logits": (lambda x, y: (x, one_hot(y) * 3.5), r"float32 of shape \(10, 4\)"),
    "fractions": (lambda x, y: (x, y + 0.5), r"float32 of shape \(10,\), e\.g\. 0\.5"),
    "null": (lambda x, y: (x, torch.full((len(y),), torch.nan)), "e.g. nan"),
    "names": (lambda x, y: (x, ["cat"] * len(y)), "list of str.*indices"),
    "masks": (lambda x, y: (x, torch.zeros(len(y), 12, 12).long()), r"int64 of shape \(10, 12, 12\).*tune_score"),
    "the wrong way round": (lambda x, y: (y, x), r"float32 of shape \(10, 3, 12, 12\)"),
    "too few labels": (lambda x, y: (x, y[1:]), r"shape \(10,\), got int64 of shape \(9,\)"),
    "one example": (lambda x, y: (x[0], y[0]), "one label.*give batches"),
    "PIL images": (lambda x, y: (images(x), y), "got PIL images.*ToTensor"),
    "uint8": (lambda x, y: (x.to(torch.uint8), y), "floating-point and normalised, got uint8"),
    "int64": (lambda x, y: (x.long(), y), "floating-point and normalised, got int64"),
    "ten crops": (lambda x, y: (x[:, None].expand(-1, 10, -1, -1, -1), y), "10 crops of each image"),
    "flat ten crops": (lambda x, y: (x.repeat(10, 1, 1, 1), y), r"shape \(100,\), got int64 of shape \(10,\)"),
    "ragged": (lambda x, y: ([*x[1:], x[0, :, 1:]], y), r"one shape.*\(3, 12, 12\) and \(3, 11, 12\)"),
    "words": (lambda x, y: ("image", y), "got str"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(ConfigurationError, match=said):
        alphatune.tune(tiny(), in_batches(make), alphas="0,0.1")


def test_channels_last_images_are_named_by_all() -> None:
    batches = in_batches(lambda x, y: (x.permute(0, 2, 3, 1), y))
    for read_by in (
        lambda: alphatune.tune(tiny(), batches, alphas="0,0.1"),
        lambda: alphatune.recalibrate_(tiny(), batches),
        lambda: alphatune.recalibrate_(tiny(), batches, order="layer-by-layer"),
    ):
        with pytest.raises(ConfigurationError, match=r"\(10, 12, 12, 3\).*look like \(N, H, W, C\)"):
            read_by()


def test_double_precision_is_taken() -> None:
    model = tiny()
    a = alphatune.tune(model, in_batches(lambda x, y: (x, y)), alphas="0,0.1")
    b = alphatune.tune(model, in_batches(lambda x, y: (x.double(), y)), alphas="0,0.1")
    assert a.baseline == b.baseline


@pytest.mark.parametrize("kind", ["one-hot", "image, label", "(N, 1)", "lists"])
def test_what_was_converted_is_among_the_warnings(kind: str) -> None:
    make, said = TAKEN[kind]
    model = tiny()
    result = alphatune.tune(model, in_batches(make), alphas="0,0.1")
    expected = alphatune.tune(model, in_batches(lambda x, y: (x, y)), alphas="0,0.1")
    assert result.baseline == expected.baseline
    assert (len(result.warnings) > len(expected.warnings)) is bool(said)


@pytest.mark.parametrize("kind", ["image, label", "examples", "arrays", "inputs, target"])
def test_averages_are_measured_on_the_same_kinds(kind: str) -> None:
    model, expected = tiny(), tiny()
    expected.load_state_dict(model.state_dict())
    alphatune.recalibrate_(model, in_batches(TAKEN[kind][0]))
    alphatune.recalibrate_(expected, in_batches(lambda x, y: x))
    assert torch.equal(model.bn2.running_var, expected.bn2.running_var)


@pytest.mark.parametrize("form", [lambda x, y: {"image": x, "label": y}, lambda x, y: {"x": x, "targets": y}])
def test_a_score_takes_mappings(form: Callable[[Tensor, Tensor], Any]) -> None:
    model = tiny()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return -torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    expected = alphatune.tune_score(model, in_batches(lambda x, y: (x, y)), loss, alphas="0,0.1")
    got = alphatune.tune_score(model, in_batches(form), loss, alphas="0,0.1")
    assert np.array_equal(got.scores, expected.scores)


# --- datasets --------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __init__(self, form: Callable[[Tensor, int], Any] = lambda x, y: (x, y)) -> None:
        self.form = form

    def __iter__(self) -> Iterator[Any]:
        return (self.form(x, int(y)) for x, y in zip(X, Y, strict=True))


class Keys(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": X[index], "label": int(Y[index])}


@pytest.mark.parametrize("data", [TensorDataset(X, Y), Keys(), Stream()], ids=["tensors", "keys", "stream"])
def test_a_dataset_is_put_into_batches(data: Any) -> None:
    inputs, targets, notes = read(data)
    assert torch.equal(inputs, X)
    assert targets == Y.tolist()
    assert any("dataset" in note for note in notes)
    model = tiny()
    expected = alphatune.tune(model, [(X, Y)], alphas="0,0.1")
    assert alphatune.tune(model, data, alphas="0,0.1").baseline == expected.baseline
    result = alphatune.tune_score(model, data, lambda o, t: (o.argmax(1) == t).float(), alphas="0,0.1")
    assert result.baseline == pytest.approx(expected.baseline.top1)
    alphatune.recalibrate_(model, data, order="layer-by-layer")


def test_a_dataset_of_batches_is_left_as_it_is() -> None:
    class Batched(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(in_batches(lambda x, y: (x, y)))

    inputs, targets, notes = read(Batched())
    assert torch.equal(inputs, X)
    assert targets == Y.tolist()
    assert notes == ()


def test_a_hugging_face_dataset() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": X.tolist(), "label": Y.tolist()}).with_format("torch")
    for data in (rows, rows.to_iterable_dataset()):
        inputs, targets, _ = read(data)
        torch.testing.assert_close(inputs, X)
        assert targets == Y.tolist()


def test_a_dataset_without_a_transform_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"PIL images.*ToTensor"):
        alphatune.tune(tiny(), Stream(lambda x, y: (Image.new("RGB", (12, 12)), y)))


# --- the same images again -------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
def test_a_stream_that_every_worker_gives_whole(workers: int) -> None:
    loader = DataLoader(Stream(), 5, num_workers=workers)
    said = rf"{N * workers} of which {N} differ: each came {workers} times.*get_worker_info"
    with pytest.raises(ConfigurationError, match=said):
        alphatune.tune(tiny(), loader, alphas="0,0.1")
    with pytest.raises(ConfigurationError, match=said):
        alphatune.tune_score(tiny(), loader, lambda o, t: -o.sum(1), alphas="0,0.1")


MEASURED: dict[str, Callable[[Any], Any]] = {
    "calibrate_": lambda data: alphatune.calibrate_(grouped(), data),
    "one-pass": lambda data: alphatune.recalibrate_(tiny(), data),
    "layer-by-layer": lambda data: alphatune.recalibrate_(tiny(), data, order="layer-by-layer"),
    "inspect": lambda data: measure_moments(tiny(), data),
}


def grouped() -> torch.nn.Module:
    model = tiny()
    alphatune.convert_(model, alphatune.Norm("group", num_groups=2))
    return model


@pytest.mark.parametrize("how", MEASURED)
def test_averages_of_images_that_came_twice(how: str) -> None:
    """Also where labels are not looked at; and on the error the averages stay."""
    loader = DataLoader(Stream(), 5, num_workers=2)
    with pytest.raises(
        ConfigurationError, match=rf"{2 * N} of which {N} differ: each came 2 times.*get_worker_info"
    ):
        MEASURED[how](loader)
    with pytest.raises(ConfigurationError, match="12 came before"):
        MEASURED[how]([X, X[:12]])
    MEASURED[how]([X, X[:2]])  # as a data set may hold
    MEASURED[how](DataLoader(TensorDataset(X, Y), 10, shuffle=True))
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for order in ("one-pass", "layer-by-layer"):
        with pytest.raises(ConfigurationError):
            alphatune.recalibrate_(model, [X, X], order=order)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layer_by_layer_over_other_images_each_time() -> None:
    """A layer would be measured on images that those before it were not."""
    with pytest.raises(ConfigurationError, match=r"got other images.*random augmentation"):
        alphatune.recalibrate_(tiny(), DataLoader(Augmented(), 10), order="layer-by-layer")
    alphatune.recalibrate_(tiny(), DataLoader(Augmented(), 10))  # one pass: augmented as in training


@pytest.mark.parametrize("form", [lambda x: {"image": x}, lambda x: [x, torch.zeros(len(x))], list])
def test_a_score_of_images_that_came_twice(form: Callable[[Tensor], Any]) -> None:
    class Taking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny()

        def forward(self, inputs: Any) -> Tensor:
            first = inputs["image"] if isinstance(inputs, dict) else inputs
            first = (
                first if torch.is_tensor(first) else first[0] if first[0].ndim == 4 else torch.stack(first)
            )
            return self.net(first)

    batches = [(form(x), y) for x, y in in_batches(lambda x, y: (x, y))]
    alphatune.tune_score(Taking(), batches, lambda o, t: -o.sum(1), alphas="0,0.1")
    with pytest.raises(ConfigurationError, match="each came 2 times"):
        alphatune.tune_score(Taking(), batches * 2, lambda o, t: -o.sum(1), alphas="0,0.1")


def test_a_sampler_with_replacement() -> None:
    sampler = torch.utils.data.RandomSampler(range(N), True, 400)
    with pytest.raises(ConfigurationError, match=r"each example once.*with replacement"):
        read(DataLoader(TensorDataset(X, Y), 10, sampler=sampler))


@pytest.mark.parametrize(("repeats", "said"), [(0, ()), (1, ()), (4, ("4 of 204 examples are repeats",))])
def test_a_few_duplicates_are_the_datasets_own(repeats: int, said: tuple[str, ...]) -> None:
    x = torch.randn(200, 3, 4, 4)
    x, y = torch.cat([x, x[:repeats]]), torch.cat([torch.arange(200) % 4, torch.arange(repeats) % 4])
    notes = read([(x, y)])[2]
    assert len(notes) == len(said)
    assert all(note.startswith(start) for note, start in zip(notes, said, strict=True))


def test_rows_of_a_table_may_repeat() -> None:
    x = torch.randint(0, 2, (200, 5), generator=torch.Generator().manual_seed(0)).float()
    y = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(1))
    assert read([(x, y)])[2] == ()
    with pytest.raises(ConfigurationError, match="each came 3 times"):
        read([(x, y)] * 3)


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)), elements=st.floats(-2, 2, width=32)
    ),
    st.integers(0, 2**30),
    st.integers(0, 7),
)  # fmt: skip
def test_a_checksum_is_of_the_bytes_of_each(values: np.ndarray, where: int, bit: int) -> None:
    inputs = torch.from_numpy(values)
    sums = checksums(inputs)
    assert [int(checksums(row[None])[0]) for row in inputs] == sums.tolist()
    assert np.array_equal(checksums(inputs.permute(0, 2, 1).contiguous().permute(0, 2, 1)), sums)
    changed = values.copy()
    flat = changed.view(np.uint8).reshape(-1)
    flat[where % len(flat)] ^= 1 << bit
    row = where % len(flat) // (len(flat) // len(values))
    other = checksums(torch.from_numpy(changed))
    assert (other != sums).tolist() == [i == row for i in range(len(values))]


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_to_tell(count: int) -> None:
    sums = np.zeros(count, dtype=np.int64)
    assert check_repeats(sums, sums, None) == ""


# --- other images in another pass ------------------------------------------------------------


class Augmented(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return X[index].roll(int(torch.randint(1, 12, ())), -1), int(Y[index])


@pytest.mark.parametrize("kept", [2**31, 0])
@pytest.mark.parametrize("workers", [0, 2])
def test_random_augmentation_is_named(workers: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_loader, "KEPT_BYTES", kept)
    with pytest.raises(ConfigurationError, match=r"got other images.*random augmentation"):
        alphatune.tune(tiny(), DataLoader(Augmented(), 10, num_workers=workers), alphas="0,0.1")


def test_shuffling_between_passes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(TensorDataset(X, Y), 10, shuffle=True)
    assert sorted(read(loader)[1]) == sorted(Y.tolist())  # kept: there is one order
    monkeypatch.setattr(custom_loader, "KEPT_BYTES", 0)
    with pytest.raises(ConfigurationError, match=r"got another order among.*shuffle"):
        alphatune.tune(tiny(), loader, alphas="0,0.1")


def test_a_shuffled_loader_that_is_kept_gives_the_right_figures() -> None:
    """Its first pass is all that counts: every α sees each image with its own label, in one order."""
    model = tiny()
    expected = alphatune.tune(model, [(X, Y)], alphas="0,0.1,0.5")
    loader = DataLoader(TensorDataset(X, Y), 10, shuffle=True)
    result = alphatune.tune(model, loader, alphas="0,0.1,0.5")
    for alpha in (0, 0.1, 0.5):
        assert result.at(alpha).top1 == expected.at(alpha).top1
        assert result.at(alpha).loss == pytest.approx(expected.at(alpha).loss, rel=1e-5)
    losses = [np.stack([s.loss for s in r.sweep.scores]) for r in (result, expected)]
    here, there = (
        rows[:, rows[0].argsort()] for rows in losses
    )  # images in one order, by what they lose at α = 0
    np.testing.assert_allclose(here, there, rtol=1e-4)
