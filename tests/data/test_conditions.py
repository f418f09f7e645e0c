"""Images under several conditions as one data set: every example once, in order, whatever part is read; evaluate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Run, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError
from alphatune.core.toml import tomllib
from alphatune.data.cache import with_cache
from alphatune.data.conditions import Conditions, make_conditions
from alphatune.data.custom_loader import LoaderBatches
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.shifts import Shift, parse_shifts, shift_image
from alphatune.jobs.conditions import open_conditions
from alphatune.jobs.opening import prepare, resolved_paths
from alphatune.reports.evaluation_scores import read_evaluation
from alphatune.settings import EvaluateSettings
from alphatune.settings.conditions import parse_named, split_clean
from alphatune.settings.saved import input_paths, to_command, to_toml
from alphatune.statistics.conditions import conditions_of, images_of

CPU = torch.device("cpu")
SIZE = Preprocessing(input_size=(3, 12, 12), crop_pct=1)
SHIFTS = parse_shifts("contrast:3,gaussian-noise,motion-blur:1-2")


class CountedLoad:
    """What reads images, counting how often it reads each."""

    encoded = True

    def __init__(self, load: Any) -> None:
        self.load, self.read = load, []

    def __call__(self, index: int) -> Any:
        self.read.append(index)
        return self.load(index)


def batches_of(folder: Path, *, cache: str = "ram", batch_size: int = 5, **how: Any) -> Batches:
    batches = Batches(open_data(folder, **how), SIZE, batch_size=batch_size, device=CPU)
    return with_cache(batches, cache)


def pixels_of(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, targets and ids as they come."""
    parts = [*data.host_batches()]
    return tuple(
        torch.cat([getattr(b, name) for b in parts]).numpy() for name in ("inputs", "targets", "ids")
    )


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("night"), per_class=3, side=14)


@pytest.fixture(scope="module", params=["none", "ram", "disk"])
def conditions(request: pytest.FixtureRequest, image_folder: Path, night: Path) -> Conditions:
    others = [
        ("night", batches_of(night, cache=request.param)),
        ("again", batches_of(image_folder, cache="ram")),
    ]
    return make_conditions(batches_of(image_folder, cache=request.param), SHIFTS, others, seed=3)


# --- what it holds ---------------------------------------------------------------------------


def test_every_image_comes_once_under_every_condition(conditions: Conditions, night: Path) -> None:
    n, own = 48, 12
    assert conditions.names == ("clean", "contrast", "gaussian-noise", "motion-blur", "night", "again")
    assert conditions.shifts == (None, *SHIFTS, None, None)
    assert len(conditions) == 4 * n + own + n == len(conditions.ids) == len(conditions.targets)
    assert len(np.unique(conditions.ids)) == len(conditions)
    number, images = conditions_of(conditions.ids), images_of(conditions.ids)
    np.testing.assert_array_equal(number, np.repeat([1, 2, 3, 4, 5, 6], [n, n, n, n, own, n]))
    for k in (2, 3, 4):
        np.testing.assert_array_equal(images[number == k], images[number == 1])
    assert [images[number == k].min() for k in (1, 5, 6)] == [0, n, n + own]  # none is another's

    pixels, targets, ids = pixels_of(conditions)
    np.testing.assert_array_equal(ids, conditions.ids)
    np.testing.assert_array_equal(targets, conditions.targets)
    clean = pixels_of(conditions.clean)[0]
    np.testing.assert_array_equal(pixels[:n], clean)
    np.testing.assert_array_equal(pixels[-n:], clean)
    np.testing.assert_array_equal(pixels[4 * n : -n], pixels_of(batches_of(night))[0])
    for k, shift in enumerate(SHIFTS, 1):
        for i in range(n):
            severity = int(conditions.severities[k * n + i])
            assert severity in shift.severities
            expected = shift_image(clean[i], shift.name, severity, 3, i)
            np.testing.assert_array_equal(pixels[k * n + i], expected)


