"""A network that does something bad at the k-th batch: FAULT="KIND K", e.g. "oom 3".

Before its first pass ``tune`` looks at eight images four times; these looks count.
"""

from __future__ import annotations

import os
import shutil
import signal

import torch
from tiny import Tiny


class Faulty(Tiny):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind, _, at = os.environ.get("FAULT", "").partition(" ")
        if kind and len(x) > 2:  # not the look at two blank images
            type(self).calls += 1
        if kind.startswith("always") or (kind and len(x) > 2 and self.calls == int(at)):
            fail(kind, len(x))
        return super().forward(x)


def fail(kind: str, examples: int) -> None:
    if kind in ("oom", "always-oom"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "always-oom-above-4" and examples > 4:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "cpu-oom":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
    if kind == "gpu":
        raise getattr(torch, "AcceleratorError", RuntimeError)(  # of torch 2.8 and later
            "CUDA error: unspecified launch failure"
        )
    if kind == "cudnn":
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
    if kind == "delete":
        shutil.rmtree(os.environ["FAULT_FOLDER"])
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def faulty() -> Faulty:
    return Faulty()
