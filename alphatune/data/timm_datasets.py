"""Open a timm dataset string: torch/..., hfds/..., hfids/..., tfds/... or wds/..."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

from alphatune.data.examples import Examples, FileLoad, Load, ReaderLoad
from alphatune.errors import AlphatuneError, ConfigurationError, DataError, one_line

#: what a dataset string starts with; anything else is a folder or archive
PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


def open_dataset_string(
    text: str,
    prefix: str,
    split: str,
    data_root: str | None,
    image_mode: str,
    *,
    download: bool = False,
    **keys: str | None,
) -> Examples:
    name = text.partition("/")[2]
    root = data_root
    if prefix == "wds" and root is None:
        root = name
    if prefix in ("torch", "tfds") and root is None:
        raise ConfigurationError(f"{text} needs to know where the data lie", "add --data-root FOLDER")
    try:
        dataset = create_dataset(
            text,
            root=root,
            split=split,
            input_img_mode=image_mode if prefix == "tfds" else "",  # others hand out what read_image converts
            download=download,
            **keys,
        )
    except ImportError as error:
        raise ConfigurationError(
            f"{prefix}/ data need the package {error.name or prefix}", f'pip install "alphatune[{prefix}]"'
        ) from None
    except AlphatuneError:
        raise
    except Exception as error:  # each back-end has errors of its own
        raise DataError(f"cannot open {text} (split {split!r}): {one_line(error)}") from None
    common: dict[str, Any] = {"source": text, "root": root or "", "split": split}
    if prefix == "torch":
        if isinstance(dataset, ImageFolder):  # timm looks for the split's subfolder, and may find none
            folder = str(dataset.root)
            common |= {"root": folder, "split": split if folder != root else ""}
        return _torchvision_examples(dataset, common)
    if prefix == "hfds":
        targets = np.asarray(_targets_of(dataset.reader), dtype=np.int64)
        load: Load = ReaderLoad(dataset.reader)
        classes = _class_names(dataset.reader.class_to_idx)
        return _indexed(common, classes, targets, load)
    return _streamed_examples(dataset, common)


def _targets_of(reader: Any) -> list[Any]:
    """The labels that timm's reader of Hugging Face's datasets gives, without reading an image."""
    if hasattr(reader, "iter_targets"):  # from timm 1.0.31
        return list(reader.iter_targets())
    labels = reader.dataset[reader.label_key]
    return [reader.class_to_idx[label] for label in labels] if reader.remap_class else list(labels)


def _torchvision_examples(dataset: Any, common: dict[str, Any]) -> Examples:
    targets = getattr(dataset, "targets", None)
    if targets is None:  # INaturalist keeps (class, file) pairs
        targets = [target for target, _ in dataset.index]
    labels = np.asarray(targets, dtype=np.int64)
    if labels.ndim == 2:  # QMNIST: the class, and seven columns of provenance
        labels = labels[:, 0]
    classes = tuple(str(c) for c in getattr(dataset, "classes", ()))
    if isinstance(dataset, ImageFolder):
        return _indexed(common, classes, labels, FileLoad([path for path, _ in dataset.samples]))
    return _indexed(common, classes, labels, _TorchvisionLoad(dataset))


def _indexed(common: dict[str, Any], classes: tuple[str, ...], targets: np.ndarray, load: Load) -> Examples:
    if len(targets) == 0:
        raise DataError(f"{common['source']} (split {common['split']!r}) holds no examples")
    return Examples(**common, classes=classes, targets=targets, indices=np.arange(len(targets)), load=load)


class _TorchvisionLoad:
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, index: int) -> tuple[Any, str]:
        return self._dataset[index][0], f"example {index}"


def _streamed_examples(dataset: Any, common: dict[str, Any]) -> Examples:
    """A source without random access: one pass to learn the labels and their number."""
    stream = _Stream(dataset)
    targets = np.asarray([target for _, target in stream()], dtype=np.int64)
    if len(targets) == 0:
        raise DataError(f"{common['source']} (split {common['split']!r}) holds no examples")
    return Examples(
        **common,
        classes=_class_names(getattr(dataset.reader, "class_to_idx", {})),
        targets=targets,
        indices=np.arange(len(targets)),
        load=None,
        stream=stream,
    )


class _Stream:
    """Iterate over a dataset from its beginning; an unreadable example is an error."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self) -> Iterator[Any]:
        done = 0
        with _no_skipping(lambda: f"unreadable example after {done} others"):
            for example in self._dataset:
                done += 1
                yield example


def _class_names(class_to_idx: dict[str, int]) -> tuple[str, ...]:
    return tuple(str(c) for c in sorted(class_to_idx, key=class_to_idx.__getitem__))


@contextmanager
def _no_skipping(where: Callable[[], str]) -> Iterator[None]:
    """Turn timm's "ignoring this broken sample" log line into the error it is."""

    class Refuse(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Ignoring" in record.getMessage():
                raise DataError(f"{where()}: {one_line(record.getMessage())}")

    logger, handler = logging.getLogger("timm.data.readers"), Refuse(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
