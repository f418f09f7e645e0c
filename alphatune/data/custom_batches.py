"""What a user's own loader yields, as images and class indices.

    (inputs, labels, ...)               a tuple or list
    {"image": ..., "label": ...}        a mapping, by the usual names
    [(image, label), ...]               a list of examples, as ``collate_fn=list`` leaves it

Inputs are tensors (N, ...), or arrays or lists that stack to one. Labels are integers (N,);
(N, 1), one-hot and whole floating-point numbers become integers, and that is said. What could mean
several things is refused: a wrong guess would be a wrong figure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from alphatune.core.errors import ConfigurationError, one_line
from alphatune.data.prefetch import Batch
from alphatune.data.workers import from_workers

INPUT_KEYS = ("image", "images", "pixel_values", "x", "inputs", "input")
TARGET_KEYS = ("label", "labels", "target", "targets", "y")
#: examples a batch, where a dataset comes without a loader
DATASET_BATCH_SIZE = 64

Note = Callable[[str], None]


def checked_batches(loader: Iterable[Any], start: int = 0, note: Note = lambda _: None) -> Iterator[Batch]:
    """What a loader yields, wherever it lies; ids count up from ``start``.

    Args:
        note: told what was converted, for every batch.

    Raises:
        ConfigurationError: it yields something else than images and class indices.
    """
    for item in from_workers(loader):
        values, labels = split_item(item)
        inputs = as_inputs(values)
        targets = _as_classes(labels, inputs, note)
        ids = torch.arange(start, start + len(targets))
        start += len(targets)
        yield Batch(inputs, targets, ids)


class DatasetBatches:
    """Batches of a dataset, in its order; ``collate`` makes one of a list of examples."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self._collate = collate

    def __iter__(self) -> Iterator[Any]:
        examples = _examples(self.dataset)
        while chunk := list(itertools.islice(examples, DATASET_BATCH_SIZE)):
            yield self._collate(chunk)


def as_loader(data: Any, collate: Callable[[list[Any]], Any] = list) -> Iterable[Any]:
    """The data; a dataset (PyTorch's or Hugging Face's) in batches, unless batches are what it gives.

    Raises:
        ConfigurationError: nothing to iterate over.
    """
    if isinstance(data, Dataset) or type(data).__module__.partition(".")[0] == "datasets":
        is_batched = _is_batch(next(_examples(data), None))
        return data if is_batched else DatasetBatches(data, collate)
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise ConfigurationError(
            f"expected a loader, an iterable of (inputs, targets), got {type(data).__name__}"
        )
    return data  # type: ignore[no-any-return]


def split_item(item: Any) -> tuple[Any, Any]:
    """Inputs and targets of whatever stands for a batch."""
    if _is_mapping(item):
        return _pick(item, INPUT_KEYS, "images"), _pick(item, TARGET_KEYS, "labels")
    if isinstance(item, (list, tuple)) and item and all(map(_is_example, item)):
        inputs, targets = zip(*map(split_item, item), strict=True)
        return list(inputs), list(targets)
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise ConfigurationError(
            f"expected the loader to yield (inputs, targets), got {type(item).__name__}",
            f"or a mapping with one of {', '.join(INPUT_KEYS)} and one of {', '.join(TARGET_KEYS)}",
        )
    return item[0], item[1]


def only_inputs(item: Any) -> Tensor:
    """The inputs of a batch whose labels do not matter, and need not be there."""
    if _is_mapping(item):
        return as_inputs(_pick(item, INPUT_KEYS, "images"))
    if isinstance(item, (list, tuple)) and item:
        return as_inputs(split_item(item)[0] if all(map(_is_example, item)) else item[0])
    return as_inputs(item)


def as_inputs(values: Any) -> Tensor:
    """Inputs (N, ...); raises ConfigurationError for what is no batch of prepared images."""
    if _is_mapping(values):
        values = _pick(values, INPUT_KEYS, "images")
    parts = [values] if isinstance(values, Image.Image) else values
    if isinstance(parts, (list, tuple)):
        if any(isinstance(part, Image.Image) for part in parts):
            raise ConfigurationError(
                "expected images as tensors (N, C, H, W), got PIL images",
                "let the dataset's transform end with ToTensor and Normalize",
            )
        shapes = list(dict.fromkeys(tuple(part.shape) for part in parts if hasattr(part, "shape")))
        if len(shapes) > 1:
            raise ConfigurationError(
                f"expected images of one shape in a batch, got {shapes[0]} and {shapes[1]}",
                "let the dataset's transform resize or crop them to one size, or use batches of one",
            )
        if shapes:
            parts = torch.stack([torch.as_tensor(part) for part in parts])
    try:
        inputs = torch.as_tensor(parts)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigurationError(
            f"expected images as a tensor (N, C, H, W), got {type(values).__name__}"
        ) from None
    shape = tuple(inputs.shape)
    if not inputs.is_floating_point() and inputs.ndim > 2:
        raise ConfigurationError(
            f"expected images as the model takes them, floating-point and normalised, got {_name(inputs)} {shape}",
            "ToTensor and Normalize make them so; if the model takes 0..255, give images.float()",
        )
    if inputs.ndim == 5 and shape[1] in (5, 10) and shape[2] in (1, 3):
        raise ConfigurationError(
            f"expected images (N, C, H, W), got {shape}: {shape[1]} crops of each image",
            "give one crop of each, e.g. CenterCrop in place of FiveCrop or TenCrop",
        )
    return inputs


