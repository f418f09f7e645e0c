"""Inference by the test batch's statistics: the equation, its limits, and what it leaves as it was."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from reference import batch_statistics as reference
from test_example_weighted import after, stock_layers
from tiny import no_norm, odd, tiny
from torch import nn

import alphatune
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.norms.batch_statistics import PSEUDO_COUNT, batch_statistics, batch_statistics_norm
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.patching import get_alpha

BATCHNORMS = [name for name in stock_layers() if not name.startswith(("group ", "calibrated "))]
COUNTS = [0.0, 1.0, 16.0, 1000.0, math.inf]
SHAPES = [(5, 4), (5, 4, 7), (3, 4, 5, 6), (2, 4, 3, 4, 5), (3, 4, 1, 1), (1, 4, 6, 6)]


def moving(channels: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    mean, weight, bias = torch.randn(3, channels, generator=generator)
    return mean, torch.rand(channels, generator=generator) + 0.5, weight, bias


def prepared(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A layer with moving averages and affine of its own, in eval mode, and an input."""
    layer, shape = stock_layers()[name]
    mean, variance, weight, bias = moving(6)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
    if layer.weight is not None:
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
    return layer.eval(), 3 * torch.randn(shape) + 1


@pytest.mark.parametrize("pseudo_count", COUNTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference(shape: tuple[int, ...], pseudo_count: float) -> None:
    x = 2 * torch.randn(shape) + torch.randn(shape[1]).view(1, -1, *(1 for _ in shape[2:]))
    arguments = moving(4)
    y = batch_statistics_norm(x, *arguments, 1e-3, pseudo_count)
    expected = reference(x.numpy(), *(a.numpy() for a in arguments), 1e-3, pseudo_count)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("form", ["channels_last", "transposed", "sliced"])
def test_memory_formats(form: str) -> None:
    x = torch.randn(3, 4, 6, 6)
    other = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.mT.contiguous().mT,
        "sliced": torch.cat([x, x], dim=1)[:, :4],
    }[form]
    arguments = (*moving(4), 1e-5, PSEUDO_COUNT)
    y = batch_statistics_norm(other, *arguments)
    torch.testing.assert_close(y, batch_statistics_norm(x, *arguments), rtol=1e-5, atol=1e-5)
    if form == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_statistics_are_float32_at_least(dtype: torch.dtype) -> None:
    x = (1000 + 300 * torch.randn(4, 4, 5, 5)).to(dtype)  # squares overflow float16
    arguments = moving(4)
    y = batch_statistics_norm(x, *arguments, 1e-5, 2.0)
    expected = reference(x.double().numpy(), *(a.numpy() for a in arguments), 1e-5, 2.0)
    assert y.dtype == dtype
    digits = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-6}[dtype]
    np.testing.assert_allclose(y.double(), expected, rtol=digits, atol=digits)


@pytest.mark.parametrize("name", BATCHNORMS)
def test_every_kind_of_layer(name: str) -> None:
    layer, x = prepared(name)
    plain = layer(x)
    groups = getattr(layer, "num_groups", None)
    weight, bias = (None if t is None else t.detach().numpy() for t in (layer.weight, layer.bias))
    expected = reference(
        x.numpy(), layer.running_mean.numpy(), layer.running_var.numpy(), weight, bias, layer.eps, 16, groups
    )
    y_hat = torch.from_numpy(expected)
    y_hat = after(layer, y_hat)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    model = nn.Sequential(layer)
    with torch.no_grad(), batch_statistics(model) as names:
        assert names == ("0",)
        torch.testing.assert_close(layer(x).double(), y_hat, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(layer(x), plain)
    assert "forward" not in layer.__dict__


@pytest.mark.parametrize("name", [n for n in BATCHNORMS if "rozen" not in n and "batch-group" not in n])
def test_no_pseudo_count_is_training_mode_and_infinite_is_eval_mode(name: str) -> None:
    layer, x = prepared(name)
    with torch.no_grad():
        plain = layer(x)
        with batch_statistics(nn.Sequential(layer), math.inf):
            assert torch.equal(layer(x), plain)
        # Of the kinds that normalise otherwise in training, the stock layer's training mode is meant.
        y = nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
        y = after(layer, y)
        with batch_statistics(nn.Sequential(layer), 0):
            torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-4)