def test_batches_are_full_and_normalised(conditions: Conditions) -> None:
    read = list(conditions)
    assert [len(batch) for batch in read[:-1]] == [5] * (len(read) - 1)
    assert 0 < len(read[-1]) <= 5
    inputs = torch.cat([batch.inputs for batch in read])
    pixels = torch.from_numpy(pixels_of(conditions)[0])
    torch.testing.assert_close(inputs, conditions.preprocessing.normalise(pixels), rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(image_folder: Path) -> tuple[Conditions, tuple[np.ndarray, ...]]:
    made = make_conditions(batches_of(image_folder), SHIFTS, [("again", batches_of(image_folder))])
    return made, pixels_of(made)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_part_is_those_rows_of_the_whole(
    whole: tuple[Conditions, tuple[np.ndarray, ...]], data: st.DataObject
) -> None:
    made, expected = whole
    positions = np.array(
        data.draw(st.lists(st.integers(0, len(made) - 1), min_size=1, max_size=40, unique=True)), np.int64
    )
    part = made.take(positions)
    for got, all_of_them in zip(pixels_of(part), expected, strict=True):
        np.testing.assert_array_equal(got, all_of_them[positions])
    rows = np.arange(len(part))[::2]
    np.testing.assert_array_equal(part.take(rows).ids, made.ids[positions[rows]])
    np.testing.assert_array_equal(part.take(rows).targets, made.targets[positions[rows]])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_share_the_batches(conditions: Conditions, size: int) -> None:
    positions = np.sort(np.random.default_rng(0).permutation(len(conditions))[:101])
    whole = [batch.ids.tolist() for batch in conditions.take(positions).host_batches()]
    shares = [
        [b.ids.tolist() for b in conditions.take(World(rank, size).batches_of(positions, 5)).host_batches()]
        for rank in range(size)
    ]
    for rank, share in enumerate(shares):  # the very batches of one process
        assert share == whole[rank::size]


def test_worker_processes_change_nothing(image_folder: Path, night: Path) -> None:
    """Without a cache, too, where they read ahead over all conditions of a data set."""
    whole = make_conditions(batches_of(image_folder), SHIFTS, [("night", batches_of(night))])
    plain = [replace(batches_of(folder, cache="none"), workers=2) for folder in (image_folder, night)]
    made = make_conditions(plain[0], SHIFTS, [("night", plain[1])])
    for got, expected in zip(pixels_of(made), pixels_of(whole), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_nothing_is_read_of_no_examples(conditions: Conditions) -> None:
    assert list(conditions.take(np.empty(0, np.int64))) == []


@pytest.mark.parametrize(("cache", "times"), [("ram", 1), ("disk", 1), ("none", 4)])
def test_an_image_is_decoded_once_with_a_cache(image_folder: Path, cache: str, times: int) -> None:
    examples = open_data(image_folder)
    counted = CountedLoad(examples.load)
    plain = Batches(replace(examples, load=counted), SIZE, batch_size=5, device=CPU)
    made = make_conditions(with_cache(plain, cache), SHIFTS)
    assert made.cache == cache
    assert counted.read == []
    assert sum(map(len, made)) == len(made)
    assert len(counted.read) == times * 48
    assert set(counted.read) == set(range(48))
    if cache != "none":
        list(made)
        list(made.take(np.random.default_rng(0).permutation(len(made))))
        assert len(counted.read) == 48


def test_a_part_in_random_order_decodes_each_image_once(image_folder: Path) -> None:
    examples = open_data(image_folder)
    counted = CountedLoad(examples.load)
    plain = Batches(replace(examples, load=counted), SIZE, batch_size=7, device=CPU)
    made = make_conditions(with_cache(plain, "ram"), SHIFTS)
    whole = pixels_of(make_conditions(batches_of(image_folder), SHIFTS))[0]
    positions = np.random.default_rng(1).permutation(len(made))
    np.testing.assert_array_equal(pixels_of(made.take(positions))[0], whole[positions])
    assert sorted(counted.read) == list(range(48))


def test_images_left_out_change_no_other(image_folder: Path) -> None:
    """The numbers of images are those of the source, whatever ``limit`` keeps."""
    shift = Shift("gaussian-noise", (3,))
    whole = make_conditions(batches_of(image_folder), [shift])
    few = Batches(open_data(image_folder).limit(10, seed=0), SIZE, batch_size=4, device=CPU)
    part = make_conditions(few, [shift])
    pixels, _, ids = pixels_of(whole)
    rows = np.searchsorted(ids, part.ids)
    np.testing.assert_array_equal(pixels_of(part)[0], pixels[rows])


def test_all_data_have_ids(image_folder: Path) -> None:
    batches = batches_of(image_folder)
    np.testing.assert_array_equal(batches.take(np.array([3, 9])).ids, [3, 9])
    loader = DataLoader(TensorDataset(torch.randn(7, 3, 4, 4), torch.arange(7) % 2), batch_size=3)
    data = LoaderBatches(loader, CPU)
    np.testing.assert_array_equal(data.ids, np.arange(7))
    part = data.take(np.array([1, 4, 6]))
    np.testing.assert_array_equal(part.ids, torch.cat([b.ids for b in part]))


# --- what cannot be ---------------------------------------------------------------------------


def streamed(examples: Examples) -> Examples:
    def stream() -> Any:
        for i in range(len(examples)):
            yield examples.load(i)[0], 0

    return replace(examples, load=None, stream=stream)


def test_shifts_of_a_stream_need_a_cache(image_folder: Path) -> None:
    batches = Batches(streamed(open_data(image_folder)), SIZE, batch_size=5, device=CPU)
    with pytest.raises(ConfigurationError, match="is a stream") as error:
        make_conditions(batches, SHIFTS)
    assert "`cache=ram`" in error.value.hint
    made = make_conditions(with_cache(batches, "ram"), SHIFTS)
    whole = make_conditions(batches_of(image_folder), SHIFTS)
    np.testing.assert_array_equal(pixels_of(made)[0], pixels_of(whole)[0])
    make_conditions(batches, (), [("night", batches_of(image_folder))])


def test_a_shift_of_colours_needs_colours(image_folder: Path) -> None:
    grey = replace(SIZE, input_size=(1, 12, 12), mean=(0.5,), std=(0.2,))
    batches = Batches(open_data(image_folder, image_mode="L"), grey, batch_size=5, device=CPU)
    with pytest.raises(ConfigurationError, match="saturate changes colours only"):
        make_conditions(batches, parse_shifts("saturate:1"))
    made = make_conditions(batches, parse_shifts("imagenet-c:5"))
    assert pixels_of(made)[0].shape == (13 * 48, 1, 12, 12)


@pytest.mark.parametrize("name", ["clean", "contrast", "night"])
def test_names_are_unique(image_folder: Path, name: str) -> None:
    others = [("night", batches_of(image_folder)), (name, batches_of(image_folder))]
    with pytest.raises(ConfigurationError, match=f"two conditions are called {name}"):
        make_conditions(batches_of(image_folder), SHIFTS, others)


# --- names ------------------------------------------------------------------------------------


def test_data_may_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_named("night-cam_2=a/b=c") == ("night-cam_2", "a/b=c")
    for text in ("a/b", "a b=c", "a/b=c", "=c", "a="):
        with pytest.raises(ConfigurationError, match="expected NAME=DATA"):
            parse_named(text)
    (tmp_path / "x=1").mkdir()
    with pytest.raises(ConfigurationError, match="expected NAME=DATA"):
        parse_named("x=1")
    assert split_clean(["x=1"]) == ("x=1", ())
    assert split_clean(["a"]) == ("a", ())
    assert split_clean(["night=b", "clean=a", "fog=c"]) == ("a", ("night=b", "fog=c"))
    assert split_clean(["day=a", "night=b"]) == ("a", ("night=b",))
    with pytest.raises(ConfigurationError, match="got 'b'"):
        split_clean(["a", "b"])


def test_settings_are_written_and_read(
    image_folder: Path, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = EvaluateSettings(
        model=TINY, data=str(image_folder), shift=("contrast:3",), conditions=(f"night={night}",)
    )
    words = to_command("evaluate", given)
    assert f"--data {image_folder} --data night={night}" in words
    assert "--shift contrast:3" in words
    assert str(night) in input_paths(given)
    written = tomllib.loads(to_toml(given))
    assert written["conditions"] == [f"night={night}"]
    monkeypatch.chdir(night.parent)
    assert resolved_paths(replace(given, conditions=(f"night={night.name}",))).conditions == given.conditions


# --- evaluate ---------------------------------------------------------------------------------


@pytest.fixture
def job(image_folder: Path, tiny_checkpoint: Path) -> list:
    return [TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--input-size", 12, "--crop-pct", 1,
            "--mean", 0.5, "--std", 0.25, "--workers", 0, "--device", "cpu"]  # fmt: skip


def test_evaluate_measures_every_condition(run: Run, job: list, night: Path, tmp_path: Path) -> None:
    kept = tmp_path / "shifted.npz"
    more = ["--data", f"night={night}", "--shift", "contrast:3,jpeg:4-5", "--shift", "fog", "--scores", kept]
    code, out, err = run("evaluate", *job, *more, "--format", "json")
    assert code == 0, err
    document = json.loads(out)
    names = [c["name"] for c in document["conditions"]]
    assert names == ["clean", "contrast", "jpeg", "fog", "night"]
    assert [c["severities"] for c in document["conditions"]] == [[], [3], [4, 5], [1, 2, 3, 4, 5], []]
    assert [c["made"] for c in document["conditions"]] == [False, True, True, True, False]
    assert [c["metrics"]["n"] for c in document["conditions"]] == [48, 48, 48, 48, 12]
    assert document["metrics"] == document["conditions"][0]["metrics"]
    top1 = [c["metrics"]["top1"] for c in document["conditions"]]
    error = document["mean_corruption_error"]
    assert error["shifts"] == 3
    assert error["mean"] == pytest.approx(1 - np.mean(top1[1:4]))
    assert error["relative"] == pytest.approx(top1[0] - np.mean(top1[1:4]))

    _, scores = read_evaluation(kept)
    number = conditions_of(scores.runs["evaluated"].ids)
    assert np.bincount(number).tolist() == [0, 48, 48, 48, 48, 12]
    alone = json.loads(run("evaluate", *job, "--format", "json")[1])
    assert alone["metrics"] == document["metrics"]
    assert alone["conditions"] == []
    assert alone["mean_corruption_error"] is None
    night_job = [night if word == job[4] else word for word in job]
    apart = json.loads(run("evaluate", *night_job, "--format", "json")[1])
    assert apart["metrics"] == pytest.approx(document["conditions"][4]["metrics"], abs=1e-6)
    assert run("evaluate", *job, "--scores", tmp_path / "plain.npz")[0] == 0
    code, out, err = run("compare", tmp_path / "plain.npz", kept)  # of the clean images
    assert code == 0, err
    assert "paired over 48 examples" in out


def test_evaluate_shows_a_table(run: Run, job: list, night: Path) -> None:
    code, out, err = run("evaluate", *job, "--data", f"night={night}", "--shift", "brightness:2-4")
    assert code == 0, err
    table = [line.split() for line in out.splitlines()]
    assert any(line[:3] == ["brightness", "2-4", "48"] for line in table)
    assert any(line[:2] == ["night", "12"] for line in table)
    assert "mean corruption error" in out
    assert "mean corruption error" not in run("evaluate", *job, "--data", f"night={night}")[1]


def test_a_file_of_settings_has_conditions(run: Run, job: list, night: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'data = "{job[4]}"\nconditions = ["night={night}"]\nshift = ["contrast:1"]\n')
    rest = [*job[:3], *job[5:], "--format", "json", "--config", file]
    named = lambda out: [c["name"] for c in json.loads(out)["conditions"]]  # noqa: E731
    assert named(run("evaluate", *rest)[1]) == ["clean", "contrast", "night"]
    other = ["--data", f"clean={job[4]}", "--data", f"dusk={night}"]
    assert named(run("evaluate", *rest, *other)[1]) == ["clean", "contrast", "dusk"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shift", "contrst"], "did you mean contrast"),
        (["--shift", "contrast:7"], "from 1 to 5"),
        (["--data", "elsewhere"], "expected NAME=DATA"),
        (["--data", "contrast=X", "--shift", "contrast"], "two conditions are called contrast"),
        (["--data", "night=X", "--data", "night=X"], "two conditions are called night"),
    ],
)
def test_what_names_no_condition_is_a_usage_error(run: Run, job: list, more: list, said: str) -> None:
    code, _, err = run("evaluate", *job, *more)
    assert code == 2
    assert said in " ".join(err.split())


def test_classes_have_to_be_the_same(run: Run, job: list, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", per_class=2, classes=("ant", "bee", "cow", "dog"))
    code, _, err = run("evaluate", *job, "--data", f"other={other}")
    assert code == 2
    assert "'cow' in place of 'cat'" in err


def test_conditions_open_as_the_settings_say(image_folder: Path, night: Path, tiny_checkpoint: Path) -> None:
    settings = EvaluateSettings(
        model=TINY, checkpoint=str(tiny_checkpoint), data=str(image_folder), input_size="12", crop_pct=1.0,
        mean="0.5", std="0.25", limit=8, seed=5, workers="0", device="cpu",
    )  # fmt: skip
    prepared = prepare(settings)
    assert open_conditions(settings, prepared) is None
    assert prepared.batches.cache == "none"
    wanted = replace(settings, shift=("fog:2",), conditions=(f"night={night}",))
    prepared = prepare(wanted)
    made = open_conditions(wanted, prepared)
    assert made is not None
    assert made.cache == "ram"  # each image is used twice
    assert (len(made), made.seed, made.batch_size) == (24, 5, prepared.batches.batch_size)
    assert made.batches_of(3).examples.source == str(night)
    assert made.examples is prepared.batches.examples
