"""What a loader of one's own yields for a task of one's own: (inputs, targets), of any structure.

Nothing is known of the targets, and of the inputs no more than that a model
takes them; so nothing here stacks, cuts up or reorders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch

from alphatune.core.errors import AlphatuneError, DataError, one_line
from alphatune.data.custom_batches import split_item
from alphatune.data.workers import from_workers


def custom_pairs(loader: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(inputs, targets) of each batch, as the loader gives them.

    Raises:
        ConfigurationError: it yields something else.
        DataError: the loader itself fails.
        ResourceError: one of its worker processes died.
    """
    batches, done = from_workers(loader), 0
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except (AlphatuneError, MemoryError):
            raise
        except Exception as error:  # a dataset of one's own may raise anything
            raise DataError(
                f"the loader failed after {done} batches: {type(error).__name__}: {one_line(error)}"
            ) from error
        yield split_item(item)
        done += 1


def count_examples(loader: Any) -> int | None:
    """How many examples a DataLoader is going to give, None where nobody knows."""
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None


def examples_in(inputs: Any) -> int | None:
    """N of inputs (N, ...), or of a mapping of them; None where it could be something else.

    A list may be N images, or the several inputs of one network.
    """
    if isinstance(inputs, Mapping):
        inputs = next(iter(inputs.values()), None)
    if isinstance(inputs, (torch.Tensor, np.ndarray)) and inputs.ndim > 0:
        return len(inputs)
    return None


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Inputs with every tensor and array on a device, and in a dtype where it is floating; else as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(value)
    if torch.is_tensor(value):
        return value.to(device, dtype if value.is_floating_point() else None)
    if type(value) is dict:
        return {key: moved(inner, device, dtype) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(inner, device, dtype) for inner in value))
    if type(value) in (list, tuple):
        return type(value)(moved(inner, device, dtype) for inner in value)
    # A batch class of a library's own, like a tokeniser's.
    return value.to(device) if callable(getattr(value, "to", None)) else value
