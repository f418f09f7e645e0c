"""Open a folder, an archive, arrays, a timm dataset string or a dataset by name as examples.

timm's ``ImageDataset`` is not used, because it replaces an image that it cannot
read by the next one. Here an unreadable image stops the run and is named.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from alphatune.core.errors import ConfigurationError
from alphatune.data.bit_depth import depth_warning
from alphatune.data.class_map import apply_class_map
from alphatune.data.examples import Examples
from alphatune.data.folders import open_path
from alphatune.data.label_files import is_manifest, open_labelled, open_manifest
from alphatune.data.named_datasets import NAMES, is_named, named_split, open_named
from alphatune.data.timm_datasets import PREFIXES, open_dataset_string


def open_data(
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    data_root: str | None = None,
    class_map: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
    image_mode: str = "RGB",
    input_key: str | None = None,
    target_key: str | None = None,
    download: bool = False,
    split_seed: int = 0,
) -> Examples:
    """Open DATA: class folders, an archive of them, arrays, a file that names images, a timm dataset string, or a name.

    Args:
        data: path, or ``torch/NAME``, ``hfds/NAME``, ``wds/PATH``, ..., or with ``data_root``
            a name of ``named_datasets``, which is split as for training.
        split: split or subfolder; by default the validation split, and a folder
            without one is read itself unless it holds other splits.
        data_root: where named, ``torch/``, ``tfds/`` and ``wds/`` data lie; cache of ``hfds/``.
        class_map: file that says which output each class name is (``class_map_file``).
        labels: file that says the class of each image of a folder or archive without class folders.
        path_column, label_column: columns of ``labels``, or of a file that names images itself.
        labelled: whether labels matter; without, images outside class folders are taken, too, as of class 0.
        image_mode: ``RGB`` or ``L``.
        input_key, target_key: names of images and labels in arrays, tables, ``hfds/`` and ``wds/`` data.
        split_seed: decides which examples a dataset by name holds out.
        download: fetch a dataset by name, or a ``torch/`` one, that is not there yet.

    Raises:
        DataError: missing, empty or unreadable; a class folder the map does not name; labels that do not fit.
        ConfigurationError: an unknown dataset name, split or column.
    """
    text = os.fspath(data)
    columns: dict[str, Any] = {
        "path_column": path_column,
        "label_column": label_column,
        "mapped": class_map is not None,
    }
    named = opens_by_name(text, data_root) or is_dataset_string(text)
    if (labels is not None and (named or is_manifest(text))) or (
        labels is None and not is_manifest(text) and (path_column or label_column) is not None
    ):
        raise ConfigurationError(
            f"labels from a file do not go with {text}",
            "`labels=FILE` is for a folder or an archive; `path_column` and `label_column` for such a file; "
            "`input_key` and `target_key` name columns of other data",
        )
    if opens_by_name(text, data_root):
        examples = named_split(
            open_named(text, data_root, seed=split_seed, download=download), split or "validation"
        )
    elif is_dataset_string(text):
        examples = open_dataset_string(
            text,
            split,
            data_root,
            image_mode,
            download=download,
            mapped=class_map is not None,
            labelled=labelled,
            input_key=input_key,
            target_key=target_key,
        )
    elif labels is not None:
        examples = open_labelled(text, os.fspath(labels), split, **columns)
    elif is_manifest(text):
        if split is not None:
            raise ConfigurationError(f"{text} has no splits", "leave out `split`")
        examples = open_manifest(text, data_root, labelled=labelled, **columns)
    else:
        mapped = class_map is not None
        examples = open_path(text, split, NAMES, input_key, target_key, labelled=labelled, mapped=mapped)
    if class_map is not None:
        examples = apply_class_map(examples, os.fspath(class_map))
    return replace(examples, warnings=(*examples.warnings, *depth_warning(examples)))


def is_dataset_string(data: str) -> bool:
    """Whether DATA is a timm dataset string, and no path that looks like one."""
    prefix, slash, _ = data.partition("/")
    return bool(slash) and prefix.lower() in PREFIXES and not Path(data).exists()


def opens_by_name(data: str, data_root: str | None) -> bool:
    """Whether DATA is the name of a dataset: a path of that name is one only without ``data_root``."""
    return is_named(data) and (data_root is not None or not Path(data).exists())
