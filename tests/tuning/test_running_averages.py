"""Running statistics measured anew on the images of a tune, all conditions together."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conditioned import Conditioned, conditioned
from tiny import grouped, tiny
from torch import nn

from alphatune.core.errors import UnsupportedModelError
from alphatune.evaluation.predictor import Predictor
from alphatune.models.calibration import calibrate_
from alphatune.norms.patching import get_alpha, patch_
from alphatune.tuning.running_averages import apply_averages_, averages_set, measure_averages


def images(n: int = 60, batch_size: int = 200) -> Conditioned:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, 8, 8, generator=g), torch.zeros(n, dtype=torch.int64)
    return conditioned([(x, y), (3 * x + 1, y)], batch_size)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = tiny().eval()
    patch_(model, 0.2)
    return model


def test_they_are_those_of_a_training_pass_of_momentum_one() -> None:
    model, data = network(), images()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = measure_averages(Predictor(model), data, np.arange(len(data)), seed=0)
    own = copy.deepcopy(tiny())
    own.load_state_dict(model.state_dict())
    for layer in (own.bn1, own.bn2):
        layer.momentum = 1.0
    with torch.no_grad():
        own.train()(data.x)
    for name, (mean, variance) in found.items():
        layer = own.get_submodule(name)
        torch.testing.assert_close(mean, layer.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance, layer.running_var, rtol=1e-4, atol=1e-5)
    assert found.keys() == {"bn1", "bn2"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert get_alpha(model) == pytest.approx({"bn1": 0.2, "bn2": 0.2})
    with pytest.raises(KeyError), averages_set(model, found):
        assert torch.equal(model.bn1.running_mean, found["bn1"][0])
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    apply_averages_(model, found)
    assert torch.equal(model.bn2.running_var, found["bn2"][1])


def test_batches_are_of_all_conditions() -> None:
    """Batches of one condition each would take what tells the conditions apart out of the second layer's input."""
    model, data = network(), images(300, batch_size=100)
    found = measure_averages(Predictor(model), data, np.arange(len(data)), seed=0)
    data.batch_size = len(data)
    whole = measure_averages(Predictor(model), data, np.arange(len(data)), seed=0)
    torch.testing.assert_close(found["bn2"][1], whole["bn2"][1], rtol=0.1, atol=0)


def test_only_the_images_at_the_positions_count_and_no_label() -> None:
    model, data = network(), images()
    positions = np.arange(0, 120, 2)
    found = measure_averages(Predictor(model), data, positions, seed=0)
    data.x[1::2], data.y = torch.nan, data.y + 3
    again = measure_averages(Predictor(model), data, positions, seed=0)
    assert all(torch.equal(a, b) for name in found for a, b in zip(found[name], again[name], strict=True))


def test_a_shift_that_does_nothing_is_no_repetition() -> None:
    model, data = network(), images()
    same = conditioned([(data.x[:60], data.y[:60])] * 2)
    measure_averages(Predictor(model), same, np.arange(120), seed=0)


def test_layers_without_running_statistics() -> None:
    model = grouped().eval()
    calibrate_(model, [torch.randn(32, 3, 8, 8)])
    patch_(model)
    with pytest.raises(UnsupportedModelError):
        measure_averages(Predictor(model), images(), np.arange(20), seed=0)
