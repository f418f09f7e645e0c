"""Scores and metrics against NumPy and torchmetrics; memory that runs out."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from alphatune.core.errors import ConfigurationError, DataError, NumericError, ResourceError
from alphatune.data.custom_loader import LoaderBatches
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import Predictor, evaluate, evaluation_mode, predict, score_logits
from alphatune.statistics.calibration_error import expected_calibration_error
from alphatune.statistics.scores import concatenate, summarise

CPU = torch.device("cpu")


def batch_of(targets: list[int], inputs: torch.Tensor | None = None) -> Batch:
    n = len(targets)
    return Batch(torch.zeros(n, 1) if inputs is None else inputs, torch.tensor(targets), torch.arange(n))


def test_scores_equal_numpy() -> None:
    logits, targets = torch.randn(40, 12) * 4, torch.randint(0, 12, (40,)).tolist()
    scores = score_logits(logits, batch_of(targets))
    for i, target in enumerate(targets):
        row = logits[i].double().numpy()
        ranked = np.argsort(-row)
        assert scores.loss[i] == pytest.approx(reference.cross_entropy(row, target), rel=1e-5, abs=1e-6)
        assert scores.top1[i] == (ranked[0] == target)
        assert scores.top5[i] == (target in ranked[:5])
        assert scores.predicted[i] == ranked[0]
        assert scores.confidence[i] == pytest.approx(
            np.exp(-reference.cross_entropy(row, ranked[0])), rel=1e-5
        )


def test_ties_are_broken_by_class_index() -> None:
    scores = score_logits(torch.zeros(3, 10), batch_of([0, 4, 5]))
    assert scores.top1.tolist() == [True, False, False]
    assert scores.top5.tolist() == [True, True, False]


def test_fewer_than_five_classes() -> None:
    assert score_logits(torch.randn(6, 3), batch_of([0, 1, 2] * 2)).top5.all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_equals_its_definition(pairs: list[tuple[float, bool]]) -> None:
    confidence = np.array([c for c, _ in pairs], dtype=np.float32)
    correct = np.array([c for _, c in pairs])
    got = expected_calibration_error(confidence, correct)
    # A float32 confidence exactly on an edge may round to either side of it.
    edges = np.abs(confidence[:, None].astype(np.float64) - np.arange(16) / 15)
    if (edges > 1e-6).all() or set(confidence.tolist()) <= {0.0, 1.0}:
        assert got == pytest.approx(reference.expected_calibration_error(confidence, correct), abs=1e-9)
    assert 0 <= got <= 1


def test_calibration_error_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, targets = torch.randn(500, 8) * 3, torch.randint(0, 8, (500,))
    scores = score_logits(logits, batch_of(targets.tolist()))
    expected = multiclass_calibration_error(logits, targets, num_classes=8, n_bins=15, norm="l1")
    assert summarise(scores).ece == pytest.approx(expected.item(), abs=1e-5)


def test_confidence_one_is_in_the_last_bin() -> None:
    assert expected_calibration_error(np.ones(4, np.float32), np.array([True] * 4)) == 0


@pytest.mark.parametrize("targets", [[0, 7], [0, -1]])
def test_labels_outside_the_head(targets: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=f"label {targets[1]}, the model 4 outputs"):
        score_logits(torch.zeros(2, 4), batch_of(targets))


@pytest.mark.parametrize("shape", [(2, 4, 3), (3, 4), (2,)])
def test_outputs_that_are_no_logits(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="expected logits"):
        score_logits(torch.zeros(shape), batch_of([0, 1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_not_finite_names_the_example(value: float) -> None:
    logits = torch.zeros(3, 4)
    logits[2, 1] = value
    with pytest.raises(NumericError, match=r"example 2 at alpha = 0\.5"):
        score_logits(logits, batch_of([0, 1, 2]), where="at alpha = 0.5")


def test_evaluate_gives_one_row_per_example_in_order() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(23, 3, 12, 12), torch.randint(0, 4, (23,))
    model, done = tiny().train(), []
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    scores = evaluate(model, LoaderBatches(loader, CPU), total=23, progress=lambda d, t: done.append((d, t)))
    assert scores.ids.tolist() == list(range(23))
    assert scores.targets.tolist() == y.tolist()
    assert done[-1] == (23, 23)
    assert model.training  # put back
    assert model.bn1.num_batches_tracked == 0  # eval mode meanwhile
    whole = evaluate(model, LoaderBatches([(x, y)], CPU))
    np.testing.assert_allclose(scores.loss, whole.loss, rtol=1e-5)


def test_no_data_and_repeated_data() -> None:
    with pytest.raises(DataError, match="no example"):
        concatenate([])
    scores = score_logits(torch.zeros(2, 4), batch_of([0, 1]))
    with pytest.raises(DataError, match="twice"):
        concatenate([scores, scores])


class Greedy(nn.Module):
    """Runs out of memory above a batch size, as a device would."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.seen = capacity, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.capacity:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        self.seen.append(len(x))
        return x[:, :4] * 2


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 13])
def test_out_of_memory_halves_the_batch_and_loses_nothing(capacity: int) -> None:
    model, x = Greedy(capacity), torch.randn(13, 5)
    assert torch.equal(predict(model, x), x[:, :4] * 2)
    assert sum(model.seen) == 13


