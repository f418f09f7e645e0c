"""A data set that Hugging Face's ``save_to_disk`` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from alphatune.data.array_labels import to_targets
from alphatune.data.examples import Examples
from alphatune.data.split_names import choose_split
from alphatune.errors import ConfigurationError, DataError, one_line

_IMAGES = ("image", "img", "images", "picture", "pixel_values", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", "target", "class", "cls", "category", "y")


class TableLoad:
    """Read images out of a column of encoded images."""

    encoded = True

    def __init__(self, table: Any, column: str) -> None:
        self._table, self._column = table, column

    def __call__(self, index: int) -> tuple[Any, str]:
        image = self._table[index][self._column]
        if image is None:
            raise DataError("there is no image in this row")
        return image["bytes"] or image["path"], f"row {index}"

    def files(self, _: np.ndarray) -> list[str] | None:
        """The tables."""
        return [str(file["filename"]) for file in self._table.cache_files] or None


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of such a data set, [""] where it has none; None if the folder is something else."""
    if (folder / "dataset_dict.json").is_file():
        try:
            return [
                str(name) for name in json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"cannot read {folder / 'dataset_dict.json'}: {one_line(error)}") from None
    return [""] if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file() else None


def open_saved(
    folder: Path,
    text: str,
    splits: list[str],
    split: str | None,
    input_key: str | None,
    target_key: str | None,
) -> Examples:
    """The examples of one split.

    Raises:
        ConfigurationError: no such split or column, or the package datasets is missing.
        DataError: unreadable.
    """
    name = choose_split(text, [split for split in splits if split], split)
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(
            f"{text} needs the package datasets", 'pip install "alphatune[hfds]"'
        ) from None
    try:
        table = datasets.load_from_disk(str(folder / name if name else folder))
        images = _column(table, text, input_key, _IMAGES, datasets.Image)
        labels = _column(table, text, target_key, _LABELS, datasets.ClassLabel)
        names = getattr(table.features[labels], "names", None) or ()
        found = table.with_format(None).select_columns([labels])[:][labels]
        table = (
            table.with_format(None).select_columns([images]).cast_column(images, datasets.Image(decode=False))
        )
    except (ConfigurationError, MemoryError):
        raise
    except Exception as error:  # arrow and datasets have errors of their own
        raise DataError(f"cannot read {text}: {one_line(error)}") from None
    if any(label is None for label in found):
        raise DataError(f"{sum(label is None for label in found)} rows of {text} have no {labels}")
    targets, classes, notes = to_targets(found, text, names)
    if len(targets) == 0:
        raise DataError(f"{text} holds no examples")
    return Examples(
        source=text,
        root=text,
        split=name,
        classes=classes,
        targets=targets,
        indices=np.arange(len(targets)),
        load=TableLoad(table, images),
        warnings=notes,
    )


def _column(table: Any, text: str, wanted: str | None, known: tuple[str, ...], kind: type) -> str:
    """The column that was named, or the first by a known name, or the only one of a kind."""
    if wanted is not None and wanted in table.column_names:
        return wanted
    typed: list[str] = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    if wanted is None:
        among = typed if known is _IMAGES else table.column_names
        if found := next((name for name in known if name in among), None):
            return found
        if len(typed) == 1:
            return typed[0]
    what = "images" if known is _IMAGES else "labels"
    raise ConfigurationError(
        f"{text} has no column of {what}{f' called {wanted}' if wanted else ''}; it has {', '.join(table.column_names)}",
        "--input-key and --target-key name the columns",
    )
