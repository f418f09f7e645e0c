"""Temperatures: the grid against a direct minimisation, and the hook on a model."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from scipy.optimize import minimize_scalar
from tiny import tiny
from torch import nn

import alphatune
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.data.loading import Batch
from alphatune.evaluation.predictor import score_logits
from alphatune.models.cifar import resnet20
from alphatune.tuning.temperature import (
    TEMPERATURES,
    TemperatureScores,
    concatenate_temperatures,
    score_temperatures,
)


def scored(logits: torch.Tensor, targets: torch.Tensor) -> TemperatureScores:
    scores = score_logits(logits, Batch(logits, targets, torch.arange(len(targets))))
    return TemperatureScores(scores, *score_temperatures(logits, targets))


def overconfident(n: int, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(n, 5)
    targets = torch.multinomial(logits.softmax(1), 1).squeeze(1)
    return logits * factor, targets


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.9, 4.0])
def test_the_best_temperature_is_that_of_a_minimiser(factor: float) -> None:
    logits, targets = overconfident(4000, factor)

    def loss(t: float) -> float:
        return float(nn.functional.cross_entropy(logits.double() / t, targets))

    best = minimize_scalar(loss, bounds=(0.1, 8), method="bounded")
    found = scored(logits, targets)
    t = found.best()
    assert t == pytest.approx(best.x, rel=0.02)
    assert loss(t) - best.fun < 1e-4
    np.testing.assert_allclose(found.at(t).loss.mean(dtype=np.float64), loss(t), rtol=1e-5)
    assert t == pytest.approx(factor, rel=0.1)  # what made the logits too large


def test_a_temperature_leaves_predictions_alone() -> None:
    logits, targets = overconfident(200, 3.0)
    found = scored(logits, targets)
    cooled = found.at(TEMPERATURES[-1])
    assert (cooled.predicted == found.scores.predicted).all()
    np.testing.assert_allclose(
        cooled.confidence, (logits / TEMPERATURES[-1]).softmax(1).max(1).values.numpy(), rtol=1e-5
    )
    assert found.at(1.0) is found.scores


def test_parts_are_joined_by_id() -> None:
    logits, targets = overconfident(60, 2.0)
    whole = scored(logits, targets)
    joined = concatenate_temperatures([whole.take(np.arange(30, 60)), whole.take(np.arange(30))])
    assert (joined.loss == whole.loss).all()
    assert (joined.scores.ids == np.arange(60)).all()


class Dictionary(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> object:
        y = self.head(x)
        return {"dict": {"out": y, "aux": y}, "tuple": (y, x), "list": [y, x], "tensor": y}[self.kind]


@pytest.mark.parametrize("kind", ["dict", "tuple", "list", "tensor"])
def test_logits_are_divided_wherever_they_are(kind: str) -> None:
    from alphatune.evaluation.reading import Reading, keep_reading_, logits_of

    model, x = Dictionary(kind), torch.randn(2, 4)
    keep_reading_(model, {"tuple": Reading((0,)), "list": Reading((0,))}.get(kind))
    plain = model(x)
    alphatune.set_temperature_(model, 2.0)
    assert type(model(x)) is type(plain)
    torch.testing.assert_close(logits_of(model, model(x)), logits_of(model, plain) / 2)
    alphatune.set_temperature_(model, 3.0)  # in place of it, not on top
    torch.testing.assert_close(logits_of(model, model(x)), logits_of(model, plain) / 3)
    twin = copy.deepcopy(model)
    alphatune.set_temperature_(model, 1.0)
    assert not model._forward_hooks
    assert torch.equal(logits_of(model, model(x)), logits_of(model, plain))
    assert alphatune.get_temperature(twin) == 3


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "2"])
def test_a_temperature_is_a_positive_number(value: object) -> None:
    with pytest.raises(ConfigurationError, match="positive number"):
        alphatune.set_temperature_(tiny(), value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (resnet20, "linear"),
        (lambda: timm.create_model("resnet18", num_classes=7), "fc"),
        (lambda: timm.create_model("mobilenetv3_small_050", num_classes=7), "classifier"),
        (lambda: torchvision.models.vgg11_bn(num_classes=7), "classifier.6"),
        (
            lambda: torchvision.models.squeezenet1_1(num_classes=7),
            None,
        ),  # a ReLU and pooling follow the last layer
    ],
)
def test_folding(build: object, layer: str | None) -> None:
    torch.manual_seed(0)
    model = build().eval()  # type: ignore[operator]
    x = torch.randn(2, 3, 64, 64)
    keys = list(model.state_dict())
    with torch.no_grad():
        plain = model(x)
        alphatune.set_temperature_(model, 2.5)
        found = alphatune.fold_temperature_(model, x)
        assert alphatune.get_temperature(model) == 1
        torch.testing.assert_close(model(x), plain / 2.5, rtol=1e-4, atol=1e-5)
    assert found == layer or layer is None
    assert list(model.state_dict()) == keys


def test_what_cannot_be_folded_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    alphatune.set_temperature_(model, 2.0)
    with pytest.raises(UnsupportedModelError, match="cannot be folded"):
        alphatune.fold_temperature_(model, torch.randn(3, 4))
    assert alphatune.get_temperature(model) == 2
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_tuned_folder_keeps_it(tmp_path: Path) -> None:
    model = resnet20().eval()
    x = torch.randn(2, 3, 32, 32)
    plain = model(x)
    alphatune.set_temperature_(model, 1.5)
    keys = list(model.state_dict())
    alphatune.save(model, tmp_path / "tuned")
    other = resnet20()
    loaded = alphatune.load(tmp_path / "tuned", model=other)
    assert alphatune.get_temperature(loaded) == 1.5
    torch.testing.assert_close(loaded(x), plain / 1.5)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(("classes", "bound"), [(10, 1.5e-4), (1000, 5e-4)])
def test_half_a_step_of_the_grid_costs_what_the_module_says(classes: int, bound: float) -> None:
    """The loss half a step from the best T, above that of the best one: the worst of networks of any sharpness."""
    worst = 0.0
    for scale in (0.5, 1.0, 2.0, 3.0, 4.0, 6.0):
        logits = torch.randn(1000, classes, dtype=torch.float64) * scale
        p = logits.softmax(1)  # calibrated: the best T is 1
        half_step = (p * (p.log() - (logits / 1.03**0.5).log_softmax(1))).sum(1).mean()
        worst = max(worst, float(half_step))
    assert bound / 2 < worst <= bound
