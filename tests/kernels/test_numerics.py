"""Every form of the layers against the reference, where floating point is hard; the bound is docs/numerics.md's.

    |y − exact| ≤ 16·2⁻²⁴·(|y| + |γ|·(1 + κ) + |β|) + half a unit in the last place of y's dtype
    κ = (|μᵢ| + |m|) / sqrt(variance + ε)

``pytest tests/kernels/test_numerics.py -k worst -s`` prints how much of it each form needs. As a script this file runs the
Triton kernels in Triton's interpreter (see test_triton_kernels.py).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from conftest import CHILD_PATH, TINY, Run, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import alphatune
from alphatune.kernels import alpha_gradient, moments
from alphatune.kernels import cpu as cpu_kernels
from alphatune.kernels import dispatch as kernels
from alphatune.kernels import grouped as grouped_kernels
from alphatune.norms.grouping import batch_group_norm
from alphatune.norms.surgery import become_example_weighted_

DRAWS_FIGURES = True  # bytes are compared with those of another process

compiled = pytest.mark.skipif(cpu_kernels.find_compiler() is None, reason="no C++ compiler")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
has_triton = importlib.util.find_spec("triton") is not None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALPHAS = (0.0, 1e-8, 1e-3, 0.1, 0.5, 1.0)
OFFSETS = (0.0, 1.0, 1e2, 1e4)
UNIT = 2.0**-24  # of float32, in which all forms compute
CONSTANT = 16.0
#: half a unit in the last place of an output, relative, and the spacing of its smallest numbers
ROUNDING = {
    torch.float32: (0.0, 2.0**-149),
    torch.bfloat16: (2.0**-8, 2.0**-133),
    torch.float16: (2.0**-11, 2.0**-24),
}


@dataclass(frozen=True)
class Case:
    """An activation and a layer that meets it."""

    x: Tensor
    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    alpha: Tensor
    eps: float

    def arguments(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())


Form = Callable[..., Tensor]


def case(
    x: Tensor, mean: float | Tensor, var: float | Tensor, alpha: float | Tensor, eps: float = 1e-5
) -> Case:
    channels = x.shape[1]
    return Case(
        x,
        torch.as_tensor(mean).float().expand(channels).contiguous(),
        torch.as_tensor(var).float().expand(channels).contiguous(),
        torch.randn(channels),
        torch.randn(channels),
        torch.as_tensor(alpha, dtype=torch.float32),
        eps,
    )


# --- the forms of example weighting --------------------------------------------------------------


def side_by_side(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def with_gaps(x: Tensor) -> Tensor:
    """The same values with others between them in memory."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def by_gradient(x: Tensor, mean: Tensor, var: Tensor, w: Any, b: Any, alpha: Tensor, eps: float) -> Tensor:
    """The forward of tuning α."""
    with torch.enable_grad():
        wanted = alpha.clone().requires_grad_()
        return alpha_gradient.example_weighted_norm(x, mean, var, w, b, wanted, eps).detach()


def dispatched(kernel: kernels.Kernel) -> Form:
    def form(*arguments: Any) -> Tensor:
        with kernels.use_kernel(kernel):
            return kernels.example_weighted_norm(*arguments)

    return form


FORMS: dict[str, Form] = {
    "plain": moments.example_weighted_norm,
    "eager": dispatched("eager"),
    "compiled": dispatched("compiled"),
    "gradient": by_gradient,
}
FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "NCHW": lambda x: x.contiguous(),
    "channels-last": side_by_side,
    "gaps": with_gaps,
}
EVERY_FORM = [
    pytest.param(form, memory, id=f"{form} {memory}", marks=compiled if form == "compiled" else ())
    for form in FORMS
    for memory in FORMATS
    if memory != "gaps" or form in ("plain", "gradient")
]


