"""Which inputs a loader has given: the same again in every pass, and each of them once.

Paired statistics take examples as independent. An ``IterableDataset`` that does not share its work among the
workers gives everything once a worker: eight of them made a p-value of .011 of one of .80.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from alphatune.core.errors import ConfigurationError

#: more repeats than this share of the examples come from the loader; data sets hold a few duplicates
MOST_REPEATED = 0.25
#: with fewer examples nothing is concluded
FEWEST = 16
#: repeats beyond this share are worth a remark
REMARKABLE = 0.01

_weights = np.empty(0, dtype=np.int64)


def checksums(inputs: Tensor) -> NDArray[np.int64]:
    """A number of each input (N, ...) that depends on all of its bytes, (N,); takes 0.2 ms for float32 at 224×224."""
    global _weights
    rows = inputs.detach().to("cpu").reshape(len(inputs), -1).contiguous().view(torch.uint8).numpy()
    if rows.shape[1] % 8:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    words = rows.view(np.int64)
    if len(_weights) < words.shape[1]:
        generator = np.random.default_rng(0)
        drawn = generator.integers(-(2**63), 2**63, (words.shape[1],), dtype=np.int64)
        _weights = drawn | 1
    return words @ _weights[: words.shape[1]]


def checksums_of(inputs: Any) -> NDArray[np.int64] | None:
    """``checksums`` of the images in whatever a model of one's own takes; None where there are none to be seen.

    Of several inputs the first that are images count; a list may be those inputs, or images of different sizes.
    """
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "biuf":
        inputs = torch.from_numpy(np.ascontiguousarray(inputs))
    if torch.is_tensor(inputs):
        return checksums(inputs) if inputs.ndim > 2 else None
    parts = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    if not isinstance(parts, (list, tuple)) or not parts:
        return None
    if all(torch.is_tensor(part) and part.ndim == 3 for part in parts) and not isinstance(inputs, Mapping):
        return np.concatenate([checksums(part[None]) for part in parts])
    return next((sums for part in parts if (sums := checksums_of(part)) is not None), None)


def check_repeats(
    sums: NDArray[np.int64], targets: NDArray[np.int64], loader: Any, *, images: bool = True
) -> str:
    """A remark if some examples came more than once, with the same label; "" if next to none did.

    Args:
        images: rows of a table may well repeat; only a table that comes several times as a whole is noticed.

    Raises:
        ConfigurationError: everything came several times, or more than a quarter of the images are repeats.
    """
    _, counts = np.unique(np.stack([sums, targets], axis=1), axis=0, return_counts=True)
    count, repeated = len(sums), len(sums) - len(counts)
    if count < FEWEST:
        return ""
    times = int(np.gcd.reduce(counts)) if len(counts) >= FEWEST // 2 else 1
    if times > 1 or (images and repeated > MOST_REPEATED * count):
        what = f"each came {times} times" if times > 1 else f"{repeated} came before"
        raise ConfigurationError(
            f"expected each example once, got {count} of which {len(counts)} differ: {what}", _cause(loader)
        )
    if images and repeated > REMARKABLE * count:
        return f"{repeated} of {count} examples are repeats of others, bit for bit"
    return ""


def changed(what: str) -> ConfigurationError:
    """The error of a loader that does not give the same again."""
    return ConfigurationError(
        f"expected the loader to give the same examples in the same order each time, got {what}",
        "turn shuffle and random augmentation off, or pass a list of its batches",
    )


def _cause(loader: Any) -> str:
    workers = getattr(loader, "num_workers", 0)
    if workers > 1 and isinstance(getattr(loader, "dataset", None), IterableDataset):
        return (
            f"an IterableDataset gives everything in each of its {workers} workers: "
            "share it out by torch.utils.data.get_worker_info(), or take num_workers=1"
        )
    if getattr(getattr(loader, "sampler", None), "replacement", False):
        return "its sampler draws with replacement: evaluate without a sampler"
    return "statistics take examples as independent: leave out the repeats"
