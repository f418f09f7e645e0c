"""Open a folder, an archive, arrays, a timm dataset string or a dataset by name as examples.

timm's ``ImageDataset`` is not used, because it replaces an image that it cannot
read by the next one. Here an unreadable image stops the run and is named.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from alphatune.data.bit_depth import depth_warning
from alphatune.data.class_map import apply_class_map
from alphatune.data.examples import Examples
from alphatune.data.folders import open_path
from alphatune.data.named_datasets import NAMES, is_named, named_split, open_named
from alphatune.data.timm_datasets import PREFIXES, open_dataset_string


def open_data(
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    data_root: str | None = None,
    class_map: str | os.PathLike[str] | None = None,
    image_mode: str = "RGB",
    input_key: str | None = None,
    target_key: str | None = None,
    download: bool = False,
    split_seed: int = 0,
) -> Examples:
    """Open DATA: a folder or archive of class folders, arrays, a timm dataset string, or a dataset by name.

    Args:
        data: path, or ``torch/NAME``, ``hfds/NAME``, ``wds/PATH``, ..., or with ``data_root``
            a name of ``named_datasets``, which is split as for training.
        split: split or subfolder; by default the validation split, and a folder
            without one is read itself unless it holds other splits.
        data_root: where named, ``torch/``, ``tfds/`` and ``wds/`` data lie; cache of ``hfds/``.
        class_map: text file with one class name a line; its line is the label.
        image_mode: ``RGB`` or ``L``.
        input_key, target_key: names of images and labels in arrays, tables, ``hfds/`` and ``wds/`` data.
        split_seed: decides which examples a dataset by name holds out.
        download: fetch a dataset by name, or a ``torch/`` one, that is not there yet.

    Raises:
        DataError: missing, empty or unreadable; a class folder the map does not name.
        ConfigurationError: an unknown dataset name or split.
    """
    text = os.fspath(data)
    if opens_by_name(text, data_root):
        examples = named_split(
            open_named(text, data_root, seed=split_seed, download=download), split or "validation"
        )
    elif is_dataset_string(text):
        examples = open_dataset_string(
            text,
            text.partition("/")[0].lower(),
            split or "validation",
            data_root,
            image_mode,
            download=download,
            input_key=input_key,
            target_key=target_key,
        )
    else:
        examples = open_path(text, split, NAMES, input_key, target_key)
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