def trained() -> nn.Module:
    model = tiny().train()
    for _ in range(10):
        model(2 * torch.randn(16, 3, 12, 12) + 1)
    return model.eval()


def test_a_network_in_both_limits() -> None:
    model, x = trained(), torch.randn(8, 3, 12, 12)
    with torch.no_grad():
        training = copy.deepcopy(model).train()(x)
        with batch_statistics(model, 0):
            torch.testing.assert_close(model(x), training, rtol=1e-4, atol=1e-4)
        plain = model(x)
        with batch_statistics(model, math.inf):
            assert torch.equal(model(x), plain)


def test_the_output_depends_on_companions() -> None:
    model, x = trained(), torch.randn(8, 3, 12, 12)
    with torch.no_grad():
        alone = model(x[:1])
        torch.testing.assert_close(model(x)[:1], alone)
        with batch_statistics(model):
            together = model(x)[:1]
            shifted = model(torch.cat([x[:1], x[1:] + 5]))[:1]
            assert (together - model(x[:1])).abs().max() > 1e-3
            assert (together - shifted).abs().max() > 0.1
        alphatune.patch_(model, 0.1)
        torch.testing.assert_close(model(x)[:1], model(torch.cat([x[:1], x[1:] + 5]))[:1])


def test_undone_on_an_exception_and_when_nested() -> None:
    model, x = trained(), torch.randn(4, 3, 12, 12)
    classes = [type(m) for m in model.modules()]
    with torch.no_grad():
        plain = model(x)
        with pytest.raises(KeyboardInterrupt), batch_statistics(model):
            raise KeyboardInterrupt
        assert torch.equal(model(x), plain)
        with batch_statistics(model, 4):
            outer = model(x)
            with batch_statistics(model, 0):
                assert not torch.equal(model(x), outer)
            assert torch.equal(model(x), outer)
        assert torch.equal(model(x), plain)
    assert [type(m) for m in model.modules()] == classes


def test_a_patched_model_is_unpatched_meanwhile() -> None:
    model, x = trained(), torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        with batch_statistics(model):
            expected = model(x)
        alphatune.patch_(model, 0.5)
        at_half = model(x)
        with batch_statistics(model):
            assert torch.equal(model(x), expected)
        assert torch.equal(model(x), at_half)
    assert set(get_alpha(model).values()) == {0.5}


def test_training_mode_is_as_ever() -> None:
    model, x = trained().train(), torch.randn(4, 3, 12, 12)
    other = copy.deepcopy(model)
    with batch_statistics(model):
        assert torch.equal(model(x), other(x))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_excluded_layers_and_groupnorm_stay() -> None:
    model = trained()
    with batch_statistics(model, exclude=["bn1"]) as names:
        assert names == ("bn2",)
    convert_(model, Norm("group", num_groups=4))
    model.bn2 = nn.BatchNorm2d(8)
    with batch_statistics(model) as names:
        assert names == ("bn2",)
    convert_(model, Norm("group", num_groups=4))
    with pytest.raises(UnsupportedModelError, match="only GroupNorm"), batch_statistics(model):
        pass


@pytest.mark.parametrize(
    ("model", "count", "error"),
    [
        (tiny(), -1, ConfigurationError),
        (tiny(), math.nan, ConfigurationError),
        (no_norm(), 16, UnsupportedModelError),
        (odd(), 16, UnsupportedModelError),
    ],
)
def test_errors(model: nn.Module, count: float, error: type[Exception]) -> None:
    with pytest.raises(error), batch_statistics(model, count):
        pass
