"""Norm layers on a CPU in two sweeps, compiled from C++ on first use.

Example-weighted inference:

    sweep 1    moments of each example's channel around the running mean       one read
    sweep 2    y = act(scale·(x − m) + shift), the values still in the cache   one write

Training by groups of examples and channels (grouped.py), channels-last:

    forward    moments of a group of examples, then y                          one read, one write
    backward   sums of dy and dy·(x − mean), then dx                           two reads, one write

where a group that fits the cache is read from it the second time.

In plain torch operations every step is a sweep of its own through memory, and
Inductor's loops keep the two apart, too: 1.35 to 1.6 times BatchNorm in the
benchmark where these take 1.0 to 1.2, after 13 s of compilation where this
takes 5 (docs/benchmarks.md). The shared library is cached on disk; without a
compiler the layers run in plain operations.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alphatune.core.cache_folder import cache_folder

SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
#: tried in this order: some compilers have no OpenMP, some no -march=native
_OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_ACTS = {None: 0, "relu": 1, "silu": 2}


@dataclass(frozen=True)
class Library:
    """The compiled functions, and how long compiling them took: 0 when they came from the cache."""

    functions: ctypes.CDLL
    build_seconds: float


@functools.cache
def load_library() -> Library | None:
    """Compile the kernels, or read them from the cache; None where that cannot be done."""
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        folder = _cache_folder()
        for optional in _optional_flags():
            command = [compiler, *_FLAGS, *optional, str(SOURCE)]
            path = folder / f"cpu_kernels-{_fingerprint(command)}.so"
            started = time.perf_counter()
            if path.exists() or _compile(command, path):
                seconds = time.perf_counter() - started
                return Library(_open(path), seconds if seconds > 0.05 else 0.0)
    except (OSError, AttributeError):  # a full disk, a library that does not load or lacks the functions
        pass
    message = "warning: %s does not compile the fast kernels%s; norm layers run in plain operations, which are slower"
    threads = "" if torch.get_num_threads() == 1 else " for several threads (OpenMP)"
    logging.getLogger("alphatune").warning(message, compiler, threads)
    return None


def _optional_flags() -> list[tuple[str, ...]]:
    """Those to try. Without OpenMP the kernels use one thread, and lose against plain operations that use several.

    On a Mac a second OpenMP runtime beside torch's own ends the process.
    """
    openmp = platform.system() != "Darwin"
    one_thread = torch.get_num_threads() == 1
    return [flags for flags in _OPTIONAL_FLAGS if (openmp if "-fopenmp" in flags else one_thread)]


def find_compiler() -> str | None:
    """The C++ compiler: ``$CXX``, or the first of the usual names on the PATH."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def supports(x: Tensor, act: str | None) -> bool:
    """Whether ``example_weighted_norm`` takes this activation (N, C, *): its dtype and memory format."""
    if x.dtype not in _DTYPES or act not in _ACTS or x.ndim < 3 or x.numel() == 0:
        return False
    return x.is_contiguous() or _is_channels_last(x)


def example_weighted_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
    act: str | None = None,
) -> Tensor:
    """``moments.example_weighted_norm`` and an activation, without gradients.

    Args:
        x: activations (N, C, *) that ``supports`` takes.
        running_mean, running_var: moving averages (C,).
        weight, bias: γ and β (C,), or None.
        alpha: weight of the example, shape () or (C,).
        eps: ε.
        act: None, "relu" or "silu".

    Returns:
        (N, C, *), like ``x`` in dtype and memory format.
    """
    functions = _functions()
    y = torch.empty_like(x)
    n, channels = x.shape[:2]
    tensors = [_single(t) for t in (running_mean, running_var, weight, bias, alpha)]
    functions.example_weighted_norm(
        x.data_ptr(),
        y.data_ptr(),
        n,
        channels,
        x.numel() // (n * channels),
        not x.is_contiguous(),
        _DTYPES[x.dtype],
        _ACTS[act],
        *(_pointer(t) for t in tensors),
        alpha.ndim,  # the stride of α: 0 where one number serves all channels
        eps,
        torch.get_num_threads(),
    )
    return y


def supports_grouped(x: Tensor) -> bool:
    """Whether ``grouped_norm`` takes this activation (N, C, *): plain float32 with a position's channels side by side."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.ndim > 1
        and x.numel() > 0
        and x.movedim(1, -1).is_contiguous()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    )


def grouped_moments(x: Tensor, size: int, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (G, K) of groups of ``size`` examples and of channels."""
    return _grouped_forward(x, None, size, num_groups, None, None, 0.0)


