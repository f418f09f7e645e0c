"""Tables of Hugging Face's ``datasets`` with a column of images and one of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError, one_line
from alphatune.core.suggestions import did_you_mean
from alphatune.data.array_labels import to_targets
from alphatune.data.examples import Examples
from alphatune.data.label_columns import CLASS_HEADINGS, plain_heading

#: how columns of images are called; in lower case, without separators
IMAGE_HEADINGS = {
    "image", "images", "img", "imgs", "picture", "pictures", "photo", "pixelvalues", "imagebytes", "imgbytes", "bytes",
    "input", "x", "jpg", "jpeg", "png", "webp",
}  # fmt: skip


class TableLoad:
    """Read images out of a column of encoded images; ``part`` says which rows of its files the table is."""

    encoded = True

    def __init__(self, table: Any, column: str, part: str = "") -> None:
        self._table, self._column, self.part = table, column, part

    def __call__(self, index: int) -> tuple[Any, str]:
        image = self._table[index][self._column]
        if image is None or not (image["bytes"] or image["path"]):
            raise DataError(f"there is no image in row {index}")
        return image["bytes"] or image["path"], f"row {index}"

    def files(self, indices: np.ndarray) -> list[str] | None:
        """The tables, and the files of images that are not in them."""
        tables = [str(file["filename"]) for file in self._table.cache_files]
        return tables + self._outside(indices) if tables else None

    def _outside(self, indices: np.ndarray) -> list[str]:
        import pyarrow.compute as arrow  # type: ignore[import-untyped]

        column = self._table.data.column(self._column)
        inside = arrow.is_valid(arrow.struct_field(column, "bytes")).to_numpy()
        if inside.all():
            return []
        paths = arrow.struct_field(column, "path").to_pylist()
        return [paths[i] for i in indices if not inside[i] and paths[i]]


def examples_of_table(
    table: Any,
    text: str,
    root: str,
    split: str,
    input_key: str | None,
    target_key: str | None,
    *,
    mapped: bool = False,
    labelled: bool = True,
) -> Examples:
    """The examples in the rows of a table.

    Args:
        table: a ``datasets.Dataset``.
        text: what the data are called.
        input_key, target_key: columns of images and labels; a label may lie in a column of objects: ``info.label``.
        mapped: whether a class map will say which output each label is.
        labelled: whether labels matter; without, every target is 0 where there are none.

    Raises:
        ConfigurationError: no such column, or several that may be meant.
        DataError: rows without a label or with several, or a column that holds something else.
    """
    if len(table) == 0:
        raise DataError(f"{text}{_of(split)} holds no examples")
    images = _image_column(table, text, input_key)
    encoded = _encoded_images(table, images, text)
    targets = np.zeros(len(table), dtype=np.int64)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    labels = ""
    try:
        targets, classes, notes, labels = _labels(table, images, text, split, target_key, mapped)
    except AlphatuneError:
        if labelled:
            raise
    said = [f"images by column {images!r}"] if input_key is None and images != "image" else []
    said += [f"labels by column {labels!r}"] if target_key is None and labels not in ("label", "") else []
    return Examples(
        source=text,
        root=root,
        split=split,
        classes=classes,
        targets=targets,
        indices=np.arange(len(table)),
        load=TableLoad(encoded, images, split),
        numbered_by_name=bool(classes),
        warnings=(*([f"{text}: {', '.join(said)}"] if said else []), *notes),
    )


def _of(split: str) -> str:
    return f" (split {split!r})" if split else ""


def _labels(
    table: Any, images: str, text: str, split: str, wanted: str | None, mapped: bool
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...], str]:
    rows = table.with_format(None).remove_columns([images])
    if wanted is not None and wanted not in table.column_names and wanted in rows.flatten().column_names:
        rows = rows.flatten()
    elif wanted is not None:
        _require(rows if wanted == images else table, wanted, "labels", text)
    column = wanted or _label_column(table, images, text)
    feature = rows.features[column]
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None) or ()
    found = rows.select_columns([column])[:][column]
    targets, classes, notes = to_targets(
        list(found), f"{text}{_of(split)}, column {column!r}", names, mapped=mapped, where="row {}".format
    )
    return targets, classes, notes, column


def _require(table: Any, wanted: str, what: str, text: str) -> None:
    if wanted not in table.column_names:
        raise ConfigurationError(
            f"{text} has no column of {what} called {wanted}; it has {', '.join(table.column_names)}",
            did_you_mean(wanted, table.column_names, "`input_key` and `target_key` name the columns"),
        )


def _image_column(table: Any, text: str, wanted: str | None) -> str:
    """The column that was named, or the only one of images, or of encoded bytes, or by a known name."""
    import datasets  # type: ignore[import-untyped]

    if wanted is not None:
        _require(table, wanted, "images", text)
        return wanted
    images = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    packed = [name for name, feature in table.features.items() if _is_packed(feature)]
    if "image" in images + packed:
        return "image"
    among = images or packed or [name for name in table.column_names if _is_called(name, IMAGE_HEADINGS)]
    if not among:
        raise ConfigurationError(
            f"{text} has no column of images; it has {', '.join(table.column_names)}",
            "`input_key` and `target_key` name the columns",
        )
    return _only(among, IMAGE_HEADINGS, "images", text, "`input_key`")


def _is_packed(feature: Any) -> bool:
    """Whether cells may be files of images: bytes, or an object of bytes and path."""
    if isinstance(feature, dict):
        return "bytes" in feature and feature.keys() <= {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(table: Any, images: str, text: str) -> str:
    """The only column by a known name, or of classes."""
    import datasets

    others = [name for name in table.column_names if name != images]
    if "label" in others:
        return "label"
    typed = [name for name in others if isinstance(table.features[name], datasets.ClassLabel)]
    known = [name for name in others if _is_called(name, CLASS_HEADINGS)]
    among = [name for name in known if name in typed] or known or typed
    if not among:
        raise ConfigurationError(
            f"{text} has no column of labels; it has {', '.join(table.column_names)}",
            "`input_key` and `target_key` name the columns",
        )
    return _only(among, CLASS_HEADINGS, "labels", text, "`target_key`")


def _only(among: Sequence[str], headings: set[str], what: str, text: str, option: str) -> str:
    named = [name for name in among if _is_called(name, headings)] if len(among) > 1 else among
    if len(named) != 1:
        raise ConfigurationError(
            f"which column of {text} holds the {what}? There is {', '.join(map(repr, named or among))}",
            f"{option} names it",
        )
    return named[0]


def _is_called(name: str, headings: set[str]) -> bool:
    return plain_heading(name) in headings


def _encoded_images(table: Any, column: str, text: str) -> Any:
    """The column of images alone, not decoded."""
    import datasets

    alone = table.with_format(None).select_columns([column])
    feature = alone.features[column]
    refused = DataError(
        f"column {column!r} of {text} holds no encoded images but {_kind(feature)}",
        "images are files of an image format: bytes, paths, or objects of both",
    )
    if not (
        isinstance(feature, datasets.Image)
        or _is_packed(feature)
        or getattr(feature, "dtype", "") == "string"
    ):
        raise refused
    try:
        return alone.cast_column(column, datasets.Image(decode=False))
    except MemoryError:
        raise
    except Exception as error:  # arrow has errors of its own
        raise DataError(f"{refused.message}: {one_line(error)}", refused.hint) from None


def _kind(feature: Any) -> str:
    return one_line(getattr(feature, "dtype", None) or type(feature).__name__, 60)
