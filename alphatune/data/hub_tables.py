"""A data set of the Hugging Face hub, or a folder that ``datasets`` reads like one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError, one_line
from alphatune.core.extras import install_line
from alphatune.data.examples import Examples
from alphatune.data.image_tables import examples_of_table
from alphatune.data.saved_tables import open_saved, saved_splits
from alphatune.data.silenced import silenced
from alphatune.data.split_names import choose_split


def open_hub_table(
    text: str,
    split: str | None,
    cache: str | None,
    input_key: str | None,
    target_key: str | None,
    **how: Any,
) -> Examples:
    """The examples of one split.

    Args:
        text: ``hfds/NAME``; the name of a data set on the hub, or a folder.
        split: by any of its names, or a sum or slice as ``datasets`` writes them: ``train[:80%]``.
        cache: where tables are kept; by default where ``datasets`` keeps them.
        how: whether they are ``mapped`` and ``labelled``, as in ``examples_of_table``.

    Raises:
        ConfigurationError: no such split or column, or the package datasets is missing.
        DataError: unreadable, or labels that are none.
    """
    name = text.partition("/")[2]
    if (splits := saved_splits(Path(name))) is not None:
        return open_saved(Path(name), text, splits, split, input_key, target_key, **how)
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError("hfds/ data need the package datasets", install_line("hfds")) from None
    try:
        with silenced():
            builder = datasets.load_dataset_builder(name, cache_dir=cache)
            builder.download_and_prepare()
            chosen = _choose(text, list(builder.info.splits or ()), split)
            table = builder.as_dataset(split=chosen)
            return examples_of_table(table, text, cache or "", chosen, input_key, target_key, **how)
    except (AlphatuneError, MemoryError):
        raise
    except Exception as error:  # arrow, datasets and the network have errors of their own
        raise DataError(f"cannot open {text}: {one_line(error.__cause__ or error)}") from None


def _choose(text: str, names: Sequence[str], split: str | None) -> str:
    """The split as ``datasets`` writes it, each part by the name it has here."""
    if split is None or split == "all":
        return split or choose_split(text, names, None)
    parts = [part.strip().partition("[") for part in split.split("+")]
    return "+".join(choose_split(text, names, name) + bracket + rest for name, bracket, rest in parts)
