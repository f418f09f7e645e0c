"""A data set that Hugging Face's ``save_to_disk`` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError, one_line
from alphatune.core.extras import install_line
from alphatune.data.examples import Examples
from alphatune.data.image_tables import examples_of_table
from alphatune.data.silenced import silenced
from alphatune.data.split_names import choose_split


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
    **how: Any,
) -> Examples:
    """The examples of one split.

    Args:
        how: whether they are ``mapped`` and ``labelled``, as in ``examples_of_table``.

    Raises:
        ConfigurationError: no such split or column, or the package datasets is missing.
        DataError: unreadable, or labels that are none.
    """
    name = choose_split(text, [split for split in splits if split], split)
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(f"{text} needs the package datasets", install_line("hfds")) from None
    try:
        with silenced():
            table = datasets.load_from_disk(str(folder / name if name else folder))
            return examples_of_table(table, text, text, name, input_key, target_key, **how)
    except (AlphatuneError, MemoryError):
        raise
    except Exception as error:  # arrow and datasets have errors of their own
        raise DataError(f"cannot read {text}: {one_line(error)}") from None
