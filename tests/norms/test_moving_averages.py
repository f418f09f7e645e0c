"""The paper's moving averages, of x and of x²: against the published equations, and what depends on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from test_ghost import as_numpy, randomise_
from torch import nn

import alphatune
from alphatune import BatchGroupNorm2d, GhostBatchNorm2d, GroupNorm2d
from alphatune.core.errors import ConfigurationError
from alphatune.norms.conversion import Norm, apply_layer_settings_, convert_, layer_settings
from alphatune.norms.surgery import become_example_weighted_

KINDS: dict[str, Callable[..., nn.Module]] = {
    "ghost": lambda **kwargs: GhostBatchNorm2d(6, 2, **kwargs),
    "one ghost": lambda **kwargs: GhostBatchNorm2d(6, 100, **kwargs),
    "batch-group": lambda **kwargs: BatchGroupNorm2d(2, 6, 2, **kwargs),
    "group": lambda **kwargs: GroupNorm2d(2, 6, **kwargs),
}


def batches(steps: int, *, shape: tuple[int, ...] = (5, 6, 3, 2), offset: float = 0.0) -> list[torch.Tensor]:
    """Batches that are not i.i.d.: each channel's mean wanders from step to step."""
    wandering = torch.randn(steps, 1, shape[1], *(1 for _ in shape[2:]), dtype=torch.float64) * 3
    return list(torch.randn(steps, *shape, dtype=torch.float64) + wandering + offset)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("shape", [(5, 6, 3, 2), (7, 6, 1, 1), (1, 6, 1, 1)])
def test_twenty_steps_of_the_published_equations(
    kind: str, momentum: float | None, shape: tuple[int, ...]
) -> None:
    layer = randomise_(KINDS[kind](momentum=momentum, dtype=torch.float64))
    start = as_numpy(layer.running_mean, layer.running_var)
    steps = batches(20, shape=shape)
    for x in steps:
        layer(x)
    mean, variance = reference.averages_of_raw_moments([x.numpy() for x in steps], momentum, *start)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-12, atol=1e-12)
    assert layer.num_batches_tracked == 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 1.0])
def test_inference_by_them(kind: str, alpha: float) -> None:
    layer = randomise_(KINDS[kind](dtype=torch.float64))
    steps = batches(20)
    start = as_numpy(layer.running_mean, layer.running_var)
    for x in steps:
        layer(x)
    mean, variance = reference.averages_of_raw_moments([x.numpy() for x in steps], 0.1, *start)
    become_example_weighted_(layer.eval(), alpha)
    alpha = float(np.float32(alpha))  # as a layer holds it
    x = batches(1)[0]
    affine = as_numpy(layer.weight, layer.bias)
    if layer.num_groups is None:
        expected = reference.example_weighted(x.numpy(), mean, variance, *affine, alpha, layer.eps)
    else:
        expected = reference.example_weighted_groups(x.numpy(), mean, variance, *affine, alpha, layer.eps, 2)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_momentum_of_zero_moves_nothing(kind: str) -> None:
    layer = randomise_(KINDS[kind](momentum=0.0))
    before = layer.running_mean.clone(), layer.running_var.clone()
    layer(torch.randn(4, 6, 3, 3))
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_far_from_zero_costs_no_digits(kind: str, dtype: torch.dtype) -> None:
    """Of E[x²] and m² in float32 nothing would be left: both are 10⁸, their difference 1."""
    layer = KINDS[kind](momentum=None)
    steps = [(torch.randn(5, 6, 8, 8) * 300 + 1e4).to(dtype) for _ in range(3)]
    for x in steps:
        layer(x)
    mean, variance = reference.averages_of_raw_moments([x.double().numpy() for x in steps], None)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "shape"), [*((kind, (0, 6, 3, 3)) for kind in KINDS), ("ghost", (4, 6, 0, 3))]
)
def test_an_empty_batch_moves_nothing(kind: str, shape: tuple[int, ...]) -> None:
    layer = randomise_(KINDS[kind]())
    before = layer.running_mean.clone()
    layer(torch.randn(shape))
    assert torch.equal(layer.running_mean, before)


def test_what_lies_between_groups_counts() -> None:
    """Half of the variance between examples, ghost size 2: averages of groups hold three quarters of it."""
    x = torch.randn(4000, 1, 400, 1) + torch.randn(4000, 1, 1, 1)
    held = {}
    for averages in ("paper", "group"):
        layer = GhostBatchNorm2d(1, 2, momentum=1.0, averages=averages)
        layer(x)
        held[averages] = float(layer.running_var)
    assert held["paper"] == pytest.approx(2, rel=0.05)
    assert held["group"] / held["paper"] == pytest.approx(0.75, rel=0.02)


def test_layers_of_earlier_versions_keep_theirs() -> None:
    """A record, a pickled layer and a norm that say nothing of averages had those of groups."""
    assert Norm.from_dict({"kind": "ghost", "ghost_batch_size": 4}).averages == "group"
    assert Norm.from_dict(Norm("ghost").to_dict()).averages == "paper"
    layer = GhostBatchNorm2d(6, 2)
    del layer.__dict__["averages"]
    assert layer.averages == "group"
    model = nn.Sequential(nn.BatchNorm2d(6))
    apply_layer_settings_(model, {"0": {"kind": "batch-group", "num_groups": 2, "examples_per_group": 2}})
    assert layer_settings(model)["0"]["averages"] == "group"
    apply_layer_settings_(nn.Sequential(model), {f"0.{k}": v for k, v in layer_settings(model).items()})


def test_an_unknown_kind_is_refused() -> None:
    for make in (lambda: Norm("ghost", averages="mean"), lambda: GhostBatchNorm2d(6, 2, averages="mean")):
        with pytest.raises(ConfigurationError, match="averages must be one of paper, group"):
            make()


@pytest.mark.parametrize("kind", ["batch-group", "group"])
def test_a_folder_evaluates_the_same_in_stock_code(kind: str, tmp_path: Path) -> None:
    """Layers with channel groups average their moments over each group at inference; a folder holds these averages."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 3))
    convert_(model, Norm(kind, num_groups=2))
    for x in batches(5, shape=(4, 3, 6, 6)):
        model(x.float())
    alphatune.save(model.eval(), tmp_path / "out")
    stock = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 3)).eval()
    from safetensors.torch import load_file

    stock.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    x = torch.randn(3, 3, 6, 6)
    alphatune.patch_(model, 0.0)
    torch.testing.assert_close(stock(x), model(x), rtol=1e-5, atol=1e-5)
    again = alphatune.load(
        tmp_path / "out",
        model=nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 3)),
    ).eval()
    alphatune.unpatch_(model)
    torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)
    assert layer_settings(again)["1"]["averages"] == "paper"
