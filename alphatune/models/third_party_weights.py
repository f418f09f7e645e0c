"""Weights that timm and torchvision fetch and read themselves: read by our own reader, whichever torch there is.

Both hand a file to ``torch.load``, and not always with ``weights_only``, which has had holes in
every torch before 2.10 besides. For the time that they build a model, ``torch.load`` is a function
that unpickles by our rules (pickles/), so that what a folder or the hub holds cannot run code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from alphatune.core.errors import UntrustedError
from alphatune.models.checkpoint_content import read_content
from alphatune.pickles.pickle_records import grouped


@contextmanager
def reading_safely() -> Iterator[None]:
    """Let ``torch.load`` read plain data only, for the time of a ``with`` block."""
    before = torch.load
    torch.load = _load  # type: ignore[assignment]  # which takes a file's name alone
    try:
        yield
    finally:
        torch.load = before


def _load(file: Any, *_: Any, **__: Any) -> Any:
    """In the place of ``torch.load``: tensors on the CPU, which is where both libraries want them."""
    content = read_content(file)
    if not isinstance(content.value, Mapping) and content.passed_over:
        raise UntrustedError(
            f"{file} holds no weights by their names, and reading it as it is meant would run code: "
            f"{grouped(content.passed_over)}",
            "ask for a .safetensors file",
        )
    return content.value