def share_of_bound(y: Tensor, this: Case, dtype_rounding: float | None = None) -> float:
    """The largest error as a share of the bound."""
    arrays = [None if t is None else t.double().numpy() for t in this.arguments()[:-1]]
    exact, condition = reference.example_weighted_exactly(*arrays, this.eps)
    space = (1,) * (this.x.ndim - 2)
    gamma, beta = (
        np.abs(t.double().numpy()).reshape(1, -1, *space) if t is not None else default
        for t, default in ((this.weight, 1.0), (this.bias, 0.0))
    )
    relative, smallest = ROUNDING[y.dtype]
    relative = relative if dtype_rounding is None else dtype_rounding
    bound = (
        CONSTANT * UNIT * (np.abs(exact) + gamma * (1 + condition.reshape(*condition.shape, *space)) + beta)
    )
    found = y.double().numpy()
    # What y's dtype has no room for is infinite in it.
    too_large = np.abs(exact) > torch.finfo(y.dtype).max
    assert (np.isinf(found) == too_large).all()
    assert not np.isnan(found).any()
    error = np.abs(np.where(too_large, 0, found) - np.where(too_large, 0, exact))
    return float((np.maximum(error - relative * np.abs(exact) - smallest, 0) / bound).max())


def check(form: str, memory: str, this: Case) -> float:
    with torch.no_grad():
        y = FORMS[form](*replace(this, x=FORMATS[memory](this.x)).arguments())
    assert y.dtype == this.x.dtype
    share = share_of_bound(y, this)
    assert share <= 1, (share, this.alpha, this.eps)
    return share


def offset_cases(dtype: torch.dtype) -> Iterator[Case]:
    """|mean|/std of the example up to 1e4, of which the layer's averages know, or not, or the contrary."""
    for offset in OFFSETS:
        for mean in (offset + 0.1 * torch.randn(5), torch.randn(5), -1e4):
            for alpha in ALPHAS:
                x = (torch.randn(2, 5, 12, 11) + offset).to(dtype)
                yield case(x, mean, torch.rand(5) + 0.3, alpha)


def small_cases() -> Iterator[Case]:
    """Variances down to 1e-12 and far below ε, with and without an offset; running_var as small, and 0."""
    for std in (1e-6, 1e-3):
        for offset in (0.0, 1.0):
            for eps in (1e-3, 1e-5):
                for alpha in ALPHAS:
                    x = torch.randn(2, 5, 12, 11) * std + offset
                    yield case(x, offset + std * torch.randn(5), std * std, alpha, eps)
                    yield case(x, offset, 0.0, alpha, eps)
    for alpha in ALPHAS:
        yield case(torch.randn(2, 5, 12, 11) * 1e-40, 0.0, 1e-42, alpha)  # all denormal


def constant_cases() -> Iterator[Case]:
    """sᵢ = 0: what is left of the variance are v and the cross term."""
    for value in (0.0, 3.7, 12345.67):
        for var in (0.0, 1e-12, 0.7):
            for eps in (1e-3, 1e-5):
                for alpha in ALPHAS:
                    yield case(torch.full((2, 5, 12, 11), value), torch.randn(5), var, alpha, eps)
    for alpha in ALPHAS:  # one position is constant, too
        yield case(torch.randn(2, 5, 1, 1) + 1e4, torch.randn(5), torch.rand(5), alpha)
        yield case(torch.randn(2, 5, 1, 1), torch.randn(5), torch.zeros(5), alpha)


def huge_cases() -> Iterator[Case]:
    """Squares that float16 has no room for, those that float32 has none for, and means as far apart."""
    for alpha in ALPHAS:
        yield case((torch.randn(2, 5, 12, 11).clamp(-3, 3) * 2e4).half(), 0.0, 1.0, alpha)
        for size in (1e15, 1e18, 1e19, 1e25, 1e30):
            noise = torch.randn(2, 5, 12, 11)
            for dtype in (torch.float32, torch.bfloat16):
                yield case((noise * size).to(dtype), 0.0, 1.0, alpha)
            yield case(noise, size, 1.0, alpha)
            yield case(noise + size, -size, 1.0, alpha)


def large_cases() -> Iterator[Case]:
    """Maps so large that a sum in one float loses digits; equal squares lose most."""
    for alpha in (0.1, 1.0):
        for x in (
            torch.randn(1, 2, 512, 512) + torch.tensor([0.0, 100.0]).view(2, 1, 1),
            torch.randn(1, 2, 512, 512).sign() * 0.7,
            torch.rand(1, 2, 512, 512),
        ):
            yield case(x, torch.randn(2), torch.rand(2) + 0.3, alpha)
        yield case(torch.rand(1, 2, 2**17) * 0.7, 0.0, 1.0, alpha)
        yield case(torch.rand(1, 2, 4, 128, 128) * 0.7, 0.0, 1.0, alpha)


