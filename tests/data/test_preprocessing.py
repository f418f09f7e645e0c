"""Where the evaluation transform comes from, and how its parts are overridden."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from alphatune.core.errors import ConfigurationError
from alphatune.data.preprocessing import (
    Preprocessing,
    parse_numbers,
    preprocessing_of_timm,
    preprocessing_of_torchvision,
)

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (301, 407, 3), dtype=np.uint8))


def prepared(preprocessing: Preprocessing) -> torch.Tensor:
    return preprocessing.normalise(preprocessing.transform()(IMAGE)[None])


@pytest.mark.parametrize(
    "name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100", "inception_v3"]
)
def test_timm_models_are_prepared_as_timm_does(name: str) -> None:
    model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**config, is_training=False)(IMAGE)
    torch.testing.assert_close(prepared(preprocessing_of_timm(model))[0], expected, rtol=1e-6, atol=1e-6)


def test_grey_models_read_grey() -> None:
    preprocessing = preprocessing_of_timm(timm.create_model("resnet18", in_chans=1))
    assert preprocessing.input_size == (1, 224, 224)
    assert preprocessing.image_mode == "L"


@pytest.mark.parametrize("name", torchvision.models.list_models(torchvision.models))
def test_all_torchvision_weights_are_prepared_as_torchvision_does(name: str) -> None:
    for weights in torchvision.models.get_model_weights(name):
        preset = weights.transforms()
        if type(preset).__name__ != "ImageClassification":
            continue
        got = preprocessing_of_torchvision(preset)
        size, resize = preset.crop_size[0], preset.resize_size[0]
        assert got.input_size == (3, size, size)
        assert math.floor(size / got.crop_pct) == resize
        assert got.interpolation == preset.interpolation.value
        assert got.mean == tuple(preset.mean)
        assert got.std == tuple(preset.std)


def test_torchvision_pixels_agree() -> None:
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2  # resized to 232, not 256
    got = prepared(preprocessing_of_torchvision(weights.transforms()))[0]
    torch.testing.assert_close(got, weights.transforms()(IMAGE), rtol=1e-5, atol=1e-5)


def test_override_keeps_the_rest() -> None:
    base = Preprocessing(input_size=(3, 224, 224), crop_pct=0.9)
    changed = base.override(input_size=(32.0,), mean=(0.5,), std=None)
    assert changed.input_size == (3, 32, 32)
    assert changed.mean == (0.5, 0.5, 0.5)
    assert changed.std == base.std
    assert changed.crop_pct == 0.9
    assert base.override(input_size=(20, 30)).input_size == (3, 20, 30)


@pytest.mark.parametrize(
    "parts",
    [
        {"input_size": (0,)},
        {"input_size": (4, 32, 32)},
        {"mean": (1.0, 2.0)},
        {"mean": (0.5, 0.5)},
        {"mean": (123.7, 116.3, 103.5)},
        {"mean": (math.nan, 0.0, 0.0)},
        {"std": (0.0, 1.0, 1.0)},
        {"std": (-0.2, 0.2, 0.2)},
        {"std": (math.nan, 0.2, 0.2)},
        {"std": (math.inf, 0.2, 0.2)},
        {"std": (0.2, 0.2)},
        {"std": (0.2, 0.2, 0.2, 0.2)},
        {"std": (58.395, 57.12, 57.375)},
        {"std": (0.229, 57.12, 0.225)},
        {"crop_pct": 0.0},
        {"crop_pct": 1.5},
        {"interpolation": "psychic"},
        {"crop_mode": "diagonal"},
    ],
)
def test_impossible_parts_are_refused(parts: dict) -> None:
    with pytest.raises(ConfigurationError):
        Preprocessing().override(**parts)


@pytest.mark.parametrize(
    ("mean", "std", "message", "remedy"),
    [
        ((0.485,), (58.395,), "std is in units of value / 255, got std [58.4", "divide by 255: std [0.229, 0.229"),
        ((123.675,), (0.229,), "mean is in units of value / 255, got mean [123.7", "divide by 255: mean [0.485"),
        ((123.675,), (58.395,), "mean and std are", "mean [0.485, 0.485, 0.485] and std [0.229, 0.229, 0.229]"),
        # As Caffe has it: the mean alone divided would leave a std of another scale.
        ((123.675,), (1.0,), "mean and std are", "mean [0.485, 0.485, 0.485] and std [0.003922, 0.003922, 0.003922]"),
        ((0.0,), (255.0,), "std is", "std [1.0, 1.0, 1.0]"),
    ],
)  # fmt: skip
def test_numbers_that_count_to_255(
    mean: tuple[float, ...], std: tuple[float, ...], message: str, remedy: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Preprocessing().override(mean=mean, std=std)
    assert message in refused.value.message
    assert remedy in refused.value.hint
    said = refused.value.hint.partition(": ")[2].split(" and ")  # and what is said is accepted
    numbers = {part.partition(" ")[0]: json.loads(part.partition(" ")[2]) for part in said}
    Preprocessing().override(**{"mean": mean, "std": std, **numbers})


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (0.0, 1.0),
        (0.5, 0.5),
        (0.0, 1 / 255),
        (123.675 / 255, 1 / 255),
        (0.0, 0.004),
        (-2.118, 1 / 0.229),
        (0.1, 0.02),
    ],
)
def test_unusual_numbers_of_the_right_scale(mean: float, std: float) -> None:
    assert Preprocessing().override(mean=(mean,), std=(std,)).std == (std,) * 3


def test_round_trip_through_json() -> None:
    preprocessing = Preprocessing(crop_mode="squash", mean=(0.1, 0.2, 0.3))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    with pytest.raises(ConfigurationError):
        Preprocessing.from_dict({"colour": "blue"})


def test_numbers_on_the_command_line() -> None:
    assert parse_numbers("0.5,1", "`mean`") == (0.5, 1.0)
    assert parse_numbers("3x32x32", "--input-size") == (3.0, 32.0, 32.0)
    with pytest.raises(ConfigurationError, match="`mean`"):
        parse_numbers("red", "`mean`")


@pytest.mark.parametrize("size", [(float("nan"), 12.0), (float("inf"),), (12.5,)])
def test_an_input_size_that_is_no_number_of_pixels(size: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="whole numbers"):
        Preprocessing().override(input_size=size)
