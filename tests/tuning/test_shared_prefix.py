"""What precedes the first example-weighted layer runs once a batch, and nothing changes for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from tiny import tiny
from torch import nn

from alphatune.core.progress import Meter
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import Predictor, evaluation_mode
from alphatune.norms.patching import example_weighted_layers, patched, set_alpha_
from alphatune.tuning.shared_prefix import shared_prefix
from alphatune.tuning.sweep import run

ALPHAS = (0.0, 0.05, 0.2)


class WritesInPlace(nn.Module):
    """Changes the output of its first convolution before the norm sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x += 1
        return self.head(self.bn(x).mean((2, 3)))


class NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(self.bn(x)).mean((2, 3)))


class Pairs(nn.Module):
    """Gives a pair where it is asked for one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor, pair: bool = False) -> object:
        y = self.conv(x) + 1
        return (y, y) if pair else y


class CallsThrice(nn.Module):
    """One module, three times before the first norm: a pair, then two tensors of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.bn, self.head = Pairs(), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.pairs(x, pair=True)
        return self.head(self.bn(self.pairs(self.pairs(x))).mean((2, 3)))


class CallsForward(WritesInPlace):
    """Calls what runs no hook."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn.forward(self.conv(x)).mean((2, 3)))


class ByKeyword(WritesInPlace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(input=self.bn(input=self.conv(input=x)).mean((2, 3)))


class Compiled(WritesInPlace):
    """Compiled in part, which looks for no hook either."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = torch.compile(lambda x: self.bn(self.conv(x)), backend="eager")
        return self.head(part(x).mean((2, 3)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tiny": tiny,
    "in place": WritesInPlace,
    "norm first": NormFirst,
    "calls thrice": CallsThrice,
    "calls forward": CallsForward,
    "by keyword": ByKeyword,
    "compiled": Compiled,
    "timm resnet18": lambda: timm.create_model("resnet18", num_classes=4),
    "timm efficientnet": lambda: timm.create_model("efficientnet_lite0", num_classes=4),
    "torchvision densenet": lambda: torchvision.models.densenet121(num_classes=4),
    "torchvision inception": lambda: torchvision.models.inception_v3(
        num_classes=4, aux_logits=False, transform_input=True, init_weights=False
    ),
}


def settled(name: str) -> nn.Module:
    """With moving averages that differ from an image's own moments."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def batches(size: int, count: int = 2, n: int = 3) -> list[Batch]:
    return [
        Batch(torch.randn(n, 3, size, size), torch.randint(4, (n,)), torch.arange(i * n, i * n + n))
        for i in range(count)
    ]


def logits_of(model: nn.Module, data: list[Batch], predictor: Predictor | None = None) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    with patched(model):
        run(predictor or Predictor(model), data, ALPHAS, lambda _, logits: found.extend(logits), Meter())
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_without_sharing(name: str) -> None:
    model, data = settled(name), batches(96 if "inception" in name else 48)
    expected = []
    with patched(model), evaluation_mode(model):
        for batch in data:
            for alpha in ALPHAS:
                set_alpha_(model, alpha)
                expected.append(model(batch.inputs.clone()))
    for one, other in zip(logits_of(model, data), expected, strict=True):
        if name == "compiled":  # by the plain kernel, within the sweep by the fastest
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "first"), [
    ("tiny", "conv"), ("timm resnet18", "conv1"), ("timm efficientnet", "conv_stem"),
    ("torchvision densenet", "features.conv0"),
])  # fmt: skip
def test_the_first_convolution_runs_once_a_batch(name: str, first: str) -> None:
    model, calls = settled(name), []
    model.get_submodule(first).register_forward_hook(lambda *_: calls.append(1))
    real = nn.Conv2d._conv_forward
    weight, computed = model.get_submodule(first).weight, []

    def counted(self, x, w, b):
        computed.extend([1] if w is weight else [])
        return real(self, x, w, b)

    nn.Conv2d._conv_forward = counted
    try:
        logits_of(model, batches(48))
    finally:
        nn.Conv2d._conv_forward = real
    assert len(computed) == 2  # batches
    assert len(calls) == 2 * len(ALPHAS)  # hooks still see every pass


def test_nothing_is_left_behind() -> None:
    model = settled("timm resnet18")
    with patched(model):
        with pytest.raises(KeyboardInterrupt), shared_prefix(model):
            assert "forward" in model.conv1.__dict__
            raise KeyboardInterrupt
        assert not any("forward" in m.__dict__ for m in model.modules())
        assert not any(layer._forward_pre_hooks for _, layer in example_weighted_layers(model))


@pytest.mark.parametrize("name", ["tiny", "in place"])
def test_inference_mode_counts_no_versions(name: str) -> None:
    """There nobody can tell whether an output was written to, so none is used again."""
    model, data = settled(name), batches(12)
    expected = logits_of(model, data)
    with torch.inference_mode():
        found = logits_of(model, data)
    assert all(map(torch.equal, found, expected))


def test_nothing_is_left_behind_by_a_pass_that_fails() -> None:
    model = settled("tiny")
    model.head = nn.Linear(5, 4)  # does not fit
    with patched(model):
        with pytest.raises(RuntimeError, match="shapes"):
            run(Predictor(model), batches(12), ALPHAS, lambda *_: None, Meter())
        assert not any("forward" in m.__dict__ for m in model.modules())
        assert not any(layer._forward_pre_hooks for _, layer in example_weighted_layers(model))


class Hungry(nn.Module):
    """Runs out of memory for more than ``most`` examples, from call ``start`` on."""

    def __init__(self, name: str, most: int, start: int) -> None:
        super().__init__()
        self.inner, self.most, self.start, self.calls = settled(name), most, start, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        self.calls += 1
        if len(x) > self.most and self.calls > self.start:
            raise torch.cuda.OutOfMemoryError("no")
        return logits


@pytest.mark.parametrize("start", [0, 1, 2, 4])
@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("name", ["tiny", "by keyword"])
def test_running_out_of_memory_loses_and_repeats_nothing(name: str, start: int, most: int) -> None:
    model, data = Hungry(name, most, start), batches(12, count=3, n=7)
    predictor = Predictor(model)
    found = logits_of(model, data, predictor)
    expected = logits_of(model.inner, data)
    assert [len(f) for f in found] == [7] * 9
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert predictor.max_batch <= most
