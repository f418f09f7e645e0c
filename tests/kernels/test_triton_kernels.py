"""The Triton kernels against the float64 reference, and compiled for devices that are not here.

Without a GPU the kernels run in Triton's interpreter. It has to be switched on
before Triton is imported, hence in another process: this file as a script,
which runs all CHECKS and prints what failed. ``pytest -m gpu`` runs the same
checks on a CUDA device.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from conftest import CHILD_PATH

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Half a unit in the last place, or one: the interpreter truncates to bfloat16
#: (_convert_float without a rounding mode) where devices round to nearest.
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    by_rows: bool = False  # channels-last
    dtype: torch.dtype = torch.float32
    alpha: float | str = 0.1
    act: str | None = None
    affine: str = "weight and bias"
    offset: float = 1.0
    scale: float = 3.0
    moving_offset: float = 0.0
    statistics: torch.dtype = torch.float32

    def __str__(self) -> str:
        changed = (f"{k}={v}" for k, v in vars(self).items() if k != "shape" and v != getattr(Case, k))
        return " ".join(["x".join(map(str, self.shape)), *changed])


SHAPES = [  # around every branch of the tiling, C rarely a power of two
    (3, 5, 1, 2),
    (2, 19, 7, 7),
    (2, 5, 14, 14),
    (2, 3, 32, 32),
    (1, 70, 14, 14),  # several blocks of channels, the last one ragged
    (1, 37, 33, 33),  # the same where channels-last has to loop
    (1, 3, 129, 128),  # above the limit of what is held
    (2, 6, 27),
    (2, 3, 4, 5, 6),
]
CASES = [
    *(Case(*c) for c in itertools.product(SHAPES, (False, True), DTYPES)),
    *(
        Case((2, 5, 4, 7), by_rows, alpha=alpha, act=act, affine=affine)
        for by_rows in (False, True)
        for alpha in (0.1, 1.0, "per channel")
        for act in (None, "relu", "silu")
        for affine in ("weight and bias", "weight", "")
    ),
    *(  # a common offset of 1000 deviations, in the moving averages too or only in the example
        Case(shape, by_rows, alpha=alpha, offset=1000, scale=1, moving_offset=moving)
        for shape in ((2, 3, 14, 14), (1, 3, 129, 128))
        for by_rows in (False, True)
        for alpha in (0.1, 1.0)
        for moving in (0.0, 1000.0)
    ),
    Case((1, 3, 129, 128), alpha="per channel", act="silu", affine=""),
    Case((1, 3, 129, 128), True, alpha="per channel", act="relu", affine=""),
    Case((2, 5, 7, 7), dtype=torch.float16, scale=2000.0),  # squares overflow in float16
    *(Case((2, 5, 7, 7), statistics=dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)),
    Case((2, 5, 7, 7), dtype=torch.bfloat16, statistics=torch.bfloat16),
]


def activation(case: Case) -> torch.Tensor:
    x = (torch.randn(case.shape) * case.scale + case.offset).to(case.dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if case.by_rows else x


def layer_tensors(case: Case) -> dict[str, Any]:
    channels = case.shape[1]
    return {
        "running_mean": (torch.randn(channels) + case.moving_offset).to(case.statistics),
        "running_var": (torch.rand(channels) + 0.3).to(case.statistics),
        "weight": torch.randn(channels).to(case.statistics) if "weight" in case.affine else None,
        "bias": torch.randn(channels).to(case.statistics) if "bias" in case.affine else None,
        "alpha": torch.linspace(0, 1, channels) if case.alpha == "per channel" else torch.tensor(case.alpha),
    }


def expected(x: torch.Tensor, tensors: dict[str, Any], eps: float, act: str | None) -> np.ndarray:
    arrays = {k: None if v is None else v.double().numpy() for k, v in tensors.items()}
    y = reference.example_weighted(x.double().numpy(), **arrays, eps=eps)
    if act == "relu":
        return np.maximum(y, 0)
    return y / (1 + np.exp(-y)) if act == "silu" else y


def run(x: torch.Tensor, tensors: dict[str, Any], act: str | None, device: str) -> torch.Tensor:
    from alphatune.kernels.triton import example_weighted_norm, supports

    assert supports(x, act)
    on_device = {k: None if v is None else v.to(device) for k, v in tensors.items()}
    y = example_weighted_norm(x.to(device), **on_device, eps=1e-3, act=act)
    assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    return y.cpu()


def equals_the_reference(case: Case, device: str) -> None:
    x, tensors = activation(case), layer_tensors(case)
    y = run(x, tensors, case.act, device)
    np.testing.assert_allclose(
        y.double().numpy(), expected(x, tensors, 1e-3, case.act), rtol=ROUNDING[case.dtype], atol=2e-5
    )


def nan_and_infinity_stay_in_their_channel(device: str) -> None:
    for shape, by_rows, act in itertools.product(
        ((2, 3, 4, 4), (2, 3, 129, 128)), (False, True), (None, "relu", "silu")
    ):
        case = Case(shape, by_rows)
        x, tensors = activation(case), layer_tensors(case)
        clean = run(x, tensors, act, device)
        x[0, 1, 2, 3], x[1, 0, 0, 0] = math.nan, math.inf
        y = run(x, tensors, act, device)
        assert y[0, 1].isnan().all(), "as the moments are NaN, so is the example's channel"
        assert y[1, 0].isnan().all()
        assert torch.equal(y[:, 2], clean[:, 2])
        assert torch.equal(y[1, 1], clean[1, 1])


def output_does_not_depend_on_companions(device: str) -> None:
    for shape, by_rows in itertools.product(((3, 5, 7, 7), (3, 3, 129, 128)), (False, True)):
        case = Case(shape, by_rows)
        x, tensors = activation(case), layer_tensors(case)
        assert torch.equal(run(x, tensors, None, device)[1:2], run(x[1:2], tensors, None, device))


def empty_batch(device: str) -> None:
    case = Case((0, 5, 4, 4))
    assert run(activation(case), layer_tensors(case), None, device).shape == (0, 5, 4, 4)


def unaligned_view(device: str) -> None:
    """A tensor that starts in the middle of another one's memory."""
    case = Case((3, 5, 7, 7))
    x, tensors = activation(case), layer_tensors(case)
    np.testing.assert_allclose(
        run(x.to(device)[1:], tensors, None, device).numpy(),
        expected(x[1:], tensors, 1e-3, None),
        rtol=2e-5,
        atol=2e-5,
    )


