"""Norms that keep no averages, with calibrated ones: against the reference, and everything they promise."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference
import timm
import torch
import torch.nn.functional as F
from test_example_weighted import uncalibrated
from torch import nn

from alphatune.kernels.moments import example_weighted_layer_norm, example_weighted_norm
from alphatune.norms.calibrated import CALIBRATED, Calibrated, can_be_calibrated, channel_groups
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.example_weighted import EXAMPLE_WEIGHTED
from alphatune.norms.patching import patch_, unpatch_
from alphatune.norms.surgery import (
    become_calibrated_,
    become_example_weighted_,
    become_stock_,
    become_uncalibrated_,
)
from alphatune.norms.survey import survey

KINDS = list(uncalibrated())


def layer_and_input(kind: str) -> tuple[nn.Module, torch.Tensor]:
    layer, shape = uncalibrated()[kind]
    with torch.no_grad():
        if layer.weight is not None:
            layer.weight.normal_()
            layer.bias.normal_()
    return layer.eval(), torch.randn(shape) * 2 + 1


def moments() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6), torch.rand(6) + 0.3


def numpy(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().double().numpy()


def expected(layer: nn.Module, x: np.ndarray, alpha: float) -> np.ndarray:
    tensors = [numpy(getattr(layer, n)) for n in ("running_mean", "running_var", "weight", "bias")]
    if isinstance(layer, nn.LayerNorm):
        return reference.example_weighted_positions(x, *tensors, alpha, layer.eps)
    if channel_groups(layer) is None:
        return reference.example_weighted(x, *tensors, alpha, layer.eps)
    return reference.example_weighted_groups(x, *tensors, alpha, layer.eps, layer.num_groups)


def test_every_kind_is_tested() -> None:
    assert {type(layer) for layer, _ in uncalibrated().values()} == set(CALIBRATED)
    assert set(CALIBRATED.values()) <= set(EXAMPLE_WEIGHTED)
    for stock, calibrated in CALIBRATED.items():
        assert issubclass(calibrated, stock)
        assert issubclass(calibrated, Calibrated)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.95])
def test_forward_and_gradient_equal_the_reference(kind: str, alpha: float) -> None:
    layer, x = layer_and_input(kind)
    x = x[(slice(2), slice(None), *[slice(2)] * (x.ndim - 2))]  # numerical derivatives are slow
    become_calibrated_(layer, *moments())
    become_example_weighted_(layer, alpha)
    act = layer._modules.get("act")
    if act is not None:
        layer.act = nn.Identity()
    alpha = float(layer.alpha)
    with torch.no_grad():
        y = layer(x)
    np.testing.assert_allclose(y.numpy(), expected(layer, numpy(x), alpha), rtol=1e-4, atol=2e-5)
    x.requires_grad_()
    y, dy = layer(x), torch.randn_like(x)
    np.testing.assert_allclose(y.detach().numpy(), expected(layer, numpy(x), alpha), rtol=1e-4, atol=2e-5)
    (gradient,) = torch.autograd.grad(y, x, dy)
    numerical = reference.derivative(
        lambda at: float(np.sum(expected(layer, at, alpha) * numpy(dy))), numpy(x)
    )
    np.testing.assert_allclose(gradient.numpy(), numerical, rtol=2e-3, atol=2e-3)
    if act is not None:
        layer.act = act
        torch.testing.assert_close(layer(x), act(y))


@pytest.mark.parametrize("kind", KINDS)
def test_calibrating_changes_no_bit_and_no_key(kind: str) -> None:
    layer, x = layer_and_input(kind)
    before, keys, cls, attributes = layer(x), list(layer.state_dict()), type(layer), set(layer.__dict__)
    buffers, random = dict(layer._buffers), any(isinstance(m, nn.Dropout) for m in layer.modules())
    become_calibrated_(layer, *moments())
    averages = layer.running_mean.clone(), layer.running_var.clone()
    assert torch.equal(layer(x), before)
    assert list(layer.state_dict()) == keys
    assert uncalibrated()[kind][0].load_state_dict(layer.state_dict(), strict=True)
    if not random:  # neither does training use the averages, nor move them
        assert torch.equal(layer.train()(x), before)
        layer.eval()
    patch_(layer)
    assert layer.alpha == 1
    assert torch.equal(layer(x), before)
    assert list(layer.state_dict()) == keys
    unpatch_(layer)
    # torch's InstanceNorm moves the averages it is given, in eval mode, too: nothing may move these.
    assert torch.equal(layer.running_mean, averages[0])
    assert torch.equal(layer.running_var, averages[1])
    assert torch.equal(copy.deepcopy(layer)(x), before)
    become_uncalibrated_(layer)
    assert type(layer) is cls
    assert set(layer.__dict__) == attributes
    assert layer._buffers == buffers
    assert layer._non_persistent_buffers_set == set()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_zero_is_inference_by_the_averages(kind: str) -> None:
    layer, x = layer_and_input(kind)
    become_calibrated_(layer, *moments())
    become_example_weighted_(layer, 0.0)
    mean, variance = layer.running_mean, layer.running_var
    if (groups := channel_groups(layer)) is not None:
        shape = (groups, -1)
        second = (variance + mean**2).view(shape).mean(1)
        mean = mean.view(shape).mean(1)
        variance = second - mean**2
        mean, variance = (t.repeat_interleave(6 // groups) for t in (mean, variance))
    y = F.batch_norm(x, mean, variance, layer.weight, layer.bias, False, 0.0, layer.eps)
    torch.testing.assert_close(layer(x), getattr(layer, "act", nn.Identity())(y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_averages_follow_the_device_and_stay_float32(kind: str) -> None:
    layer, x = layer_and_input(kind)
    become_calibrated_(layer, *moments())
    for weighted in (False, True):
        if weighted:
            become_example_weighted_(layer, 0.4)
        before = layer.running_mean.clone()
        layer.half()
        assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
        assert torch.equal(layer.running_mean, before)
        assert layer(x.half()).dtype == torch.float16
        layer.float()
        layer.to("meta").to_empty(device="cpu")  # what a state dict does not hold is not lost
        assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("alpha", [torch.tensor(0.3), torch.linspace(0, 1, 6)])
@pytest.mark.parametrize("affine", [True, False])
def test_positions_are_rows_in_one_group(
    memory_format: torch.memory_format, alpha: torch.Tensor, affine: bool
) -> None:
    x = (torch.randn(3, 6, 4, 5) * 2 + 1).contiguous(memory_format=memory_format)
    tensors = (*moments(), *((torch.randn(6), torch.randn(6)) if affine else (None, None)))
    y = example_weighted_layer_norm(x, *tensors, alpha, 1e-3)
    assert y.is_contiguous(memory_format=memory_format)
    rows = example_weighted_norm(x.permute(0, 2, 3, 1).reshape(-1, 6), *tensors, alpha, 1e-3, num_groups=1)
    torch.testing.assert_close(y, rows.view(3, 4, 5, 6).permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def test_an_instance_norm_takes_one_example_without_a_batch() -> None:
    layer, x = layer_and_input("InstanceNorm2d")
    become_calibrated_(layer, *moments())
    become_example_weighted_(layer, 0.5)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_new_moments_replace_older_ones_patched_or_not() -> None:
    layer, _ = layer_and_input("GroupNorm")
    become_calibrated_(layer, *moments())
    become_example_weighted_(layer, 0.5)
    mean, variance = moments()
    become_calibrated_(layer, mean, variance)
    assert torch.equal(layer.running_mean, mean)
    mean.zero_()  # a copy was kept
    assert layer.running_mean.any()
    become_stock_(layer)
    assert torch.equal(layer.running_var, variance)
    with torch.inference_mode():
        become_calibrated_(layer, *moments())
    layer.running_mean.add_(1)


class OddGroupNorm(nn.GroupNorm):
    """A relative that alphatune cannot know."""


@pytest.mark.parametrize(
    "module",
    [
        OddGroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        timm.layers.LayerNorm(4),
        *([timm.layers.LayerNorm2dFp32(4)] if hasattr(timm.layers, "LayerNorm2dFp32") else []),
        nn.LazyInstanceNorm2d(),
    ],
)
def test_what_is_not_calibrated_is_skipped(module: nn.Module) -> None:
    assert not can_be_calibrated(module)
    assert survey(module)[0].status in ("skipped", "unsupported")


def test_the_survey_says_what_can_be_calibrated() -> None:
    for kind, (layer, _) in uncalibrated().items():
        (before,) = survey(layer)
        assert before.status == "calibratable", kind
        assert "`calibrate`" in before.reason
        assert before.num_features == 6
        become_calibrated_(layer, *moments())
        (after,) = survey(layer)
        assert (after.status, after.kind, after.num_features) == ("patchable", before.kind, 6)
        become_example_weighted_(layer, 0.5)
        assert (survey(layer)[0].status, survey(layer)[0].kind) == ("patched", before.kind)


def test_a_replaced_forward_and_own_averages_are_not_overruled() -> None:
    layer = nn.GroupNorm(2, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert survey(layer)[0].status == "skipped"
    assert survey(nn.InstanceNorm2d(4, track_running_stats=True))[0].status == "unsupported"


def test_training_conversion_leaves_them_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.GroupNorm(2, 4))
    become_calibrated_(model[1], torch.zeros(4), torch.ones(4))
    assert convert_(model, Norm("ghost")) == ("0",)