def padded_cases() -> Iterator[Case]:
    """A border of zeros around values far from 0: what stands first tells nothing of the rest."""
    for alpha in (0.1, 1.0):
        x = torch.randn(2, 5, 40, 40) + 1000
        x[:, :, :2] = 0
        yield case(x, 0.0, 1.0, alpha)
        yield case(x, 1000.0, 1.0, alpha)


KINDS: dict[str, Callable[[], Iterator[Case]]] = {
    **{f"offsets {str(dtype)[6:]}": lambda dtype=dtype: offset_cases(dtype) for dtype in DTYPES},
    "small": small_cases,
    "constant": constant_cases,
    "huge": huge_cases,
    "large": large_cases,
    "padded": padded_cases,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "memory"), EVERY_FORM)
def test_within_the_bound_at_worst(form: str, memory: str, kind: str) -> None:
    overflows = 1e15 if form == "gradient" else math.inf  # what it makes of larger ones has a test below
    cases = (
        c for c in KINDS[kind]() if max(float(c.x.abs().max()), float(c.running_mean.abs().max())) < overflows
    )
    shares = [check(form, memory, this) for this in cases]
    print(f"\n{form:9} {memory:14} {kind:17} {max(shares, default=0) * CONSTANT:5.2f} of {CONSTANT:g}")


@compiled
@pytest.mark.parametrize("memory", ["NCHW", "channels-last"])
@pytest.mark.parametrize("mean", ["near", "far"])
def test_compiled_kernels_lose_nothing_to_an_offset(memory: str, mean: str) -> None:
    """Without κ: neither a common offset costs digits, nor at α = 1 a running mean that is far off."""
    for offset in (1e2, 1e4, 1e6):
        x = torch.randn(2, 5, 24, 24) + offset
        alpha, m = (0.1, offset) if mean == "near" else (1.0, -offset)
        this = replace(case(x, m, 1.0, alpha), weight=None, bias=None)
        y = FORMS["compiled"](*replace(this, x=FORMATS[memory](x)).arguments())
        arrays = [None if t is None else t.double().numpy() for t in this.arguments()[:-1]]
        exact, _ = reference.example_weighted_exactly(*arrays, this.eps)
        assert (np.abs(y.double().numpy() - exact) <= CONSTANT * UNIT * (np.abs(exact) + 1)).all()


@settings(max_examples=400, deadline=None)
@given(
    shape=st.sampled_from(
        [(1, 3, 1, 2), (2, 2, 7, 7), (1, 3, 33, 35), (2, 3, 14, 14), (1, 65, 3, 5), (1, 2, 90, 91)]
    ),
    dtype=st.sampled_from(DTYPES),
    offset=st.floats(0, 6),
    distance=st.floats(-3, 6),
    scale=st.integers(-8, 4),
    var=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e4]),
    alpha=st.one_of(st.sampled_from(ALPHAS), st.floats(0, 1, width=32)),
    eps=st.sampled_from([1e-3, 1e-5]),
    seed=st.integers(0, 2**16),
)
@pytest.mark.slow
def test_within_the_bound_wherever_hypothesis_looks(
    shape: tuple[int, ...], dtype: torch.dtype, offset: float, distance: float, scale: int, var: float,
    alpha: float, eps: float, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    unit = min(10.0**scale, 6e3 / 10 ** max(offset, 1) if dtype == torch.float16 else math.inf)
    x = ((torch.randn(shape) + 10**offset * torch.randn(()).sign()) * unit).to(dtype)
    mean = x.double().mean((0, 2, 3)) + 10**distance * unit * torch.randn(shape[1])
    this = case(x, mean, var * unit**2, alpha, eps)
    for form in FORMS:
        if form != "compiled" or cpu_kernels.find_compiler():
            for memory in ("NCHW", "channels-last"):
                check(form, memory, this)


def test_one_alpha_per_channel_and_no_affine() -> None:
    for form in FORMS:
        for offset in OFFSETS:
            x = torch.randn(2, 6, 12, 11) + offset
            this = replace(case(x, offset, 1.0, torch.tensor(ALPHAS)), weight=None, bias=None)
            if form != "compiled" or cpu_kernels.find_compiler():
                check(form, "NCHW", this)
                check(form, "channels-last", this)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["NCHW", "channels-last"])