def test_one_example_too_many() -> None:
    with pytest.raises(ResourceError, match="one example"):
        predict(Greedy(0), torch.randn(3, 5))


@pytest.mark.parametrize(
    "wrap", [lambda y: {"logits": y}, lambda y: {"out": y}, lambda y: (y, 1), lambda y: [y]]
)
def test_wrapped_outputs(wrap) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return wrap(x)

    x = torch.randn(2, 4)
    assert predict(Wrapped(), x) is x


def test_an_output_without_logits() -> None:
    class Other(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return {"other": x.ndim}

    with pytest.raises(ConfigurationError, match="no tensor"):
        predict(Other(), torch.randn(2, 4))


def test_a_half_precision_model_takes_half_precision_images() -> None:
    assert predict(tiny().half().eval(), torch.randn(2, 3, 12, 12)).dtype == torch.float16


def test_memory_of_the_cpu_runs_out_too() -> None:
    class Full(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
            return x

    x = torch.randn(5, 4)
    assert torch.equal(predict(Full(), x), x)


def test_settings_are_put_back_on_any_exit() -> None:
    model = tiny()
    model.bn2.eval()
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    with pytest.raises(KeyboardInterrupt), evaluation_mode(model):
        assert not model.training
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.is_grad_enabled()
        raise KeyboardInterrupt
    assert model.training
    assert not model.bn2.training
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_model_alone(dtype: torch.dtype) -> None:
    model, x = tiny().eval(), torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        y = predict(model, x, dtype)
        torch.testing.assert_close(y.float(), predict(model, x), rtol=0.1, atol=0.05)
    assert model.bn1.running_mean.dtype == torch.float32


# --- predictors ------------------------------------------------------------------------------


def test_a_predictor_remembers_what_fits() -> None:
    """Only the first batch runs out of memory; no example is lost or comes twice."""
    model, x = Greedy(3), torch.randn(13, 5)
    predictor = Predictor(model)
    assert torch.equal(predictor(x), x[:, :4] * 2)
    assert predictor.max_batch == 3
    model.seen.clear()
    assert torch.equal(predictor(x), x[:, :4] * 2)
    assert model.seen == [3, 3, 3, 3, 1]
    assert torch.equal(predictor(x[:2]), x[:2, :4] * 2)


def test_channels_last_gives_the_same() -> None:
    model, x, strides = tiny().eval(), torch.randn(5, 3, 12, 12), []
    expected = predict(model, x)
    model.to(memory_format=torch.channels_last)
    model.conv.register_forward_pre_hook(lambda _, args: strides.append(args[0].stride()))
    predictor = Predictor(model, channels_last=True)
    torch.testing.assert_close(predictor(predictor.prepare(x)), expected)
    assert strides == [(432, 1, 36, 3)]
    flat = torch.randn(5, 4)
    assert Predictor(nn.Linear(4, 4), channels_last=True).prepare(flat) is flat  # not an image


class Gated(nn.Module):
    """A linear layer that reports, from outside the compiled graph, the batches it really sees."""

    def __init__(self, capacity: int = 1000) -> None:
        super().__init__()
        self.linear, self.capacity, self.seen = nn.Linear(5, 4), capacity, []

    @torch.compiler.disable
    def enter(self, x: torch.Tensor) -> None:
        if len(x) > self.capacity:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        self.seen.append(len(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.enter(x)
        return self.linear(x)


def test_a_compiled_predictor_fills_up_the_last_batch() -> None:
    model, x = Gated().eval(), torch.randn(18, 5)
    predictor = Predictor(model, compile=True)
    with torch.no_grad():
        got = torch.cat([predictor(part) for part in x.split(8)])
        torch.testing.assert_close(got, model.linear(x))
    assert model.seen == [8, 8, 8]


def test_a_compiled_predictor_does_not_fill_up_beyond_what_fits() -> None:
    model, x = Gated(capacity=3).eval(), torch.randn(15, 5)
    predictor = Predictor(model, compile=True)
    with torch.no_grad():
        got = torch.cat([predictor(part) for part in x.split(8)])
        torch.testing.assert_close(got, model.linear(x))
    assert set(model.seen) == {predictor.max_batch}