def _as_classes(labels: Any, inputs: Tensor, note: Note) -> Tensor:
    """Class indices (N,) int64, wherever the labels lie."""
    count = len(inputs) if inputs.ndim else 0
    if isinstance(labels, (list, tuple)) and labels and all(map(torch.is_tensor, labels)):
        same = len({label.shape for label in labels}) == 1
        labels = torch.stack(list(labels)) if same else labels
    try:
        targets = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        what = type(labels).__name__
        if isinstance(labels, (list, tuple)) and labels:
            what += f" of {type(labels[0]).__name__}"
        raise ConfigurationError(
            f"expected integer class indices of shape ({count},), got a {what}: {one_line(error)}",
            "names of classes have to become their indices, in the order of the model's outputs",
        ) from None
    shape = tuple(targets.shape)
    if targets.ndim == 0:
        raise _unusable(inputs, f"one label beside inputs of shape {tuple(inputs.shape)}", "give batches")
    if len(targets) != count:
        raise _unusable(inputs, f"{_name(targets)} of shape {shape}", "one label an image")
    if targets.ndim == 2 and shape[1] == 1:
        note("labels of shape (N, 1) were taken as (N,)")
        targets = targets[:, 0]
    if targets.ndim > 1:
        return _from_one_hot(targets, inputs, note)
    if targets.is_complex():
        raise _unusable(inputs, f"{_name(targets)} of shape {shape}")
    if targets.is_floating_point():
        if not bool((targets == targets.round()).all()):  # NaN is not
            found = targets[targets != targets.round()][0].item()
            raise _unusable(inputs, f"{_name(targets)} of shape {shape}, e.g. {found:g}")
        note(f"labels of type {_name(targets)} hold whole numbers, and were taken as class indices")
    return targets.to(torch.int64)


def _from_one_hot(targets: Tensor, inputs: Tensor, note: Note) -> Tensor:
    shape = tuple(targets.shape)
    hint = "other targets than class indices need a score of your own (tune_score)"
    if targets.ndim > 2 or targets.is_complex():
        raise _unusable(inputs, f"{_name(targets)} of shape {shape}", hint)
    ones = (targets == 1).sum(1)
    if bool((ones == 1).all()) and bool(((targets == 0).sum(1) == shape[1] - 1).all()):
        note("one-hot labels were taken as class indices")
        return targets.to(torch.int64).argmax(1)
    if bool(((targets == 0) | (targets == 1)).all()):
        raise _unusable(inputs, f"labels of shape {shape} with several classes an image, or none", hint)
    if bool((targets >= 0).all()) and bool(((targets.sum(1) - 1).abs() < 1e-3).all()):
        raise _unusable(
            inputs,
            f"soft labels of shape {shape}",
            "turn mixup, CutMix and label smoothing off for evaluation",
        )
    raise _unusable(inputs, f"{_name(targets)} of shape {shape}", hint)


def _unusable(inputs: Tensor, got: str, hint: str = "") -> ConfigurationError:
    count = len(inputs) if inputs.ndim else 0
    return ConfigurationError(f"expected integer class indices of shape ({count},), got {got}", hint)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_mapping(item: Any) -> bool:
    return isinstance(item, Mapping) or (hasattr(item, "keys") and hasattr(item, "__getitem__"))


def _pick(item: Any, keys: tuple[str, ...], what: str) -> Any:
    """The one entry of a mapping that goes by one of these names."""
    found = [key for key in item.keys() if key in keys]  # noqa: SIM118  not everything with keys iterates over them
    if len(found) == 1:
        return item[found[0]]
    has = ", ".join(map(repr, item.keys()))
    if found:
        raise ConfigurationError(
            f"a batch holds several entries that could be the {what}: {', '.join(map(repr, found))}",
            "let the loader yield (inputs, targets)",
        )
    raise ConfigurationError(
        f"expected a batch to hold its {what} as one of {', '.join(keys)}, got a mapping of {has}",
        "rename the entry, or let the loader yield (inputs, targets)",
    )


def _is_example(part: Any) -> bool:
    """Whether this is one example of a list of them: (image, label), or a mapping."""
    if _is_mapping(part):  # and not the inputs, or the targets, of a pair
        keys = set(part.keys())
        return not keys.isdisjoint(INPUT_KEYS) and not keys.isdisjoint(TARGET_KEYS)
    return isinstance(part, (tuple, list)) and len(part) >= 2 and _is_scalar(part[1])


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float, str, np.generic)) or (torch.is_tensor(value) and value.ndim == 0)


def _is_batch(item: Any) -> bool:
    """Whether what a dataset gives is a batch already, as ``webdataset``'s ``batched()`` makes them."""
    try:
        inputs, targets = split_item(item)
    except ConfigurationError:
        return False
    counts = [len(part) for part in (inputs, targets) if hasattr(part, "__len__") and np.ndim(part) > 0]
    return len(counts) == 2 and counts[0] == counts[1] and not isinstance(targets, str)


def _examples(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return iter(dataset)
    return (dataset[index] for index in range(len(dataset)))