CHECKS: dict[str, Callable[[str], None]] = {
    **{str(case): functools.partial(equals_the_reference, case) for case in CASES},
    **{
        f.__name__: f
        for f in (
            nan_and_infinity_stay_in_their_channel,
            output_does_not_depend_on_companions,
            empty_batch,
            unaligned_view,
        )
    },
}


def run_checks() -> dict[str, str]:
    """What failed, and how."""
    failed = {}
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            check("cpu")
        except Exception:  # reported by the test of this name
            failed[name] = traceback.format_exc()
    return failed


@pytest.fixture(scope="module")
def failed() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": CHILD_PATH},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["checked"] == len(CHECKS)
    return dict(report["failed"])


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name: str, failed: dict[str, str]) -> None:
    if "only 0-dimensional arrays can be converted" in failed.get(name, ""):
        pytest.skip("the interpreter of Triton 3.6 cannot loop under NumPy 2.4")
    if "arguments must be of type tl.constexpr" in failed.get(name, ""):
        pytest.skip("the interpreter of Triton 3.0, which torch 2.4 brings, takes no constant for one")
    assert name not in failed, failed[name]


@on_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_cuda(name: str) -> None:
    CHECKS[name]("cuda")


@on_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("by_rows", [False, True])
def test_more_elements_than_32_bits_count(by_rows: bool) -> None:
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB")
    case = Case((70_000, 64, 23, 23), by_rows, torch.bfloat16)
    from alphatune.kernels.triton import example_weighted_norm

    x = torch.empty(case.shape, dtype=case.dtype, device="cuda")
    if by_rows:
        x = x.to(memory_format=torch.channels_last)
    x.normal_()
    tensors = {k: v.cuda() for k, v in layer_tensors(case).items()}
    y = example_weighted_norm(x, **tensors, eps=1e-3)
    assert torch.equal(y[-2:], example_weighted_norm(x[-2:].clone(), **tensors, eps=1e-3))
    assert torch.equal(y[:2], example_weighted_norm(x[:2].clone(), **tensors, eps=1e-3))


