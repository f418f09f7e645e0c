"""Tuning by a score of one's own: equal to the metrics where they measure the same, and any task beside."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_tune import informed, loader, trained
from tiny import no_norm, odd, tiny
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import alphatune
from alphatune.core.errors import (
    AlphatuneError,
    ConfigurationError,
    DataError,
    NumericError,
    ResourceError,
    UnsupportedModelError,
)
from alphatune.core.metrics import INFO
from alphatune.data.custom_pairs import count_examples, examples_in, moved
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.patching import get_alpha
from alphatune.tuning.alphas import AUTO


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(1) == targets


def minus_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(outputs, targets, reduction="none")


# --- the metrics again -----------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["significant", "best"])
@pytest.mark.parametrize("alpha_helps", [True, False])
@pytest.mark.parametrize(("score", "metric"), [(top1, "top1"), (minus_loss, "loss")])
def test_a_metric_as_a_score_decides_as_the_metric(
    score: Callable[..., Tensor], metric: Any, alpha_helps: bool, accept: Any
) -> None:
    model, data = informed(0, alpha_helps)
    options: Any = {"alphas": "0:1:6", "seed": 5, "accept": accept}
    by_metric = alphatune.tune(model, data, metric=metric, **options)
    by_score = alphatune.tune_score(model, data, score, **options)
    assert by_score.alpha == by_metric.alpha
    name = INFO[metric].name
    assert by_score.decision.reason == by_metric.decision.reason.replace(f"in {name}", "in score").replace(
        f"better {name}", "better score"
    )
    ours, theirs = by_score.gain, by_metric.decision.gain
    assert ours is not None
    assert theirs is not None
    assert (ours.fold_alphas, ours.method, ours.folds) == (theirs.fold_alphas, theirs.method, theirs.folds)
    assert (ours.delta, *ours.ci) == pytest.approx((theirs.delta, *theirs.ci), rel=1e-9)
    assert ours.p == pytest.approx(theirs.p)
    sign = -1 if metric == "loss" else 1
    for point, other in zip(by_score.curve, by_metric.curve, strict=True):
        assert point.alpha == other.alpha
        assert point.score == pytest.approx(sign * getattr(other.metrics, metric), rel=1e-6)
        assert point.ci is not None
        assert point.ci == pytest.approx(other.ci[metric][::sign] if sign == 1 else
                                         (-other.ci[metric][1], -other.ci[metric][0]), abs=1e-9)  # fmt: skip


def test_auto_is_the_exact_grid() -> None:
    result = alphatune.tune_score(trained(), loader(), top1)
    assert tuple(p.alpha for p in result.curve) == AUTO
    assert result.scores.shape == (len(AUTO), 40)
    assert len(result) == 40


# --- other tasks -----------------------------------------------------------------------------


class Dense(nn.Module):
    """A small fully convolutional network, whose outputs are keyed."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(classes)
        self.classifier = nn.Conv2d(classes, classes, 1)
        self.classifier.weight.data = torch.eye(classes).view(classes, classes, 1, 1)
        self.classifier.bias.data.zero_()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"aux": x, "out": self.classifier(self.bn(x))}


def miou(outputs: dict[str, Tensor], masks: Tensor) -> Tensor:
    predicted, scores = outputs["out"].argmax(1), []
    for image, mask in zip(predicted, masks, strict=True):
        ious = [
            ((image == c) & (mask == c)).sum() / ((image == c) | (mask == c)).sum() for c in mask.unique()
        ]
        scores.append(torch.stack(ious).mean())
    return torch.stack(scores)


def test_segmentation_with_keyed_outputs() -> None:
    """Every image has a cast of its own, which its own moments take out."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(3, (120, 8, 8), generator=generator)
    images = 2.0 * F.one_hot(masks, 3).movedim(3, 1) + torch.randn(120, 3, 8, 8, generator=generator)
    images = images + 3 * torch.randn(120, 3, 1, 1, generator=generator)
    data = DataLoader(TensorDataset(images, masks), 50)
    model = Dense().eval()
    result = alphatune.tune_score(model, data, miou, alphas="0:1:5")
    assert result.alpha > 0
    assert result.gain is not None
    assert result.gain.significant
    assert "t-test" in result.gain.method
    assert result.chosen > result.baseline + 0.1
    assert result.name == "miou"
    assert "miou" in str(result)
    alphatune.patch_(model, result.alpha)
    with torch.no_grad():
        mean = torch.cat([miou(model(x), y) for x, y in data]).mean().item()
    assert mean == pytest.approx(result.chosen, abs=1e-5)


def test_regression() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 2, 6, 6, generator=generator)
    y = x.square().mean((1, 2, 3))
    x = x + 5 * torch.randn(200, 2, 1, 1, generator=generator)  # an offset that must not matter

    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return self.bn(x).square().mean((1, 2, 3)).unsqueeze(1), "and something else"

    def minus_error(outputs: tuple[Tensor, str], targets: Tensor) -> np.ndarray:
        return -(outputs[0].squeeze(1) - targets).abs().numpy()

    data = DataLoader(TensorDataset(x, y), 64, shuffle=True)  # read once, in any order
    result = alphatune.tune_score(Spread().eval(), data, minus_error, alphas="0,0.25,0.5,0.75")
    assert result.alpha > 0
    assert result.gain is not None
    assert result.gain.delta > 1


class Inputs(nn.Module):
    """Takes whatever has tensors in it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, inputs: Any) -> Any:
        if isinstance(inputs, dict):
            inputs = inputs["pixels"]
        if isinstance(inputs, (list, tuple)):
            inputs = torch.stack(list(inputs))
        return self.bn(inputs).mean((1, 2, 3))


