"""Compiled and borrowed kernels against the reference, and what happens without a compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from alphatune.core.errors import ConfigurationError
from alphatune.kernels import cpu as cpu_kernels
from alphatune.kernels import dispatch as kernels
from alphatune.kernels import eager as eager_kernels
from alphatune.kernels import moments

compiled = pytest.mark.skipif(cpu_kernels.find_compiler() is None, reason="no C++ compiler")
SHAPES = [(3, 5, 2), (2, 3, 7, 7), (2, 67, 14, 14), (1, 1, 40, 25), (2, 4, 70, 72), (2, 3, 4, 5, 6)]


def layer(channels: int, affine: bool, per_channel: bool, alpha: float) -> tuple[Tensor | None, ...]:
    weight, bias = (torch.randn(channels), torch.randn(channels)) if affine else (None, None)
    a = torch.rand(channels) if per_channel else torch.tensor(alpha)
    return torch.randn(channels), torch.rand(channels) + 0.3, weight, bias, a


def plain(x: Tensor, parts: tuple[Tensor | None, ...], act: str | None, eps: float = 1e-3) -> Tensor:
    """The plain operations in float64, which tests/kernels/test_moments.py compares with NumPy."""
    wide = [None if p is None else p.double() for p in parts]
    return kernels.activate(moments.example_weighted_norm(x.double(), *wide, eps), act)


@compiled
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("act", [None, "relu", "silu"])
@pytest.mark.parametrize(
    ("affine", "per_channel", "alpha"), [(True, False, 0.1), (False, False, 1.0), (True, True, 0)]
)
def test_compiled_equals_plain(shape, channels_last, act, affine, per_channel, alpha) -> None:
    x = torch.randn(shape) * 3 + 1
    if channels_last:
        if x.ndim == 3:
            pytest.skip("no such format")
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    parts = layer(shape[1], affine, per_channel, alpha)
    y = cpu_kernels.example_weighted_norm(x, *parts, 1e-3, act)
    torch.testing.assert_close(y.double(), plain(x, parts, act), rtol=1e-5, atol=2e-5)
    assert y.stride() == x.stride()


@compiled
def test_compiled_equals_the_paper() -> None:
    x, (m, v, w, b, a) = torch.randn(3, 5, 6, 7), layer(5, True, False, 0.2)
    arrays = [t.double().numpy() for t in (x, m, v, w, b)]
    expected = reference.example_weighted(*arrays, alpha=0.2, eps=1e-5)
    y = cpu_kernels.example_weighted_norm(x, m, v, w, b, a, 1e-5)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-5)


def forms_of(x: Tensor) -> list[Tensor]:
    """The same images as (N, C, H, W) in both memory formats, as volumes and as sequences."""
    n, c, h, w = x.shape
    volume = x.view(n, c, h, 1, w)
    return [
        x,
        x.contiguous(memory_format=torch.channels_last),
        volume,
        volume.contiguous(memory_format=torch.channels_last_3d),
        x.view(n, c, h * w),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 67])
@pytest.mark.parametrize("space", [(1, 2), (7, 7), (14, 14), (25, 40), (50, 100)])
def test_all_forms_equal_the_paper(space: tuple[int, int], channels: int, dtype: torch.dtype) -> None:
    x = (torch.randn(2, channels, *space) * 3 + 1).to(dtype)
    m, v, w, b, a = layer(channels, True, True, 0)
    expected = reference.example_weighted(*(t.double().numpy() for t in (x, m, v, w, b, a)), 1e-3)
    tolerance = {torch.float32: 3e-5, torch.bfloat16: 2**-7}[dtype]
    for form in forms_of(x):
        found = [kernels.example_weighted_norm(form, m, v, w, b, a, 1e-3)]
        with kernels.use_kernel("eager"):
            found.append(kernels.example_weighted_norm(form, m, v, w, b, a, 1e-3))
        if cpu_kernels.find_compiler() is not None:
            assert cpu_kernels.supports(form, None)
            found.append(cpu_kernels.example_weighted_norm(form, m, v, w, b, a, 1e-3))
        if eager_kernels.supports(form):
            found.append(eager_kernels.example_weighted_norm(form, m, v, w, b, a, 1e-3))
        for y in found:
            assert (y.dtype, y.stride()) == (form.dtype, form.stride())
            y = y.double().numpy().reshape(expected.shape)
            np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


@compiled
@pytest.mark.parametrize("channels_last", [False, True])
def test_silu_of_large_and_small_values(channels_last: bool) -> None:
    x = torch.linspace(-100, 100, 2 * 4 * 33 * 33).view(2, 4, 33, 33)
    x = x[:, :, torch.randperm(33)]
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x.contiguous()
    parts = (torch.zeros(4), torch.ones(4), None, None, torch.tensor(0.0))  # y = x, but for the activation
    y = cpu_kernels.example_weighted_norm(x, *parts, 0.0, "silu")
    torch.testing.assert_close(y.double(), torch.nn.functional.silu(x.double()), rtol=1e-6, atol=1e-30)


@compiled
@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16(channels_last: bool) -> None:
    x = (torch.randn(2, 19, 9, 9) * 3).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    parts = layer(19, True, False, 0.1)
    y = cpu_kernels.example_weighted_norm(x, *parts, 1e-3)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), plain(x, parts, None), rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("kernel", ["compiled", "eager"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_large_means_cost_no_more_than_their_own_rounding(
    kernel: str, channels_last: bool, offset: float
) -> None:
    if kernel == "compiled" and cpu_kernels.find_compiler() is None:
        pytest.skip("no C++ compiler")
    x = torch.randn(2, 6, 24, 24) + offset
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    parts = (torch.zeros(6), torch.ones(6), None, None, torch.tensor(1.0))  # moving averages far away
    with kernels.use_kernel(kernel):
        y = kernels.example_weighted_norm(x, *parts, 1e-5)
    # An input is known to half a unit in its last place, and the mean to as much.
    assert (y.double() - plain(x, parts, None, 1e-5)).abs().max() < 8 * offset * 2**-24


@pytest.mark.parametrize("kernel", ["compiled", "eager"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_constant_and_broken_images(kernel: str, channels_last: bool) -> None:
    x = torch.randn(5, 3, 12, 12)
    x[0] = 4.0
    x[1, 1, 3, 3] = float("nan")
    x[2, 2, 0, 0] = float("inf")
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    parts = layer(3, True, False, 0.3)
    with kernels.use_kernel(kernel):
        y = kernels.example_weighted_norm(x, *parts, 1e-3, act="relu")
        alone = kernels.example_weighted_norm(x[3:4], *parts, 1e-3, act="relu")
    assert torch.isfinite(y[0]).all()
    assert torch.isnan(y[1, 1]).all()
    assert torch.isfinite(y[1, 0]).all()
    assert torch.isnan(y[2, 2]).any()
    torch.testing.assert_close(y[3:4], alone, rtol=0, atol=0)  # companions, broken or not, do not matter


@compiled
def test_threads_do_not_matter() -> None:
    x, parts = torch.randn(9, 33, 20, 20), layer(33, True, False, 0.1)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(cpu_kernels.example_weighted_norm(x, *parts, 1e-5))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], y) for y in found)


@pytest.mark.parametrize("shape", [(2, 3, 12, 12), (1, 5, 300), (2, 4, 30, 40)])
def test_borrowed_kernels_equal_plain(shape: tuple[int, ...]) -> None:
    x, parts = torch.randn(shape) * 2 - 5, layer(shape[1], True, False, 0.1)
    assert eager_kernels.supports(x)
    y = eager_kernels.example_weighted_norm(x, *parts, 1e-3)
    torch.testing.assert_close(y.double(), plain(x, parts, None), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kernel", ["auto", "eager", "compiled"])
def test_gradients_take_the_plain_way(kernel: str) -> None:
    x, parts = torch.randn(2, 3, 12, 12, requires_grad=True), layer(3, True, False, 0.1)
    with kernels.use_kernel(kernel):
        kernels.example_weighted_norm(x, *parts, 1e-3).sum().backward()
    assert x.grad is not None


def test_vmap_takes_the_plain_way() -> None:
    x, parts = torch.randn(4, 2, 3, 12, 12), layer(3, True, False, 0.1)
    together = torch.vmap(lambda v: kernels.example_weighted_norm(v, *parts, 1e-3))(x)
    torch.testing.assert_close(
        together[1], kernels.example_weighted_norm(x[1], *parts, 1e-3), rtol=1e-5, atol=1e-5
    )


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    cpu_kernels.load_library.cache_clear()
    yield
    cpu_kernels.load_library.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler() -> None:
    cpu = torch.device("cpu")
    assert kernels.resolve_kernel("auto", cpu) == "eager"
    with pytest.raises(ConfigurationError, match="compiler"):
        kernels.resolve_kernel("compiled", cpu)
    x, parts = torch.randn(2, 3, 12, 12), layer(3, True, False, 0.1)
    y = kernels.example_weighted_norm(x, *parts, 1e-3)
    torch.testing.assert_close(y.double(), plain(x, parts, None), rtol=1e-5, atol=2e-5)


def test_a_compiler_that_fails_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_kernels.load_library.cache_clear()
    try:
        assert cpu_kernels.load_library() is None
        assert kernels.resolve_kernel("auto", torch.device("cpu")) == "eager"
    finally:
        cpu_kernels.load_library.cache_clear()
    assert not list((tmp_path / "alphatune").iterdir())


def test_kernels_that_cannot_run_here() -> None:
    with pytest.raises(ConfigurationError, match="unknown kernel"):
        kernels.resolve_kernel("fast", torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="CUDA"):
        kernels.resolve_kernel("triton", torch.device("cpu"))


def test_the_choice_is_undone_on_any_exit() -> None:
    before = kernels._chosen
    with pytest.raises(KeyboardInterrupt), kernels.use_kernel("eager"):
        assert kernels._chosen == "eager"
        raise KeyboardInterrupt
    assert kernels._chosen == before


@compiled
def test_a_cache_that_others_can_write_to_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "alphatune").mkdir()
    (tmp_path / "alphatune").chmod(0o777)
    assert cpu_kernels._cache_folder() != tmp_path / "alphatune"
    (tmp_path / "alphatune").chmod(0o700)
    assert cpu_kernels._cache_folder() == tmp_path / "alphatune"


@pytest.mark.slow
@compiled
def test_two_processes_compile_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "from alphatune.kernels.cpu import load_library; print(load_library().build_seconds > 0)"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[0].strip() for p in both] == ["True", "True"]
    assert len(list((tmp_path / "alphatune").iterdir())) == 1  # one library, nothing half written
    later = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert later.stdout.strip() == "False"
