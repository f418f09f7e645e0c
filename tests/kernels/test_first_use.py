"""A fast kernel is compared with the plain operations before it is trusted."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from alphatune.kernels import dispatch, first_use, moments


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "_trusted", {})
    monkeypatch.setattr(first_use, "_warned", set())


class Counted:
    """Gives an output, and counts how often."""

    def __init__(self, output: Tensor | Exception) -> None:
        self.output, self.calls = output, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


def test_one_that_agrees_is_trusted_from_then_on() -> None:
    y = torch.randn(2, 3, 4, 4)
    fast, plain = Counted(y + 1e-6), Counted(y)
    for _ in range(3):
        assert first_use.fast_or_plain("Triton", "kind", fast, plain) is fast.output
    assert (fast.calls, plain.calls) == (3, 1)
    first_use.fast_or_plain("Triton", "another kind", fast, plain)
    assert plain.calls == 2


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(2, 3, 4, 4) * 1.01, RuntimeError("no such\ndevice"), torch.full((2, 3, 4, 4), torch.nan)],
)
def test_one_that_does_not_is_never_used_and_said_once(
    wrong: Tensor | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "alphatune")
    fast, plain = Counted(wrong), Counted(torch.ones(2, 3, 4, 4))
    for kind in ("kind", "kind", "another kind"):
        assert first_use.fast_or_plain("Triton", kind, fast, plain) is plain.output
    assert fast.calls == 2  # once a kind
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "\n" not in caplog.records[0].getMessage()


def test_memory_that_runs_out_says_nothing_about_a_kernel() -> None:
    y = torch.ones(2, 3, 4, 4)
    with pytest.raises(torch.OutOfMemoryError):
        first_use.fast_or_plain("Triton", "kind", Counted(torch.OutOfMemoryError("full")), Counted(y))
    fast = Counted(y)
    assert first_use.fast_or_plain("Triton", "kind", fast, Counted(y)) is fast.output


def test_overflow_has_to_be_in_the_same_places() -> None:
    y = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    assert first_use.agree(y.clone(), y)
    assert not first_use.agree(torch.tensor([1.0, torch.nan, torch.inf, torch.inf]), y)
    assert not first_use.agree(torch.tensor([torch.nan, torch.nan, torch.inf, -torch.inf]), y)
    assert first_use.agree(torch.empty(0, 3, 4), torch.empty(0, 3, 4))


@pytest.mark.parametrize("dtype", list(first_use.TOLERANCE))
def test_rounding_is_no_disagreement_and_an_error_in_alpha_is(dtype: torch.dtype) -> None:
    """Eq. 3 in the dtype's own precision against float32, and at an α that is off by a tenth."""
    torch.manual_seed(0)
    x = (3 * torch.randn(8, 16, 7, 7) + 1).to(dtype)
    mean, var = torch.randn(16), torch.rand(16) + 0.5

    def output(alpha: float) -> Tensor:
        return moments.example_weighted_norm(x.float(), mean, var, None, None, torch.tensor(alpha), 1e-5)

    plain = moments.example_weighted_norm(x, mean, var, None, None, torch.tensor(0.3), 1e-5)
    assert first_use.agree(output(0.3).to(dtype), plain)
    assert not first_use.agree(output(0.4).to(dtype), plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_layers_use_it_on_a_gpu() -> None:
    x = torch.randn(4, 16, 9, 9, device="cuda")
    ones, alpha = torch.ones(16, device="cuda"), torch.tensor(0.1, device="cuda")
    with torch.inference_mode():
        dispatch.example_weighted_norm(x, ones, ones, ones, ones, alpha, 1e-5)
    assert list(first_use._trusted.values()) == [True]
