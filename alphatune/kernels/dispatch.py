"""Which code normalises: plain operations, compiled C++, or Triton.

    auto       compiled on a CPU where there is a C++ compiler, triton on CUDA, else eager
    eager      torch operations only
    compiled   C++ for the CPU (cpu.py), compiled once and cached on disk
    triton     kernels for CUDA (triton.py)

All compute ``moments.example_weighted_norm`` within rounding. The choice is
one for the process. Whatever the fast forms do not cover (gradients, tracing,
torch.compile and export, channel groups, float64, other devices) runs in the
plain operations, so a choice never makes a layer fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from alphatune.core.errors import ConfigurationError
from alphatune.kernels import alpha_gradient, cpu, eager, first_use, moments

Kernel = Literal["auto", "eager", "compiled", "triton"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
#: examples of a job below which it is over before compiled kernels would have earned their compilation
#: back; whether they lie in the cache does not matter, so that a run repeats to the last bit
COMPILED_FROM = 500
_ACTIVATIONS = {"relu": torch.nn.functional.relu, "silu": torch.nn.functional.silu}

_chosen: Kernel = "auto"


@contextmanager
def use_kernel(kernel: Kernel) -> Iterator[None]:
    """Choose the code of all example-weighted layers for the time of a ``with`` block."""
    global _chosen
    if kernel not in KERNELS:
        raise ConfigurationError(f"unknown kernel {kernel!r}", f"one of: {', '.join(KERNELS)}")
    before = _chosen
    _chosen = kernel
    try:
        yield
    finally:
        _chosen = before


def resolve_kernel(kernel: Kernel, device: torch.device, *, worth_compiling: bool = True) -> Kernel:
    """The code that a choice amounts to on a device.

    Args:
        worth_compiling: whether the job is long enough to earn compilation back;
            ``auto`` asks it, an explicit ``compiled`` does not.

    Raises:
        ConfigurationError: a kernel that was asked for cannot run here.
    """
    if kernel not in KERNELS:
        raise ConfigurationError(f"unknown kernel {kernel!r}", f"one of: {', '.join(KERNELS)}")
    if kernel == "compiled":
        if device.type != "cpu":
            raise ConfigurationError(f"`kernel=compiled` is for the CPU, the model is on {device}", "triton")
        if cpu.load_library() is None:
            raise ConfigurationError(
                "`kernel=compiled` needs a C++ compiler with OpenMP, and none works here",
                "install g++ or clang++, or set CXX",
            )
    if kernel == "triton" and not (device.type == "cuda" and _triton_available()):
        raise ConfigurationError(
            f"`kernel=triton` needs Triton and a CUDA device, the model is on {device}", "auto or eager"
        )
    if kernel != "auto":
        return kernel
    if device.type == "cuda" and _triton_available():
        return "triton"
    if device.type == "cpu" and worth_compiling and cpu.load_library() is not None:
        return "compiled"
    return "eager"


def build_seconds(kernel: Kernel) -> float:
    """What compiling a kernel took in this process: 0 where it came from the cache, or nothing is compiled."""
    library = cpu.load_library() if kernel == "compiled" else None
    return library.build_seconds if library else 0.0


def example_weighted_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor,
    eps: float,
    num_groups: int | None = None,
    act: str | None = None,
) -> Tensor:
    """``moments.example_weighted_norm``, then an activation (None, "relu", "silu"), by the fastest code for ``x``.

    Raises:
        NotImplementedError, RuntimeError: the input does not fit the layer (``moments.check_input``).
    """
    moments.check_input(x, running_mean.shape[0], running_mean, running_var, weight, bias, alpha)
    arguments = (x, running_mean, running_var, weight, bias, alpha, eps)
    if num_groups is None and _wants_alpha_gradient(*arguments[:-1]):
        return activate(alpha_gradient.example_weighted_norm(*arguments), act)
    if num_groups is None and _is_plain_inference(*arguments[:-1]):
        if x.device.type == "cpu":
            if _chosen in ("auto", "compiled") and cpu.supports(x, act) and cpu.load_library():
                return cpu.example_weighted_norm(*arguments, act)
            if eager.supports(x):
                return activate(eager.example_weighted_norm(*arguments), act)
        elif x.device.type == "cuda" and _chosen in ("auto", "triton") and _triton_available():
            from alphatune.kernels import triton

            if triton.supports(x, act):
                return first_use.fast_or_plain(
                    "Triton",
                    (x.device, x.dtype, x.is_contiguous(), x.shape[1:], act),
                    lambda: triton.example_weighted_norm(*arguments, act),
                    lambda: activate(moments.example_weighted_norm(*arguments), act),
                )
    return activate(moments.example_weighted_norm(*arguments, num_groups), act)


def activate(y: Tensor, act: str | None) -> Tensor:
    """Apply an activation by name; ``y`` is ours and may be overwritten."""
    if act is None:
        return y
    return _ACTIVATIONS[act](y, inplace=not torch.is_grad_enabled())


def _wants_alpha_gradient(x: Tensor, *rest: Tensor | None) -> bool:
    """Whether α is being tuned and nothing else: the network's own parameters are constants."""
    *constants, alpha = rest
    if not (torch.is_grad_enabled() and alpha is not None and alpha.requires_grad) or x.numel() == 0:
        return False
    if torch.compiler.is_compiling() or moments.under_transform():
        return False
    return not any(t is not None and t.requires_grad for t in constants)


def _is_plain_inference(*tensors: Tensor | None) -> bool:
    """Whether nothing but numbers is wanted: no graph, gradient, trace or tensor subclass."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        return False
    if any(t is not None and type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return False
    if moments.under_transform():
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def _triton_available() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        from alphatune.kernels import triton
    except ImportError:  # Triton comes with torch on Linux only
        return False
    return triton.available()