def grouped_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``grouped.grouped_norm`` returns: y and the moments (G, K).

    Args:
        x: activations (N, C, *) that ``supports_grouped`` takes.
        weight, bias: γ and β (C,), or None.
        num_groups: channel groups K.
        size: examples of a group, a divisor of N.
        eps: ε.
    """
    y = torch.empty_like(x)
    return y, *_grouped_forward(x, y, size, num_groups, weight, bias, eps)


def _grouped_forward(
    x: Tensor,
    y: Tensor | None,
    size: int,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    shape = _grid(x, size, num_groups)
    mean, variance = torch.empty(2, shape[0], num_groups).unbind()
    weight, bias = _single(weight), _single(bias)
    _functions().grouped_norm(
        x.data_ptr(),
        _pointer(y),
        *shape,
        _pointer(weight),
        _pointer(bias),
        eps,
        mean.data_ptr(),
        variance.data_ptr(),
        torch.get_num_threads(),
    )
    return mean, variance


def grouped_norm_backward(
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    size: int,
    eps: float,
    wants_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradient of ``grouped_norm``: dx (None unless wanted), dγ and dβ (C,), wanted or not."""
    shape = _grid(x, size, mean.shape[1])
    dy = dy.movedim(1, -1).to(torch.float32).contiguous()
    dx = torch.empty_like(x) if wants_dx else None
    dweight, dbias = torch.empty(2, x.shape[1]).unbind()
    weight = _single(weight)
    _functions().grouped_norm_backward(
        x.data_ptr(),
        dy.data_ptr(),
        _pointer(dx),
        *shape,
        _pointer(weight),
        eps,
        mean.data_ptr(),
        variance.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
        torch.get_num_threads(),
    )
    return dx, dweight, dbias


def _grid(x: Tensor, size: int, num_groups: int) -> tuple[int, int, int, int]:
    """Groups, rows of a group, channels, groups of channels."""
    groups, channels = len(x) // size, x.shape[1]
    return groups, x.numel() // (groups * channels), channels, num_groups


def _functions() -> ctypes.CDLL:
    library = load_library()
    if library is None:
        raise RuntimeError("expected load_library() to be asked first: there are no compiled kernels here")
    return library.functions


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _is_channels_last(x: Tensor) -> bool:
    return (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)) or (
        x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
    )


def _single(tensor: Tensor | None) -> Tensor | None:
    """In float32 and one piece."""
    return None if tensor is None else tensor.detach().to(torch.float32).contiguous()


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    function = library.example_weighted_norm
    function.restype = None
    function.argtypes = [
        *(pointer,) * 2, *(integer,) * 3, *(number,) * 3, *(pointer,) * 5, integer, ctypes.c_float, number,
    ]  # fmt: skip
    function = library.grouped_norm
    function.restype = None
    function.argtypes = [
        *(pointer,) * 2, *(integer,) * 4, *(pointer,) * 2, ctypes.c_float, *(pointer,) * 2, number,
    ]  # fmt: skip
    function = library.grouped_norm_backward
    function.restype = None
    function.argtypes = [
        *(pointer,) * 3, *(integer,) * 4, pointer, ctypes.c_float, *(pointer,) * 4, number,
    ]  # fmt: skip
    return library


def _compile(command: list[str], path: Path) -> bool:
    """Compile into a file that appears whole, whoever else compiles the same; False if the compiler refuses."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        done = subprocess.run([*command, "-o", name], capture_output=True, check=False, timeout=300)
        if done.returncode == 0:
            Path(name).replace(path)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        Path(name).unlink(missing_ok=True)


def _fingerprint(command: list[str]) -> str:
    """Whatever the machine code depends on: source, flags, compiler and processor.

    A home folder can be shared by machines whose processors differ.
    """
    version = subprocess.run([command[0], "--version"], capture_output=True, check=False).stdout
    processor = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = (SOURCE.read_bytes(), " ".join(command).encode(), version, processor.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _cache_folder() -> Path:
    """Where only this user can write to: what lies in it is loaded as code."""
    if folder := cache_folder():
        return folder
    temporary = Path(tempfile.mkdtemp(prefix="alphatune-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary
