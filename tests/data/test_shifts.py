"""Corruptions: against independent transcriptions, alone and in batches, and how text names them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alphatune.core.errors import ConfigurationError
from alphatune.data.corruptions import CORRUPTIONS, SEVERITIES
from alphatune.data.datasets import open_data
from alphatune.data.loading import IndexedImages
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.shifts import LISTS, Shift, parse_shifts, shift_image

NAMES = tuple(CORRUPTIONS)
#: whose published severities differ in kind, too: first grey and then garish; first affine and then local
NOT_ORDERED = ("saturate", "elastic")


def noise_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width)).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs(cifar_test: Path) -> np.ndarray:
    """A few images of each class, 32×32."""
    examples = open_data(cifar_test).limit(60, seed=0)
    images = IndexedImages(examples, Preprocessing(input_size=(3, 32, 32), crop_pct=1))
    return np.stack([images[i][0].numpy() for i in range(len(images))])


# --- what they do ----------------------------------------------------------------------------


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [32, 224])
def test_contrast_and_brightness_equal_their_definitions(severity: int, side: int) -> None:
    import colorsys

    image = noise_image(side, side)
    values = image[:, :8].astype(np.float64) / 255
    factor = {32: [0.75, 0.5, 0.4, 0.3, 0.15], 224: [0.4, 0.3, 0.2, 0.1, 0.05]}[side][severity - 1]
    mean = image.reshape(3, -1).astype(np.float64).mean(1)[:, None, None] / 255
    expected = np.clip((values - mean) * factor + mean, 0, 1) * 255
    assert np.abs(shift_image(image, "contrast", severity)[:, :8] - expected).max() <= 0.501

    more = {32: [0.05, 0.1, 0.15, 0.2, 0.3], 224: [0.1, 0.2, 0.3, 0.4, 0.5]}[side][severity - 1]
    brighter = shift_image(image, "brightness", severity)
    for y, x in [(0, 0), (1, 2), (3, 5), (7, 31)]:
        h, s, v = colorsys.rgb_to_hsv(*values[:, y, x])
        expected = np.array(colorsys.hsv_to_rgb(h, s, min(v + more, 1))) * 255
        assert np.abs(brighter[:, y, x] - expected).max() <= 0.501


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturation_equals_its_definition(severity: int) -> None:
    import colorsys

    image = noise_image(16, 16)
    factor, more = [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)][severity - 1]
    shifted = shift_image(image, "saturate", severity)
    for y, x in np.ndindex(16, 16):
        h, s, v = colorsys.rgb_to_hsv(*image[:, y, x] / 255)
        expected = np.array(colorsys.hsv_to_rgb(h, min(s * factor + more, 1), v)) * 255
        assert np.abs(shifted[:, y, x] - expected).max() <= 0.501


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (3, 0.08), (5, 0.1)])
def test_noise_has_the_mean_and_variance_it_should(severity: int, sigma: float) -> None:
    grey = np.full((3, 64, 64), 128, np.uint8)  # 4 σ from both ends
    changes = np.stack(
        [shift_image(grey, "gaussian-noise", severity, 0, i) / 255 - 128 / 255 for i in range(8)]
    )
    n = changes.size
    assert abs(changes.mean()) < 5 * sigma / np.sqrt(n)
    assert changes.std() == pytest.approx(sigma, rel=5 / np.sqrt(2 * n))

    photons = [500, 250, 100, 75, 50][severity - 1]
    counts = np.stack([shift_image(grey, "shot-noise", severity, 0, i) / 255 for i in range(8)])
    assert counts.mean() == pytest.approx(128 / 255, abs=5 * np.sqrt(0.5 / photons / n))
    assert counts.var() == pytest.approx(128 / 255 / photons, rel=0.05)

    speckle = [0.06, 0.1, 0.12, 0.16, 0.2][severity - 1]
    scaled = np.stack([shift_image(grey, "speckle-noise", severity, 0, i) / 128 - 1 for i in range(8)])
    assert scaled.std() == pytest.approx(speckle, rel=0.03)

    share = [0.01, 0.02, 0.03, 0.05, 0.07][severity - 1]
    salted = np.stack([shift_image(grey, "impulse-noise", severity, 0, i) for i in range(8)])
    for value in (0, 255):
        assert (salted == value).mean() == pytest.approx(share / 2, abs=5 * np.sqrt(share / 2 / salted.size))
    assert set(np.unique(salted)) == {0, 128, 255}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 224])
def test_jpeg_and_pixelate_equal_pil(side: int, channels: int) -> None:
    image = noise_image(side, side, channels)
    picture = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
    for severity in SEVERITIES:
        file = io.BytesIO()
        quality = {32: [80, 65, 58, 50, 40], 224: [25, 18, 15, 10, 7]}[side][severity - 1]
        picture.save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file)).reshape(side, side, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(shift_image(image, "jpeg", severity), expected)

        factor = {32: [0.95, 0.9, 0.85, 0.75, 0.65], 224: [0.6, 0.5, 0.4, 0.3, 0.25]}[side][severity - 1]
        size = (int(side * factor),) * 2
        small = picture.resize(size, Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
        expected = np.asarray(small).reshape(side, side, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(shift_image(image, "pixelate", severity), expected)


def test_blurs_keep_a_flat_image_and_spread_a_point_over_their_kernel() -> None:
    flat = np.full((3, 224, 224), 77, np.uint8)
    point = np.zeros((1, 224, 224), np.uint8)
    point[0, 112, 112] = 255
    for name in ("defocus-blur", "gaussian-blur", "motion-blur", "zoom-blur", "elastic", "pixelate"):
        assert np.abs(shift_image(flat, name, 5).astype(int) - 77).max() <= 1, name
    spread = shift_image(point, "defocus-blur", 1)[0]  # a disk of radius 3 has 29 points
    rows, columns = np.nonzero(spread)
    assert len(rows) == 29
    assert ((rows - 112) ** 2 + (columns - 112) ** 2).max() == 9
    assert set(spread[rows, columns]) == {round(255 / 29)}


def test_motion_blur_is_a_line_within_45_degrees_of_the_rows() -> None:
    point = np.zeros((1, 224, 224), np.uint8)
    point[0, 112, 112] = 255
    slopes = []
    for i in range(40):
        rows, columns = np.nonzero(shift_image(point, "motion-blur", 2, 0, i)[0])
        assert columns.max() == 112
        assert rows[columns == 112].tolist() == [112]
        slope = (rows[columns == columns.min()][0] - 112) / (columns.min() - 112)
        assert np.abs((rows - 112) - slope * (columns - 112)).max() <= 1.5  # a line
        slopes.append(slope)
    assert min(slopes) >= -1.1
    assert max(slopes) <= 1.1
    assert np.std(slopes) > 0.3


def test_zoom_blur_equals_scipy() -> None:
    from scipy.ndimage import zoom

    image = noise_image(32, 32, 1)
    values = image[0] / 255
    factors = np.arange(1, 1.16, 0.01)
    total = values.copy()
    for factor in factors:
        inner = int(np.ceil(32 / factor))
        top = (32 - inner) // 2
        enlarged = zoom(values[top : top + inner, top : top + inner], factor, order=1)
        cut = (len(enlarged) - 32) // 2
        total += enlarged[cut : cut + 32, cut : cut + 32]
    expected = total / (len(factors) + 1) * 255
    assert np.abs(shift_image(image, "zoom-blur", 3)[0] - expected).max() <= 0.51


def test_fog_adds_one_map_to_all_channels_and_keeps_the_brightest_value() -> None:
    dark = np.zeros((3, 64, 48), np.uint8)
    assert not shift_image(dark, "fog", 5).any()
    grey = np.full((3, 64, 48), 128, np.uint8)
    foggy = shift_image(grey, "fog", 3).astype(float)
    assert (foggy == foggy[0]).all()
    strength, value = 0.75, 128 / 255  # (v + c f) v / (v + c) with f in 0..1
    low, high = (255 * (value + strength * f) * value / (value + strength) for f in (0, 1))
    assert foggy.min() >= low - 0.51
    assert foggy.max() <= high + 0.51
    assert foggy.max() - foggy.min() > (high - low) / 2
    neighbours = np.abs(np.diff(foggy[0], axis=0)).mean()
    assert neighbours < np.abs(foggy[0] - foggy[0].mean()).mean()  # clouds, no noise


@pytest.mark.parametrize("name", NAMES)
def test_more_severity_is_further_from_the_image(name: str, photographs: np.ndarray) -> None:
    ids = np.arange(len(photographs))
    distances = [
        np.abs(
            Shift(name).apply(photographs, np.full(len(ids), s), ids, 0).astype(float) - photographs
        ).mean()
        for s in SEVERITIES
    ]
    assert min(distances) > 0.1
    if name == "saturate":  # paler, then stronger
        assert distances[0] < distances[1]
        assert distances[2] < distances[3] < distances[4]
    if name not in NOT_ORDERED:
        assert distances == sorted(distances)
        assert distances[0] < distances[-1]


@pytest.mark.parametrize("name", [n for n in NAMES if CORRUPTIONS[n].powers])
def test_lengths_are_the_published_ones_at_the_published_sizes_and_scale_between(name: str) -> None:
    corruption = CORRUPTIONS[name]
    for severity in SEVERITIES:
        assert corruption.parameters(severity, 224, 300) == pytest.approx(corruption.large[severity - 1])
        assert corruption.parameters(severity, 32, 32) == pytest.approx(corruption.small[severity - 1])
        scaled = [p * 0.5**k for p, k in zip(corruption.large[severity - 1], corruption.powers, strict=True)]
        assert corruption.parameters(severity, 112, 112) == pytest.approx(scaled)


# --- on which images -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_type_stay_at_any_size(name: str, channels: int) -> None:
    for height, width in [(1, 1), (1, 5), (8, 8), (33, 47), (64, 65), (96, 70)]:
        image = noise_image(height, width, channels)
        before = image.copy()
        for severity in (1, 5):
            shifted = shift_image(image, name, severity, 3, 7)
            assert shifted.dtype == np.uint8
            assert shifted.shape == image.shape
            assert shifted.flags.c_contiguous
            assert not np.shares_memory(shifted, image)
        np.testing.assert_array_equal(image, before)


def test_saturation_leaves_images_of_one_channel_alone() -> None:
    image = noise_image(9, 9, 1)
    assert [n for n in NAMES if CORRUPTIONS[n].needs_colour] == ["saturate"]
    np.testing.assert_array_equal(shift_image(image, "saturate", 5), image)


@pytest.mark.parametrize(
    "image", [np.zeros((3, 8, 8), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)]
)
def test_other_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="expected an image of uint8"):
        shift_image(image, "contrast", 1)


# --- what a result depends on ----------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_alone_in_any_batch_and_in_any_order(name: str, side: int) -> None:
    rng = np.random.default_rng(1)
    count = 12 if side == 32 else 5
    images = rng.integers(0, 256, (count, 3, side, side)).astype(np.uint8)
    shift, ids = Shift(name), rng.permutation(1000)[:count]
    severities = shift.severity_of(count, 4)
    whole = shift.apply(images, severities, ids, 4)
    order = rng.permutation(count)
    np.testing.assert_array_equal(shift.apply(images[order], severities[order], ids[order], 4), whole[order])
    for i in range(count):
        alone = shift_image(images[i], name, int(severities[i]), 4, int(ids[i]))
        np.testing.assert_array_equal(alone, whole[i])


@pytest.mark.parametrize("name", [n for n in NAMES if "noise" in n or n in ("motion-blur", "fog", "elastic")])
def test_random_shifts_differ_by_image_and_by_seed(name: str) -> None:
    image = noise_image(32, 32)
    made = [shift_image(image, name, 3, seed, i) for seed, i in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert all((a != b).any() for i, a in enumerate(made) for b in made[:i])
    np.testing.assert_array_equal(made[3], shift_image(image, name, 3, 1, 1))


def test_severities_are_equal_parts_in_random_order() -> None:
    for n in (0, 1, 7, 100, 503):
        for severities in (SEVERITIES, (2, 3, 4), (5,)):
            levels = Shift("jpeg", severities).severity_of(n, 0)
            counts = [(levels == s).sum() for s in severities]
            assert sum(counts) == n
            assert max(counts) - min(counts) <= 1
    first, again, other = (Shift("jpeg").severity_of(100, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert (first != Shift("fog").severity_of(100, 0)).any()
    assert (np.diff(first) != 1).sum() > 20  # not 1, 2, 3, 4, 5 over and over


# --- as text ---------------------------------------------------------------------------------


def test_text_names_shifts_and_severities() -> None:
    assert parse_shifts("contrast:3,gaussian-noise:2-4, jpeg") == (
        Shift("contrast", (3,)),
        Shift("gaussian-noise", (2, 3, 4)),
        Shift("jpeg", (1, 2, 3, 4, 5)),
    )
    assert parse_shifts(["fog:1-1", "elastic"]) == (Shift("fog", (1,)), Shift("elastic"))
    assert parse_shifts(()) == ()
    assert [s.name for s in parse_shifts("common")] == list(LISTS["common"])
    assert {s.severities for s in parse_shifts("all:4-5")} == {(4, 5)}
    assert len(parse_shifts("imagenet-c")) == 12
    assert len(parse_shifts("all")) == 15


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gausian-noise", "unknown shift 'gausian-noise'.*did you mean gaussian-noise"),
        ("contrast,nothing-like-it", "unknown shift.*one of: gaussian-noise, "),
        ("contrast:6", "severities are from 1 to 5, got 'contrast:6'"),
        ("contrast:0", "severities are from 1 to 5"),
        ("contrast:4-2", "severities are from 1 to 5"),
        ("contrast:", "severities are from 1 to 5"),
        ("contrast:a", "severities are from 1 to 5"),
        ("contrast:1,contrast:2", "contrast was given twice"),
        ("common,jpeg", "jpeg was given twice"),
        ("", "unknown shift ''"),
    ],
)
def test_text_that_names_no_shift_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_shifts(text)
    assert re.search(said, f"{error.value.message} {error.value.hint}")


@pytest.mark.parametrize("severities", [(), (0,), (6,), (1, 1)])
def test_a_shift_has_severities_from_1_to_5(severities: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="severities of contrast"):
        Shift("contrast", severities)
