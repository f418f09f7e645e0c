"""Open a dataset string: torch/..., hfds/..., hfids/..., tfds/... or wds/...; what timm reads in order is a stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError, one_line
from alphatune.core.extras import install_line
from alphatune.data.examples import Examples, FileLoad, Load
from alphatune.data.hub_tables import open_hub_table
from alphatune.data.shards import is_remote, locate
from alphatune.data.silenced import silenced
from alphatune.data.web_samples import open_web_samples

#: what a dataset string starts with; anything else is a folder or archive
PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


def open_dataset_string(
    text: str,
    split: str | None,
    data_root: str | None,
    image_mode: str,
    *,
    download: bool = False,
    mapped: bool = False,
    labelled: bool = True,
    input_key: str | None = None,
    target_key: str | None = None,
) -> Examples:
    """The examples of one split, by default the validation split.

    Args:
        mapped: whether a class map will say which output each label is.
        labelled: whether labels matter.

    Raises:
        ConfigurationError: no such split, column or key, or a package is missing.
        DataError: unreadable, or labels that are none.
    """
    prefix = text.partition("/")[0].lower()
    keys: dict[str, Any] = {"input_key": input_key, "target_key": target_key}
    if prefix == "hfds":
        return open_hub_table(text, split, data_root, **keys, mapped=mapped, labelled=labelled)
    if prefix == "wds" and not is_remote(location := locate(text, data_root)):
        return open_web_samples(text, location, split, **keys, mapped=mapped, labelled=labelled)
    return _open_by_timm(text, prefix, split or "validation", data_root, image_mode, download, keys)


def _open_by_timm(
    text: str,
    prefix: str,
    split: str,
    data_root: str | None,
    image_mode: str,
    download: bool,
    keys: dict[str, Any],
) -> Examples:
    root = data_root
    if prefix == "wds":
        root = locate(text, data_root)
    if prefix in ("torch", "tfds") and root is None:
        raise ConfigurationError(f"{text} needs to know where the data lie", "add `data_root=FOLDER`")
    try:
        with silenced():
            dataset = create_dataset(
                text,
                root=root,
                split=split,
                # others hand out what read_image converts
                input_img_mode=image_mode if prefix == "tfds" else "",
                download=download,
                **keys,
            )
    except ImportError as error:
        raise ConfigurationError(
            f"{prefix}/ data need the package {error.name or prefix}", install_line(prefix)
        ) from None
    except AlphatuneError:
        raise
    except Exception as error:  # each back-end has errors of its own
        hint = "shards at an address need _info.json, or a pattern, such as `split=a-{000..009}.tar`"
        raise DataError(
            f"cannot open {text} (split {split!r}): {one_line(error)}", hint if prefix == "wds" else ""
        ) from None
    origin = _Origin(text, root or "", split)
    if prefix == "torch":
        if isinstance(dataset, ImageFolder):  # timm looks for the split's subfolder, and may find none
            folder = str(dataset.root)
            origin = _Origin(text, folder, split if folder != root else "")
        return _torchvision_examples(dataset, origin)
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(reader, "dist_num_replicas"):
        # Each of several processes reads everything and takes its part of it: timm would first leave
        # it every so many shards, or repeat some.
        reader.dist_rank, reader.dist_num_replicas = 0, 1
    return _streamed_examples(dataset, origin)


class _Origin(NamedTuple):
    """What data were asked for."""

    source: str
    root: str
    split: str


def _torchvision_examples(dataset: Any, origin: _Origin) -> Examples:
    targets = getattr(dataset, "targets", None)
    if targets is None:  # INaturalist keeps (class, file) pairs
        targets = [target for target, _ in dataset.index]
    labels = np.asarray(targets, dtype=np.int64)
    if labels.ndim == 2:  # QMNIST: the class, and seven columns of provenance
        labels = labels[:, 0]
    classes = tuple(str(c) for c in getattr(dataset, "classes", ()))
    if isinstance(dataset, ImageFolder):
        return _indexed(origin, classes, labels, FileLoad([path for path, _ in dataset.samples]))
    return _indexed(origin, classes, labels, _TorchvisionLoad(dataset))


def _indexed(origin: _Origin, classes: tuple[str, ...], targets: np.ndarray, load: Load) -> Examples:
    if len(targets) == 0:
        raise DataError(f"{origin.source} (split {origin.split!r}) holds no examples")
    return Examples(
        **origin._asdict(), classes=classes, targets=targets, indices=np.arange(len(targets)), load=load
    )


class _TorchvisionLoad:
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, index: int) -> tuple[Any, str]:
        return self._dataset[index][0], f"example {index}"


def _streamed_examples(dataset: Any, origin: _Origin) -> Examples:
    """A source without random access: one pass to learn the labels and their number."""
    stream = _Stream(dataset)
    targets = np.asarray([target for _, target in stream()], dtype=np.int64)
    if len(targets) == 0:
        raise DataError(f"{origin.source} (split {origin.split!r}) holds no examples")
    return Examples(
        **origin._asdict(),
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
