"""γ and β tuned as α is: nothing at θ = 0, restored, and found where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conditioned import Conditioned, conditioned
from tiny import grouped, tiny
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.core.progress import as_meter
from alphatune.evaluation.predictor import Predictor
from alphatune.kernels.dispatch import use_kernel
from alphatune.models.calibration import calibrate_
from alphatune.norms.patching import get_alpha, patch_
from alphatune.tuning import affine
from alphatune.tuning.affine import (
    AffineUnits,
    affine_set,
    affine_units,
    apply_affine_,
    count_values,
)
from alphatune.tuning.descent import Fit, descend
from alphatune.tuning.journal import open_journal
from alphatune.tuning.objective import Objective


def network(build: Any = tiny) -> nn.Module:
    """A patched network whose γ, β and running statistics are not those of the start."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.rpartition(".")[0].endswith(("bn1", "bn2")) and tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand_like(tensor))
        model.head.weight.mul_(6)
        x = torch.randn(200, 3, 8, 8) + 2 * torch.randn(200, 3, 1, 1)
        model.head.bias.sub_(model(x).mean(0))  # or all images would be of one class
    if build is grouped:
        calibrate_(model, [torch.randn(64, 3, 8, 8)])
    patch_(model)
    return model


def frozen() -> nn.Module:
    model = tiny()
    model.bn1, model.bn2 = FrozenBatchNorm2d(8), FrozenBatchNorm2d(8)
    return model


