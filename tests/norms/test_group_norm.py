"""GroupNorm with moving moments: nn.GroupNorm to the bit, and example weighting from the other end."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference
import torch
from test_ghost import as_numpy, randomise_
from torch import nn

from alphatune import BatchGroupNorm2d, GroupNorm2d, patch_, unpatch_
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.kernels.moments import average_over_groups
from alphatune.norms.group import GroupNorm1d, GroupNorm3d, GroupNormAct2d
from alphatune.norms.patching import unpatched_alpha
from alphatune.norms.surgery import become_example_weighted_, become_stock_

FORMATS = [torch.contiguous_format, torch.channels_last]


def group_norm_like(layer: nn.Module) -> nn.GroupNorm:
    norm = nn.GroupNorm(layer.num_groups, layer.num_features, layer.eps, layer.affine)
    if layer.affine:
        norm.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("affine", [True, False])
def test_is_group_norm_bit_for_bit(training: bool, memory_format: torch.memory_format, affine: bool) -> None:
    layer = randomise_(GroupNorm2d(3, 12, eps=1e-3, affine=affine)).train(training)
    x = torch.randn(5, 12, 4, 6).contiguous(memory_format=memory_format).requires_grad_()
    y, expected = layer(x), group_norm_like(layer)(x)
    assert torch.equal(y, expected)
    dy = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(expected, x, dy)[0])


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 5), (6, 8, 3, 3), (6, 8, 2, 3, 2), (1, 8, 2, 2)])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.1])
def test_moving_moments_are_batch_groups_of_one_example(
    shape: tuple[int, ...], momentum: float | None
) -> None:
    kind = {2: GroupNorm1d, 3: GroupNorm1d, 4: GroupNorm2d, 5: GroupNorm3d}[len(shape)]
    layer = kind(2, 8, momentum=momentum, averages="group")
    mean, variance = np.zeros(8), np.ones(8)
    for step in (1, 2):
        x = torch.randn(shape) * 2 + 1
        layer(x)
        _, step_mean, step_var = reference.batch_group_norm(as_numpy(x)[0], None, None, 2, 1, 1e-5)
        f = 1 / step if momentum is None else momentum
        mean, variance = (1 - f) * mean + f * step_mean, (1 - f) * variance + f * step_var
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-5)
    assert layer.num_batches_tracked == 2


def test_eval_moves_nothing() -> None:
    layer = randomise_(GroupNorm2d(2, 8)).eval()
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(3, 8, 4, 4))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("examples", [1, 3])
def test_single_values_come_out_as_beta_and_move_nothing(examples: int) -> None:
    layer = randomise_(GroupNorm2d(4, 4, averages="group"))
    before = copy.deepcopy(layer.state_dict())
    y = layer(torch.randn(examples, 4, 1, 1))
    torch.testing.assert_close(y.flatten(1), layer.bias.expand(examples, 4))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_half_precision_statistics() -> None:
    layer = GroupNorm2d(2, 8, averages="group")
    x = (torch.randn(6, 8, 9, 9) * 30 + 300).bfloat16()
    _, mean, variance = reference.batch_group_norm(as_numpy(x)[0], None, None, 2, 1, 1e-5)
    assert layer(x).dtype == torch.bfloat16
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * variance, rtol=1e-4)


def test_activation_is_kept() -> None:
    layer = GroupNormAct2d(2, 6, act_layer=nn.SiLU)
    x = torch.randn(5, 6, 4, 4)
    for training in (True, False):
        assert torch.equal(layer.train(training)(x), nn.functional.silu(group_norm_like(layer)(x)))


def test_without_moving_averages() -> None:
    layer = GroupNorm2d(2, 6, track_running_stats=False)
    x = torch.randn(5, 6, 4, 4)
    assert torch.equal(layer(x), group_norm_like(layer)(x))
    assert torch.equal(layer.eval()(x), group_norm_like(layer)(x))


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="divide"):
        GroupNorm2d(4, 6)
    assert "num_groups=2" in repr(GroupNorm2d(2, 6))
    assert list(GroupNorm2d(2, 6).state_dict()) == list(nn.BatchNorm2d(6).state_dict())


# Example weighting of layers with channel groups


@pytest.mark.parametrize("kind", ["group", "batch-group"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 6, 1, 1)])
def test_example_weighting_equals_the_reference(kind: str, alpha: float, shape: tuple[int, ...]) -> None:
    layer = randomise_(
        GroupNorm2d(2, 6, eps=1e-3) if kind == "group" else BatchGroupNorm2d(2, 6, 3, eps=1e-3)
    )
    become_example_weighted_(layer.eval(), alpha)
    x = torch.randn(shape) * 2 + 1
    expected = reference.example_weighted_groups(
        *as_numpy(x, layer.running_mean, layer.running_var, layer.weight, layer.bias), alpha, 1e-3, 2
    )
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_alpha_one_is_group_norm_and_alpha_zero_is_inference_by_moving_averages() -> None:
    layer = randomise_(GroupNorm2d(2, 6)).eval()
    group_norm, x = group_norm_like(layer), torch.randn(4, 6, 5, 3)
    become_example_weighted_(layer, 1.0)
    assert torch.equal(layer(x), group_norm(x))
    layer.set_alpha(1 - 1e-7)  # the formula, just beside the layer's own forward
    torch.testing.assert_close(layer(x), group_norm(x), rtol=1e-4, atol=1e-5)
    layer.set_alpha(torch.tensor([1.0, 1, 1, 1, 1, 0]))
    torch.testing.assert_close(layer(x)[:, :5], group_norm(x)[:, :5], rtol=1e-4, atol=1e-5)
    layer.set_alpha(0.0)
    inference = BatchGroupNorm2d(2, 6, 1).eval()
    inference.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), inference(x), rtol=1e-4, atol=1e-5)
    become_stock_(layer)
    assert type(layer) is GroupNorm2d
    assert torch.equal(layer(x), group_norm(x))


def test_unpatched_alpha_of_a_model() -> None:
    norms = [GroupNorm2d(2, 4), GroupNorm2d(2, 4)]
    model = nn.Sequential(*norms).eval()
    x = torch.randn(2, 4, 5, 5)
    before = model(x)
    patch_(model, 0.25)
    assert unpatched_alpha(model) == 1.0
    assert not torch.equal(model(x), before)
    patch_(model, {"0": 0.5})  # a layer that is not named stays what it was
    assert model[1].alpha == 1.0
    patch_(model, 1.0)
    assert torch.equal(model(x), before)
    unpatch_(model)
    assert torch.equal(model(x), before)
    plain, mixed = nn.Sequential(nn.BatchNorm2d(4)), nn.Sequential(nn.BatchNorm2d(4), GroupNorm2d(2, 4))
    patch_(plain)
    patch_(mixed)
    assert unpatched_alpha(plain) == 0.0
    with pytest.raises(UnsupportedModelError, match="no single α"):
        unpatched_alpha(mixed)


def test_averaging_equal_moments_changes_no_bit() -> None:
    mean, variance = torch.randn(3).repeat_interleave(5), torch.rand(3).repeat_interleave(5)
    assert all(
        torch.equal(a, b)
        for a, b in zip(average_over_groups(mean, variance, 3), (mean, variance), strict=True)
    )


def test_averaging_keeps_its_digits_at_a_large_mean() -> None:
    mean, variance = torch.randn(6) + 1e4, torch.rand(6) + 0.1
    pooled = average_over_groups(mean, variance, 2)
    exact = average_over_groups(mean.double(), variance.double(), 2)
    for a, b in zip(pooled, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)