def test_inductor_within_four_times_the_bound(memory: str) -> None:
    """torch.compile of the plain operations: Inductor adds up a map in one go."""
    torch._dynamo.reset()
    inductor = torch.compile(moments.example_weighted_norm, dynamic=False)
    shares = {}
    for kind in ("offsets float32", "small", "constant", "large", "padded"):
        for this in KINDS[kind]():
            if this.x.ndim == 4:
                with torch.no_grad():
                    y = inductor(*replace(this, x=FORMATS[memory](this.x)).arguments())
                shares[kind] = max(share_of_bound(y, this), shares.get(kind, 0.0))
    print("\n", memory, {kind: round(CONSTANT * share, 2) for kind, share in shares.items()})
    assert max(shares.values()) <= 4, shares


# --- where float32 ends --------------------------------------------------------------------------


def overflowing() -> Case:
    """The second of three examples has squares beyond float32, the third values without a number."""
    x = torch.randn(4, 5, 12, 11)
    x[1] *= 1e25
    x[2, 0, 0, 0] = math.nan
    return case(x, 0.0, 1.0, 0.3)


@pytest.mark.parametrize(("form", "memory"), EVERY_FORM)
def test_overflow_stays_with_its_example(form: str, memory: str) -> None:
    this = overflowing()
    x = FORMATS[memory](this.x)
    together = FORMS[form](*replace(this, x=x).arguments())
    for i in (0, 3):
        alone = FORMS[form](*replace(this, x=FORMATS[memory](this.x[i : i + 1])).arguments())
        assert torch.equal(together[i : i + 1], alone)
    assert together[2, 0].isnan().any()
    assert form == "gradient" or together[1].isfinite().all()


@pytest.mark.parametrize("memory", FORMATS)
def test_overflow_in_a_graph_is_nan_and_not_a_plausible_number(memory: str) -> None:
    """Where nobody looks at a number on the way: compiled by torch, traced, or while α is tuned."""
    this = overflowing()
    x = FORMATS[memory](this.x)
    graph = torch.compile(moments.example_weighted_norm, backend="eager")
    for form in (by_gradient, graph):
        y = form(*replace(this, x=x).arguments())
        assert y[1].isnan().all()
        assert y[[0, 3]].isfinite().all()