@pytest.mark.parametrize(
    "form",
    [
        lambda x: {"pixels": x, "sizes": [1, 2]},
        lambda x: list(x),
        lambda x: tuple(x),
        lambda x: x.numpy(),
        lambda x: x.double(),
    ],
)
def test_inputs_and_targets_of_any_structure(form: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(3)
    batches = [(torch.randn(6, 3, 4, 4), [{"boxes": torch.zeros(k, 4)} for k in range(6)]) for _ in range(5)]
    seen = []

    def score(outputs: Tensor, targets: Any) -> Tensor:
        seen.append(targets)
        return outputs - torch.tensor([float(len(t["boxes"])) for t in targets])

    plain = alphatune.tune_score(Inputs().eval(), batches, score, alphas="0,0.5")
    assert seen[0] is batches[0][1]  # as the loader gave them
    result = alphatune.tune_score(
        Inputs().eval(), [(form(x), y, "more") for x, y in batches], score, alphas="0,0.5"
    )
    assert np.array_equal(result.scores, plain.scores)


def test_moving_of_nested_inputs() -> None:
    from collections import namedtuple

    Pair = namedtuple("Pair", "a b")
    half = moved(
        Pair([torch.ones(2)], {"n": torch.ones(2, dtype=torch.int64)}), torch.device("cpu"), torch.float16
    )
    assert type(half).__name__ == "Pair"
    assert half.a[0].dtype == torch.float16
    assert half.b["n"].dtype == torch.int64
    assert moved("text", torch.device("cpu"), torch.float16) == "text"
    assert examples_in({"a": torch.ones(3, 2)}) == 3
    assert examples_in([torch.ones(3, 2)]) is None
    assert examples_in({}) is None
    assert count_examples(loader(7)) == 7
    assert count_examples([1, 2]) is None


def test_groupnorm_begins_at_one() -> None:
    model = trained()
    convert_(model, Norm("group", num_groups=4))
    result = alphatune.tune_score(model.eval(), loader(), minus_loss, alphas="0.5,0.9")
    assert [p.alpha for p in result.curve] == [1, 0.9, 0.5]
    with torch.no_grad():
        plain = torch.cat([minus_loss(model(x), y) for x, y in loader()])
    np.testing.assert_allclose(result.scores[0], plain, rtol=1e-6)


def test_autocast_and_half_precision_models() -> None:
    def half(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.dtype == torch.bfloat16
        return minus_loss(outputs.float(), targets).bfloat16()

    alphatune.tune_score(trained(), loader(), half, alphas="0,0.1", dtype=torch.bfloat16)
    alphatune.tune_score(trained().bfloat16(), loader(), half, alphas="0,0.1")


# --- what stays as it was --------------------------------------------------------------------


def test_the_model_comes_back_as_it_was() -> None:
    model = trained().train()
    alphatune.patch_(model, 0.25)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    alphatune.tune_score(model, loader(), top1, alphas="0,0.1")

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alphatune.tune_score(model, loader(), broken)
    assert set(get_alpha(model).values()) == {0.25}
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_the_loader_is_read_once() -> None:
    def once() -> Iterator[Any]:
        yield from loader()

    twice = alphatune.tune_score(trained(), loader(), minus_loss, alphas="0,0.1")
    assert np.array_equal(
        alphatune.tune_score(trained(), once(), minus_loss, alphas="0,0.1").scores, twice.scores
    )


def test_progress_counts_each_example_at_each_alpha() -> None:
    seen: list[Any] = []
    alphatune.tune_score(
        trained(), loader(), top1, alphas="0,0.1", progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(32, 80), (64, 80), (80, 80)]
    seen.clear()
    alphatune.tune_score(
        trained(), iter(loader()), top1, alphas="0,0.1", progress=lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (80, None)


def test_folds_spread_classes_only_where_targets_are_classes() -> None:
    model, data = trained(), loader()
    nested = [(x, {"class": y}) for x, y in data]
    by_class = alphatune.tune_score(model, data, minus_loss, alphas="0,0.1,0.5")
    by_chance = alphatune.tune_score(
        model, nested, lambda o, t: minus_loss(o, t["class"]), alphas="0,0.1,0.5"
    )
    assert np.array_equal(by_class.scores, by_chance.scores)
    assert by_chance.name == "<lambda>"
    assert by_class.decision.best == by_chance.decision.best


# --- too little, and too much ----------------------------------------------------------------


def test_few_examples_are_not_judged() -> None:
    result = alphatune.tune_score(trained(), loader(19), minus_loss, alphas="0,0.1")
    assert result.gain is None
    assert result.alpha == 0
    assert any("too few" in w for w in result.warnings)
    one = alphatune.tune_score(trained(), loader(1), minus_loss, alphas="0,0.1", accept="best")
    assert [p.ci for p in one.curve] == [None, None]


def test_warnings() -> None:
    result = alphatune.tune_score(
        tiny(), loader(), lambda o, t: -o.abs().sum(1) * 1e-9 - o.var(1), alphas="0,0.05"
    )
    assert any("as before training" in w for w in result.warnings)
    skipped = alphatune.tune_score(odd(), loader(), top1, alphas="0,0.1", skip_unknown=True)
    assert skipped.patched == ("bn1",)
    assert any("left alone" in w for w in skipped.warnings)
    model, data = informed(0, alpha_helps=True)
    end = alphatune.tune_score(model, data, top1, alphas="0,0.05", accept="best")
    assert any("largest one tried" in w for w in end.warnings)


def returns(value: Any) -> Callable[..., Any]:
    def custom_score(outputs: Tensor, targets: Tensor) -> Any:
        return value

    return custom_score


def nan_for_one(outputs: Tensor, targets: Tensor) -> Tensor:
    scores = torch.zeros(len(targets))
    if len(targets) == 8:  # the last batch of loader()
        scores[3] = float("nan")
    return scores


def raises(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.no_such_thing  # type: ignore[attr-defined]


def out_of_memory(outputs: Tensor, targets: Tensor) -> Tensor:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (returns(torch.tensor(0.5)), ConfigurationError, r"custom_score.* one score an example.*\(16,\), got shape \(\)"),
        (returns(torch.zeros(15)), ConfigurationError, r"custom_score.*\(16,\), got shape \(15,\)"),
        (returns(torch.zeros(16, 1)), ConfigurationError, r"custom_score.*got shape \(16, 1\)"),
        (returns(0.5), ConfigurationError, "custom_score.*got float"),
        (returns([0.5] * 16), ConfigurationError, "custom_score.*got list"),
        (returns(None), ConfigurationError, "custom_score.*got NoneType"),
        (returns(torch.zeros(16, dtype=torch.complex64)), ConfigurationError, "custom_score.*got complex64"),
        (returns(np.array(["a"] * 16)), ConfigurationError, "custom_score.*got <U1"),
        (returns(torch.full((16,), float("inf"))), NumericError, "custom_score is inf for example 0 at α = 0"),
        (nan_for_one, NumericError, "nan_for_one is nan for example 35 at α = 0"),
        (raises, ConfigurationError, "raises failed: AttributeError"),
        (out_of_memory, ResourceError, "does not fit"),
        ("miou", ConfigurationError, "expected a function"),
    ],
)  # fmt: skip
def test_scores_that_are_none(score: Any, error: type[AlphatuneError], message: str) -> None:
    with pytest.raises(error, match=message):
        alphatune.tune_score(trained(), loader(), score, alphas="0,0.1")


def failing() -> Iterator[Any]:
    yield from loader(16)
    raise OSError("no such image: 17.png")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], DataError, "no example"),
        ([torch.zeros(3, 3, 12, 12)], ConfigurationError, r"expected the loader to yield \(inputs, targets\), got Tensor"),
        ([(torch.zeros(3, 3, 12, 12),)], ConfigurationError, r"expected the loader to yield \(inputs, targets\)"),
        (None, ConfigurationError, "expected a loader"),
        ([(torch.zeros(3, 1, 12, 12), torch.zeros(3))], ConfigurationError, r"model failed.*\(3, 1, 12, 12\)"),
        (failing(), DataError, r"the loader failed after 1 batches: OSError: no such image: 17\.png"),
    ],
)  # fmt: skip
def test_loaders_that_are_none(data: Any, error: type[AlphatuneError], message: str) -> None:
    with pytest.raises(error, match=message):
        alphatune.tune_score(trained(), data, lambda o, t: o.sum(1), alphas="0,0.1")


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        (no_norm(), {}, UnsupportedModelError),
        (odd(), {}, UnsupportedModelError),
        (tiny(), {"alphas": "2"}, ConfigurationError),
        (tiny(), {"accept": "bset"}, ConfigurationError),
        (tiny(), {"exclude": ["layer9.*"]}, ConfigurationError),
        (tiny(), {"kernel": "triton"}, ConfigurationError),
    ],
)
def test_impossible_models_and_options(model: nn.Module, options: Any, error: type[AlphatuneError]) -> None:
    with pytest.raises(error):
        alphatune.tune_score(model, loader(), top1, **options)


def test_impossible_averages_name_the_layer() -> None:
    model = trained()
    model.bn2.running_var[1] = -0.5
    with pytest.raises(NumericError, match=re.escape("bn2: running_var is negative")):
        alphatune.tune_score(model, loader(), top1)
