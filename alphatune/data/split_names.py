"""The names that the splits of a data set go by."""

from __future__ import annotations

from collections.abc import Collection

from alphatune.core.errors import ConfigurationError

_SPLIT_NAMES = (("validation", "val", "valid", "eval", "evaluation"), ("train", "training"))
ALL_SPLITS = {"test", "testing", *(name for names in _SPLIT_NAMES for name in names)}


def synonyms(split: str) -> tuple[str, ...]:
    """The names a split goes by."""
    return next((names for names in _SPLIT_NAMES if split in names), (split,))


def choose_split(shown: str, names: Collection[str], split: str | None) -> str:
    """Which of these splits is meant, by default the validation split; "" where there are none.

    Raises:
        ConfigurationError: there is no such split, or none was named and there are only others.
    """
    wanted = split or "validation"
    if found := next((name for name in (wanted, *synonyms(wanted)) if name in names), None):
        return found
    others = ", ".join(sorted(names))
    if split is not None:
        hint = f"it has: {others}" if others else "leave out `split`"
        raise ConfigurationError(f"{shown} has no split {split!r}", hint)
    if others:
        raise ConfigurationError(
            f"{shown} holds the splits {others} and no validation split", "choose one by `split`"
        )
    return ""
