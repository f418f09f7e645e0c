"""One .safetensors of weights, keys unchanged, with all that alphatune found out in its metadata.

Metadata of this format are strings, so what is no text is JSON in one. Moments
of calibrated layers (moments_file.py) go there as numbers, too: tensors under
further keys would keep stock code from loading the weights strictly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from alphatune.core.errors import ResourceError
from alphatune.models.bundle import state_to_write
from alphatune.models.moments_file import moments_of


def write_weights(model: nn.Module, path: Path, record: Mapping[str, str]) -> None:
    """Write a model's state dict, and verify what was written.

    Args:
        record: further metadata.

    Raises:
        ResourceError: it does not read back.
    """
    state = state_to_write(model)
    metadata = {"format": "pt", **record}
    if moments := moments_of(model):
        metadata["moments"] = json.dumps({key: value.tolist() for key, value in moments.items()})
    path.write_bytes(_in_order(safetensors.torch.save(state, metadata=metadata)))
    written = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        kept = file.metadata()
    if (
        written.keys() != state.keys()
        or not all(torch.equal(written[key], state[key]) for key in state)
        or kept != metadata
    ):
        raise ResourceError(f"{path} does not read back as it was written")


def _in_order(data: bytes) -> bytes:
    """The same file with its metadata sorted: the library writes them in another order each time.

    A file is the length of its header in 8 bytes, the header in JSON, filled up to
    whole 8 bytes with spaces, and the tensors at offsets from the header's end.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