def taught(model: nn.Module, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and labels drawn from what the network says."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 8, 8, generator=g) + 2 * torch.randn(n, 3, 1, 1, generator=g)
    with torch.no_grad():
        return x, torch.multinomial(model(x).softmax(1), 1, generator=g).squeeze(1)


def fitted(model: nn.Module, data: Conditioned, units: AffineUnits, **options: Any) -> Fit:
    settings: Any = {"prior": 0.0, "objective": Objective("loss"), "temperature": False, "seed": 0} | options
    return descend(Predictor(model), data, np.arange(len(data)), units, units.start, **settings)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("build", [tiny, frozen, grouped])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_changes_at_zero(build: Any, dtype: torch.dtype) -> None:
    model = network(build).to(dtype)
    x = torch.randn(4, 3, 8, 8, dtype=dtype)
    units = affine_units(model)
    assert len(units) == count_values(units.stored) == 4 * 8
    with torch.no_grad():
        plain = model(x)
        with affine_set(model, units.affine(units.start)):
            assert torch.equal(model(x), plain)
    with units.differentiable(model, units.start.requires_grad_()):
        assert torch.equal(model(x), plain)


def test_what_a_value_means() -> None:
    """γ + s·θ and β + s·θ, s the root mean square of the layer's γ; γ before β, layer after layer."""
    model = network()
    units = affine_units(model)
    theta = torch.randn(32, dtype=torch.float64)
    found = units.affine(theta)
    for place, name in enumerate(("bn1", "bn2")):
        layer = model.get_submodule(name)
        own = theta[16 * place : 16 * place + 16]
        s = layer.weight.double().square().mean().sqrt()
        torch.testing.assert_close(found[name][0], (layer.weight + s * own[:8]).float())
        torch.testing.assert_close(found[name][1], (layer.bias + s * own[8:]).float())


@pytest.mark.parametrize("build", [tiny, frozen, grouped])
def test_all_is_restored_on_any_exit(build: Any) -> None:
    model = network(build)
    before, parameters = bits(model), dict(model.named_parameters())
    units = affine_units(model)
    other = units.affine(units.start + 0.3)
    with pytest.raises(KeyError), affine_set(model, other):
        assert bits(model) != before
        raise KeyError
    with pytest.raises(KeyError), units.differentiable(model, units.start + 0.3):
        raise KeyError
    assert bits(model) == before
    assert all(p is parameters[name] for name, p in model.named_parameters())
    apply_affine_(model, other)
    for name, (gamma, beta) in other.items():
        assert torch.equal(model.get_submodule(name).weight, gamma)
        assert torch.equal(model.get_submodule(name).bias, beta)


class Stop(Exception):
    pass


def test_a_descent_that_fails_leaves_the_model_alone() -> None:
    model = network()
    patch_(model, 0.2)
    before = bits(model)
    data = conditioned([taught(model, 300)])

    def stop(done: int, _: int | None) -> None:
        if done > 700:
            raise Stop

    with pytest.raises(Stop):
        fitted(model, data, affine_units(model), meter=as_meter(stop))
    assert bits(model) == before
    assert get_alpha(model) == pytest.approx({"bn1": 0.2, "bn2": 0.2})
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("metric", ["loss", "top1"])
def test_what_was_perturbed_is_repaired(metric: Any) -> None:
    model = network()
    x, y = taught(model, 1000)
    fresh = taught(model, 2000, seed=1)

    def value() -> float:
        with torch.no_grad():
            z = model(fresh[0])
        if metric == "loss":
            return float(nn.functional.cross_entropy(z, fresh[1]))
        return 1 - float((z.argmax(1) == fresh[1]).float().mean())

    best = value()
    units = affine_units(model)
    g = torch.Generator().manual_seed(5)
    apply_affine_(model, units.affine(0.5 * torch.randn(32, dtype=torch.float64, generator=g)))
    perturbed = value()
    units = affine_units(model)
    fit = fitted(model, conditioned([(x, y)]), units, objective=Objective(metric))
    with affine_set(model, units.affine(fit.values)):
        repaired = value()
    assert perturbed > best + 0.02
    assert repaired < perturbed - 0.3 * (perturbed - best)
    assert value() == perturbed


def test_where_nothing_beats_the_start_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    monkeypatch.setattr(affine, "LEARNING_RATE", 50.0)
    units = affine_units(model)
    fit = fitted(model, conditioned([taught(model, 300)]), units)
    assert fit.steps == 0
    assert set(fit.values) == {0.0}


def test_a_descent_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    model = network()
    data = conditioned([taught(model, 400)])
    units = affine_units(model)
    apply_affine_(model, units.affine(units.start + 0.2))
    units = affine_units(model)
    whole = fitted(model, data, units)
    assert whole.steps > 0

    def stop(done: int, _: int | None) -> None:
        if done > 3000:
            raise Stop

    journal = open_journal(tmp_path / "j", {"seed": 0}, resume=False, minutes=0)
    with pytest.raises(Stop):
        fitted(model, data, units, journal=journal.entry("affine-0"), meter=as_meter(stop))
    again = open_journal(tmp_path / "j", {"seed": 0}, resume=True, minutes=0).entry("affine-0")
    assert again.read() is not None
    resumed = fitted(model, data, units, journal=again)
    assert np.array(resumed.values).tobytes() == np.array(whole.values).tobytes()
    assert resumed == whole


@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("build", [tiny, frozen, grouped])
@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_gradients_are_those_of_finite_differences(build: Any, alpha: float | None, kernel: Any) -> None:
    model = network(build).double()
    x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 4
    units = affine_units(model, alpha)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        with units.differentiable(model, theta):
            return nn.functional.cross_entropy(model(x), y)

    g = torch.Generator().manual_seed(1)
    theta = 0.1 * torch.randn(len(units), dtype=torch.float64, generator=g)
    with use_kernel(kernel), units.kept(model):
        found = torch.autograd.grad(loss(theta.requires_grad_()), theta)[0]
        with torch.no_grad():
            step = 1e-7 * torch.eye(len(units), dtype=torch.float64)
            wanted = torch.stack([(loss(theta + d) - loss(theta - d)) / 2e-7 for d in step])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert float((found != 0).double().mean()) > 0.8  # a channel may be dead


def test_alpha_meanwhile() -> None:
    model = network()
    patch_(model, 0.2)
    for alpha, wanted in ((None, 0.0), (0.5, 0.5), ({"bn1": 0.1}, {"bn1": 0.1, "bn2": 0.0})):
        with affine_units(model, alpha).kept(model):  # type: ignore[arg-type]
            expected = wanted if isinstance(wanted, dict) else {"bn1": wanted, "bn2": wanted}
            assert get_alpha(model) == pytest.approx(expected)


def test_no_gamma_to_tune() -> None:
    model = tiny().eval()
    model.bn1, model.bn2 = (nn.BatchNorm2d(8, affine=False) for _ in range(2))
    patch_(model)
    with pytest.raises(UnsupportedModelError, match="γ and β"):
        affine_units(model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": (torch.zeros(2), torch.zeros(2))}, "shape"),
        ({"nothing": (torch.ones(8), torch.ones(8))}, "'nothing'"),
        ({"bn2": (torch.ones(8), torch.full((8,), torch.nan))}, "NaN"),
    ],
)
def test_values_of_another_model(values: Any, message: str) -> None:
    model = network()
    before = bits(model)
    good = {"bn1": (torch.ones(8), torch.ones(8))}
    with pytest.raises(ConfigurationError, match=message):
        apply_affine_(model, good | values)
    with pytest.raises(ConfigurationError, match=message), affine_set(model, good | values):
        pass
    assert bits(model) == before
