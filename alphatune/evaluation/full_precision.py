"""Run float32 as float32: without TF32, bfloat16 or cuDNN's autotuner, which let an output depend on its batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply and convolve float32 in float32 for the time of a ``with`` block; undone on any exit.

    PyTorch has two sets of switches: the older ``allow_tf32`` and, from 2.9 on, ``fp32_precision``. Reading
    an older one raises once a newer one contradicts it, so the older ones are used where they can be read
    (both sets then agree), and the newer ones where that left something on. ``torch._C`` is what lies
    beneath the attributes, which ``torch.backends.disable_global_flags()`` makes read-only.
    """
    operations = _operations()
    before = [operation.fp32_precision for operation in operations]
    matmul = _read(torch.get_float32_matmul_precision)
    cudnn = _read(torch._C._get_cudnn_allow_tf32)
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch._C._set_cudnn_benchmark(False)
        if matmul is not None:
            torch.set_float32_matmul_precision("highest")
        if cudnn is not None:
            torch._C._set_cudnn_allow_tf32(False)
        for operation in operations:
            if operation.fp32_precision not in ("ieee", "none"):
                operation.fp32_precision = "ieee"
        yield
    finally:
        torch._C._set_cudnn_benchmark(benchmark)
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch._C._set_cudnn_allow_tf32(cudnn)
        for operation, precision in zip(operations, before, strict=True):
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision


def _operations() -> list[Any]:
    """The operations whose precision the newer switches set; none before torch 2.9."""
    backends = (torch.backends.cudnn, torch.backends.mkldnn)
    found = [getattr(backend, name, None) for backend in backends for name in ("matmul", "conv", "rnn")]
    operations = [torch.backends.cuda.matmul, *(operation for operation in found if operation is not None)]
    return operations if hasattr(torch.backends, "fp32_precision") else []


def _read(switch: Any) -> Any:
    """The state of an older switch, None where a newer one contradicts it."""
    try:
        return switch()
    except RuntimeError:
        return None
