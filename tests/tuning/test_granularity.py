"""Which α are one number."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny
from torch import nn

from alphatune.models.cifar import resnet20
from alphatune.norms.patching import get_alpha, patch_, set_alpha_
from alphatune.tuning.granularity import GRANULARITIES, Units, units_of


def resnet() -> nn.Module:
    model = resnet20().eval()
    patch_(model)
    return model


def test_stages_of_a_resnet() -> None:
    units = units_of(resnet(), "stage", torch.zeros(1, 3, 32, 32))
    assert units.names == ("stage 1 (32×32)", "stage 2 (16×16)", "stage 3 (8×8)")
    stages = {name: index.start for name, index in units.layers}
    assert stages["bn1"] == stages["layer1.2.bn2"] == 0
    assert stages["layer2.0.bn1"] == 1
    assert stages["layer3.2.bn2"] == 2


@pytest.mark.parametrize(
    ("granularity", "count"),
    [("global", 1), ("stage", 3), ("layer", 19), ("channel", 16 * 7 + 32 * 6 + 64 * 6)],
)
def test_numbers_of_a_resnet(granularity: str, count: int) -> None:
    model = resnet()
    units = units_of(model, granularity, torch.zeros(1, 3, 32, 32))
    assert len(units) == count
    assert {name for name, _ in units.layers} == get_alpha(model).keys()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "build",
    [
        tiny,
        lambda: timm.create_model("efficientnet_lite0", num_classes=4),
        lambda: torchvision.models.densenet121(num_classes=4),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)),
    ],
)
def test_alphas_reach_the_layers(build: object, granularity: str) -> None:
    model = build().eval()  # type: ignore[operator]
    patch_(model)
    units = units_of(model, granularity, torch.zeros(2, 3, 32, 32))
    values = torch.rand(len(units), dtype=torch.float64)
    set_alpha_(model, units.alphas(values))
    for name, index in units.layers:
        wanted = values[index.start : index.stop].float()
        found = torch.as_tensor(get_alpha(model)[name])
        torch.testing.assert_close(found.reshape(-1), wanted)
    assert torch.allclose(units.gather(units.alphas(values)), values, atol=1e-6)
    assert not any(m._forward_pre_hooks for m in model.modules())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_spread_and_gather_are_inverse(sizes: list[int], seed: int) -> None:
    stops = torch.tensor(sizes).cumsum(0).tolist()
    layers = tuple(
        (f"l{i}", range(stop - size, stop)) for i, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    )
    units = Units("channel", layers, tuple(name for name, _ in layers))
    values = torch.rand(stops[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(units.gather(units.spread(values)), values)


def test_a_layer_that_is_not_reached_gets_an_alpha() -> None:
    model = tiny()
    model.unused = nn.BatchNorm2d(3)
    patch_(model.eval())
    units = units_of(model, "layer", torch.zeros(1, 3, 12, 12))
    assert "unused" in dict(units.layers)
