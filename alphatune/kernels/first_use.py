"""Trust a device's fast kernels only after they have agreed with the plain operations there.

A compiler of kernels, a driver or a card that nobody tried may be wrong. So the
first activation of each kind in a process goes through both, and their outputs
are compared: some milliseconds. Where they differ, or the kernel fails, plain
operations are used from then on, and one warning says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

#: by dtype: a few roundings of the output, as a share of its largest magnitude
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}

_trusted: dict[Hashable, bool] = {}
_warned: set[str] = set()


def fast_or_plain(
    name: str, kind: Hashable, fast: Callable[[], Tensor], plain: Callable[[], Tensor]
) -> Tensor:
    """The output of the fast kernel if it agrees with the plain operations on inputs of this kind, else theirs.

    Args:
        name: of the kernel, for the warning.
        kind: what may decide how the kernel works: device, dtype, memory format, size of the activation.
        fast, plain: compute the same output (N, C, *).

    Raises:
        torch.OutOfMemoryError: as either raises it; it says nothing about the kernel.
    """
    verdict = _trusted.get((name, kind))
    if verdict is None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return plain()  # nothing can be looked at while a graph is recorded
        return _first(name, kind, fast, plain)
    return fast() if verdict else plain()


def _first(name: str, kind: Hashable, fast: Callable[[], Tensor], plain: Callable[[], Tensor]) -> Tensor:
    expected, reason = plain(), ""
    try:
        output = fast()
        if not agree(output, expected):
            reason = "disagrees with plain operations"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler or a driver may raise
        reason = f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    _trusted[name, kind] = not reason
    if reason and name not in _warned:
        _warned.add(name)
        message = (
            "warning: the %s kernel %s on this device; norm layers run in plain operations, which are slower"
        )
        logging.getLogger("alphatune").warning(message, name, reason)
    return expected if reason else output


def agree(output: Tensor, expected: Tensor) -> bool:
    """Whether two outputs are the same but for rounding; NaN and infinities have to be in the same places."""
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return False
    a, b = output.float(), expected.float()
    finite = b.isfinite()
    largest = torch.where(finite, b.abs(), 0).amax() if b.numel() else b.new_zeros(())
    near = (a - b).abs() <= TOLERANCE[output.dtype] * largest
    same = torch.where(finite, near, (a == b) | (a.isnan() & b.isnan()))
    return bool(same.all())