@on_cuda
@pytest.mark.gpu
def test_never_waits_for_the_device() -> None:
    from alphatune.kernels.triton import available, example_weighted_norm

    assert available()
    case = Case((2, 5, 7, 7))
    x, tensors = activation(case).cuda(), {k: v.cuda() for k, v in layer_tensors(case).items()}
    example_weighted_norm(x, **tensors, eps=1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        example_weighted_norm(x, **tensors, eps=1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Recorder:
    """Stands for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arguments: dict[str, Any] = {}
        self.warps = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Recorder:
        return self

    def __call__(self, *args: Any, num_warps: int, **constants: Any) -> None:
        self.arguments = {**dict(zip(self.kernel.arg_names, args, strict=False)), **constants}
        self.warps = num_warps


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Recorder]:
    from alphatune.kernels import triton as triton_kernels

    recorders = {name: Recorder(getattr(triton_kernels, name)) for name in ("_held", "_looped")}
    for name, recorder in recorders.items():
        monkeypatch.setattr(triton_kernels, name, recorder)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return recorders


def launch(case: Case) -> None:
    from alphatune.kernels.triton import example_weighted_norm

    example_weighted_norm(activation(case), **layer_tensors(case), eps=1e-3, act=case.act)


@pytest.mark.parametrize(
    ("case", "kernel", "shape"),
    [
        (Case((1, 64, 14, 14), act="relu"), "_held", (256, 2)),
        (Case((1, 64, 112, 112), dtype=torch.bfloat16, act="silu"), "_held", (16384, 1)),
        (Case((1, 3, 129, 128), dtype=torch.float16, affine=""), "_looped", (8192, 1)),
        (Case((1, 70, 14, 14), True, torch.bfloat16, alpha="per channel"), "_held", (256, 64)),
        (Case((1, 70, 33, 33), True, act="silu"), "_looped", (512, 16)),
    ],
    ids=str,
)
def test_compiles_for_a_device(
    case: Case, kernel: str, shape: tuple[int, int], recorders: dict[str, Recorder]
) -> None:
    """The interpreter is Python and lenient; the compiler needs no device to refuse."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "nvidia" not in triton.backends.backends:
        pytest.skip("needs Triton's compiler for CUDA")
    launch(case)
    recorder = recorders[kernel]
    names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    signature, constants = {}, {}
    for name, value in recorder.arguments.items():
        if isinstance(value, torch.Tensor):
            signature[name] = names[value.dtype]
        elif name.isupper() or value is None:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    assert (constants["BLOCK_P"], constants["BLOCK_C"]) == shape
    source = ASTSource(recorder.kernel, signature, constants)
    target, options = GPUTarget("cuda", 80, 32), {"num_warps": recorder.warps}
    assert "ptx" in triton.compile(source, target=target, options=options).asm


def test_alpha_stays_a_tensor(recorders: dict[str, Recorder]) -> None:
    """Its value is not among what a kernel is compiled for."""
    seen = []
    for alpha in (0.1, 0.7):
        launch(Case((2, 5, 7, 7), alpha=alpha))
        arguments = recorders["_held"].arguments
        assert arguments.pop("alpha").item() == pytest.approx(alpha)
        seen.append({k: v for k, v in arguments.items() if not isinstance(v, torch.Tensor)})
    assert seen[0] == seen[1]


def test_supports() -> None:
    from alphatune.kernels.triton import available, supports

    x = torch.zeros(2, 3, 4, 5)
    assert supports(x, None)
    assert supports(x.half(), "relu")
    assert supports(x.to(memory_format=torch.channels_last), "silu")
    assert not supports(x, "gelu")
    assert not supports(x.double(), None)
    assert not supports(x.transpose(2, 3), None)
    assert not supports(x[:, :, ::2], None)
    assert not supports(x[:, :, :1, :1], None)
    assert not supports(x[:, :, 0, 0], None)
    assert available() == torch.cuda.is_available()


if __name__ == "__main__":
    print(json.dumps({"checked": len(CHECKS), "failed": run_checks()}))