def test_overflow_with_groups_of_channels_and_over_positions() -> None:
    x = torch.randn(3, 6, 4, 5)
    x[1] *= 1e25
    parts = [torch.randn(6), torch.rand(6), torch.randn(6), torch.randn(6)]
    arrays = [t.double().numpy() for t in (x, *parts)]
    alpha = torch.tensor(0.25)
    grouped = moments.example_weighted_norm(x, *parts, alpha, 1e-5, 2)
    expected = reference.example_weighted_groups(*arrays, 0.25, 1e-5, 2)
    np.testing.assert_allclose(grouped.numpy(), expected, rtol=1e-5, atol=1e-5)
    positions = moments.example_weighted_layer_norm(x, *parts, alpha, 1e-5)
    expected = reference.example_weighted_positions(*arrays, 0.25, 1e-5)
    np.testing.assert_allclose(positions.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_groups_of_channels_and_positions_with_an_offset(offset: float, alpha: float) -> None:
    x = torch.randn(2, 6, 12, 11) + offset
    parts = [offset + torch.randn(6), torch.rand(6) + 0.3, torch.randn(6), torch.randn(6)]
    arrays = [t.double().numpy() for t in (x, *parts)]
    alpha = float(np.float32(alpha))
    tolerance = 10 * CONSTANT * UNIT * (1 + offset)
    for memory in FORMATS.values():
        y = moments.example_weighted_norm(memory(x), *parts, torch.tensor(alpha), 1e-5, 2)
        expected = reference.example_weighted_groups(*arrays, alpha, 1e-5, 2)
        np.testing.assert_allclose(y.numpy(), expected, rtol=tolerance, atol=tolerance)
        y = moments.example_weighted_layer_norm(memory(x), *parts, torch.tensor(alpha), 1e-5)
        expected = reference.example_weighted_positions(*arrays, alpha, 1e-5)
        np.testing.assert_allclose(y.numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory", ["NCHW", "channels-last"])
@pytest.mark.parametrize("form", ["eager", pytest.param("compiled", marks=compiled)])
def test_empty_batches(form: str, memory: str) -> None:
    x = FORMATS[memory](torch.empty(0, 5, 12, 11))
    assert FORMS[form](*case(x, 0.0, 1.0, 0.5).arguments()).shape == (0, 5, 12, 11)


# --- training: groups of examples ----------------------------------------------------------------


@pytest.fixture(params=[pytest.param("compiled", marks=compiled), "no compiler", "any device"])
def grouped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no compiler":
        monkeypatch.setattr(cpu_kernels, "load_library", lambda: None)
    if request.param == "any device":
        monkeypatch.setattr(grouped_kernels, "group_norm_ops", grouped_kernels.GroupNormOps)
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory", ["NCHW", "channels-last"])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(
    ("shape", "num_groups", "size"), [((6, 6, 9, 9), 6, 2), ((6, 6, 9, 9), 2, 3), ((2, 32, 64, 65), 32, 1)]
)
def test_training_within_the_bound(
    grouped: str,
    shape: tuple[int, ...],
    num_groups: int,
    size: int,
    offset: float,
    memory: str,
    dtype: torch.dtype,
) -> None:
    """Ghost and batch-group: y, the moments, and the gradients, each in its own units."""
    x, dy = (FORMATS[memory](t.to(dtype)) for t in (torch.randn(shape) + offset, torch.randn(shape)))
    weight, bias = torch.randn(2, shape[1]).unbind()
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y, means = batch_group_norm(*inputs, num_groups, size, 1e-5)
    dx, dweight, dbias = torch.autograd.grad(y, inputs, dy)
    exact = reference.batch_group_norm_with_gradient(
        *(t.detach().double().numpy() for t in (x, weight, bias, dy)), num_groups, size, 1e-5
    )
    assert means is not None
    found = dict(zip(exact, (y, *means.average(shape[1]), dx, dweight, dbias), strict=True))
    shares = {}
    for name, (value, unit) in exact.items():
        rounding, smallest = ROUNDING[found[name].dtype]
        error = np.abs(found[name].detach().double().numpy() - value) - rounding * np.abs(value) - smallest
        bound = np.where(unit > 0, CONSTANT * UNIT * unit, 2.0**-149)
        shares[name] = float((np.maximum(error, 0) / bound).max())
    worst = max(shares, key=lambda name: shares[name])
    print(f"\n{grouped:12} {memory:14} {shares[worst] * CONSTANT:5.2f} of {CONSTANT:g}, {worst}")
    limit = (
        4 if grouped == "no compiler" and memory == "channels-last" else 1
    )  # torch's own BatchNorm sums there
    assert max(shares.values()) <= limit, shares


def test_training_on_constant_groups(grouped: str) -> None:
    for memory in ("NCHW", "channels-last"):
        x = FORMATS[memory](torch.full((4, 6, 9, 9), 12345.67)).requires_grad_()
        y, means = batch_group_norm(x, torch.ones(6), torch.arange(6.0), 6, 2, 1e-5)
        assert means is not None
        assert (means.variance <= (CONSTANT * 12345.67 * UNIT) ** 2).all()
        unit = 12345.67 / math.sqrt(1e-5) * UNIT
        assert ((y - torch.arange(6.0).view(6, 1, 1)).abs() <= CONSTANT * unit).all()
        y.square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_training_says_nan_where_squares_overflow(grouped: str) -> None:
    for memory in ("NCHW", "channels-last"):
        x = torch.randn(4, 6, 9, 9)
        x[:2] *= 1e25
        y, _ = batch_group_norm(FORMATS[memory](x), None, None, 6, 2, 1e-5)
        assert y[:2].isnan().all()
        assert y[2:].isfinite().all()


# --- α -> 0 --------------------------------------------------------------------------------------

STEPS = (1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
SITUATIONS = ("usual", "running_var is 0", "constant example", "constant, and running_var is 0", "offset")


def meeting(situation: str) -> tuple[nn.BatchNorm2d, Tensor]:
    layer = nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.3, 2)
    x = torch.randn(3, 5, 12, 11) + (1e3 if situation == "offset" else 0)
    if situation.startswith("constant"):
        x[:] = torch.randn(3, 5, 1, 1)
    if situation.endswith("running_var is 0"):
        layer.running_var.zero_()
    return layer, x


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("memory", ["NCHW", "channels-last"])
@pytest.mark.parametrize("kernel", ["eager", pytest.param("compiled", marks=compiled)])
def test_a_layer_goes_to_eval_mode_in_proportion_to_alpha(kernel: Any, memory: str, situation: str) -> None:
    """|y(α) − y(0)| ≤ 2·|∂y/∂α at 0|·α and rounding, with y(0) the stock layer's own."""
    layer, x = meeting(situation)
    x = FORMATS[memory](x)
    with torch.no_grad():
        stock = layer(x).double()
    m, v, gamma, beta = (
        t.detach().double().view(5, 1, 1)
        for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    wide = x.double()
    mean, s = wide.mean((2, 3), keepdim=True), wide.var((2, 3), correction=0, keepdim=True)
    d, rstd = mean - m, (v + layer.eps).rsqrt()
    slope = gamma.abs() * (d.abs() * rstd + 0.5 * (wide - m).abs() * rstd**3 * (s + v + d * d))
    rounding = (
        2 * CONSTANT * UNIT * (stock.abs() + beta.abs() + gamma.abs() * (1 + (mean.abs() + m.abs()) * rstd))
    )
    become_example_weighted_(layer)
    for alpha in STEPS:
        layer.set_alpha(alpha)
        with torch.no_grad(), kernels.use_kernel(kernel):
            change = (layer(x).double() - stock).abs()
        assert (change <= 2 * alpha * slope + rounding).all(), alpha
    layer.set_alpha(0.0)
    with torch.no_grad(), kernels.use_kernel(kernel):
        assert torch.equal(layer(x).double(), stock)


@pytest.fixture(scope="module")
def resnet20(resnet20_checkpoint: Path) -> nn.Module:
    from alphatune.models.cifar import resnet20

    stored = torch.load(resnet20_checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model = resnet20()
    model.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    return model.eval()


@pytest.fixture(scope="module")
def cifar_images(cifar_test: Path) -> Tensor:
    images = []
    with tarfile.open(cifar_test) as archive:
        while len(images) < 16 and (member := archive.next()) is not None:
            if member.isfile() and (file := archive.extractfile(member)):
                images.append(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    x[0] = 0.5  # one is constant
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)).contiguous()


@pytest.mark.parametrize("damage", ["none", "running_var is 0"])
def test_a_network_goes_to_eval_mode_in_proportion_to_alpha(
    resnet20: nn.Module, cifar_images: Tensor, damage: str
) -> None:
    model = copy.deepcopy(resnet20)
    if damage != "none":
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        norms[9].running_var[::4] = 0
    with torch.no_grad():
        stock = model(cifar_images)
        exact_stock = copy.deepcopy(model).double()(cifar_images.double())
    alphatune.patch_(model)
    double = copy.deepcopy(model).double()
    slopes = []
    for alpha in (1e-9, 1e-10, 1e-11):
        alphatune.set_alpha_(double, alpha)
        with torch.no_grad():
            slopes.append(float((double(cifar_images.double()) - exact_stock).abs().max()) / alpha)
    assert slopes == pytest.approx([slopes[-1]] * len(slopes), rel=0.05)
    rounding = 200 * UNIT * float(stock.abs().max())
    for kernel in ("eager", "compiled") if cpu_kernels.find_compiler() else ("eager",):
        for alpha in STEPS:
            alphatune.set_alpha_(model, alpha)
            with torch.no_grad(), kernels.use_kernel(kernel):
                change = float((model(cifar_images) - stock).abs().max())
            assert change <= 2 * slopes[-1] * alpha + rounding, (kernel, alpha)


# --- the same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "memory"), EVERY_FORM)
def test_a_layer_repeats_to_the_last_bit(form: str, memory: str) -> None:
    for shape in ((3, 5, 12, 11), (9, 33, 20, 20), (1, 2, 300, 300)):
        this = case(FORMATS[memory](torch.randn(shape) + 3), 0.0, 1.0, 0.1)
        first = FORMS[form](*this.arguments())
        again = replace(this, x=FORMATS[memory](this.x.clone()))
        assert torch.equal(FORMS[form](*again.arguments()), first)
        if form == "compiled":
            threads = torch.get_num_threads()
            try:
                torch.set_num_threads(2)
                assert torch.equal(FORMS[form](*this.arguments()), first)
            finally:
                torch.set_num_threads(threads)


TUNE = ("tune", TINY, "--data", "images", "--input-size", 12, "--crop-pct", 1, "--mean", 0.5, "--std", 0.25,
        "--alphas", "0,0.1,0.4", "--seed", 5, "--limit", 40, "--metric", "loss", "--accept", "best", "-q",
        "-o", "out")  # fmt: skip


@pytest.mark.slow
def test_tune_repeats_to_the_last_byte_in_another_process(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other workers, another seed of Python's hashes, and images that were written in another order."""
    argv = [*map(str, TUNE), "--checkpoint", str(tiny_checkpoint), "--workers"]
    for name in "ab":
        write_images(tmp_path / "written" / name)
        files = sorted((tmp_path / "written" / name).rglob("*.png"))
        for file in files if name == "a" else reversed(files):
            target = tmp_path / name / "images" / file.relative_to(tmp_path / "written" / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path / "a")
    code, _, err = run(*argv, 0)
    assert code == 0, err
    done = subprocess.run(
        [sys.executable, "-m", "alphatune", *argv, "2"],
        cwd=tmp_path / "b",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "2"},
    )
    assert done.returncode == 0, done.stderr
    results = []
    for name in "ab":
        document = json.loads((tmp_path / name / "out" / "result.json").read_text())
        # what was read off a clock, and what was asked to differ
        del document["seconds"], document["deployment"], document["env"]["kernel_build_seconds"]
        del document["command_line"], document["env"]["workers"]
        others = ("report.md", "report.html", "run.toml")
        document["artifacts"] = [a for a in document["artifacts"] if a["path"] not in others]
        results.append(document)
    assert results[0] == results[1]
    for file in ("model.safetensors", "alphatune.json", "curve.csv", "scores.npz"):
        first, second = (tmp_path / name / "out" / file for name in "ab")
        assert first.read_bytes() == second.read_bytes(), file


# --- Triton --------------------------------------------------------------------------------------


def triton_share(this: Case, device: str) -> float:
    from alphatune.kernels.triton import example_weighted_norm

    arguments = [t.to(device) if isinstance(t, Tensor) else t for t in this.arguments()]
    y = example_weighted_norm(*arguments).cpu()
    # The interpreter truncates to bfloat16 where devices round to nearest.
    truncates = device == "cpu" and y.dtype == torch.bfloat16
    return share_of_bound(y, this, 2.0**-7 if truncates else None)


def triton_overflows(device: str) -> bool:
    from alphatune.kernels.triton import example_weighted_norm

    this = overflowing()
    ok = True
    for memory in ("NCHW", "channels-last"):
        moved = replace(this, x=FORMATS[memory](this.x))
        arguments = [t.to(device) if isinstance(t, Tensor) else t for t in moved.arguments()]
        y = example_weighted_norm(*arguments).cpu()
        ok &= bool(y[1].isnan().all() and y[[0, 3]].isfinite().all())
    return ok


def triton_report(device: str) -> dict[str, float]:
    """The largest share of the bound in each kind of case; in the interpreter, which is slow, of every seventh."""
    report = {"overflow": 0.0 if triton_overflows(device) else math.inf}
    step = 7 if device == "cpu" else 1
    for kind, cases in KINDS.items():
        torch.manual_seed(0)
        for memory in ("NCHW", "channels-last"):
            largest = 0.0
            for this in list(cases())[::step]:
                held = (
                    float(this.x.float().abs().max()) < 1e15 and float(this.running_mean.abs().max()) < 1e15
                )
                if this.x.ndim == 4 and this.x[0, 0].numel() > 1 and held:
                    largest = max(largest, triton_share(replace(this, x=FORMATS[memory](this.x)), device))
            report[f"{kind} {memory}"] = largest
    return report


@pytest.mark.slow
@pytest.mark.skipif(not has_triton, reason="needs Triton")
def test_triton_within_the_bound_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": CHILD_PATH},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of Triton 3.6 cannot loop under NumPy 2.4")
    if "arguments must be of type tl.constexpr" in done.stderr:
        pytest.skip("the interpreter of Triton 3.0, which torch 2.4 brings, takes no constant for one")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print("\n", {kind: round(share * CONSTANT, 2) for kind, share in report.items()})
    assert max(report.values()) <= 1, report


@on_cuda
@pytest.mark.gpu
def test_triton_within_the_bound_on_cuda() -> None:
    report = triton_report("cuda")
    assert max(report.values()) <= 1, report


@on_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_plain_operations_within_the_bound_on_cuda(kind: str) -> None:
    for this in KINDS[kind]():
        if max(float(this.x.float().abs().max()), float(this.running_mean.abs().max())) < 1e15:
            y = moments.example_weighted_norm(
                *(t.cuda() if isinstance(t, Tensor) else t for t in this.arguments())
            )
            assert share_of_bound(y.cpu(), this) <= 1


if __name__ == "__main__":
    print(json.dumps(triton_report("cpu")))
