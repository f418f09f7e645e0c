"""Open a folder, an archive or a timm dataset string as examples to evaluate.

timm's readers find the images; its ``ImageDataset`` is not used, because it
replaces an image that it cannot read by the next one. Here an unreadable image
stops the run and is named.
"""

from __future__ import annotations

import os
from pathlib import Path

from alphatune.data.class_map import apply_class_map
from alphatune.data.examples import Examples
from alphatune.data.folders import open_folder
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
) -> Examples:
    """Open DATA: a folder of class folders, a .tar of them, or a timm dataset string.

    Args:
        data: path, or ``torch/NAME``, ``hfds/NAME``, ``wds/PATH``, ...
        split: split or subfolder; by default the validation split, and a folder
            without one is read itself unless it holds other splits.
        data_root: where ``torch/``, ``tfds/`` and ``wds/`` data lie; cache of ``hfds/``.
        class_map: text file with one class name a line; its line is the label.
        image_mode: ``RGB`` or ``L``.
        input_key, target_key: columns of images and labels in ``hfds/`` and ``wds/`` data.

    Raises:
        DataError: missing, empty or unreadable; a class folder the map does not name.
        ConfigurationError: an unknown dataset name or split.
    """
    text = os.fspath(data)
    prefix = text.partition("/")[0].lower() if "/" in text else ""
    is_string = prefix in PREFIXES and not Path(text).exists()
    if is_string:
        examples = open_dataset_string(
            text,
            prefix,
            split or "validation",
            data_root,
            image_mode,
            input_key=input_key,
            target_key=target_key,
        )
    else:
        examples = open_folder(text, split)
    if class_map is not None:
        examples = apply_class_map(examples, os.fspath(class_map))
    return examples
