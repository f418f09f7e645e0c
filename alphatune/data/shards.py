"""Which tars are the shards of a WebDataset: by a pattern, by ``_info.json``, or those that lie in a folder."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphatune.core.errors import ConfigurationError, DataError, one_line
from alphatune.core.extras import install_line
from alphatune.core.suggestions import did_you_mean_path
from alphatune.data.compressed import compression
from alphatune.data.inventory import natural_key
from alphatune.data.split_names import ALL_SPLITS, choose_split

#: what says where the shards of each split are, and how many samples they hold
_INFO = ("_info.json", "info.json")
_PATTERN = re.compile(r"[{*?\[]|::")
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:(?!:)")


@dataclass(frozen=True)
class Shards:
    """The shards of a split, in order; ``samples`` and ``label_field`` (of JSON) where ``_info.json`` gives them."""

    paths: tuple[Path, ...]
    split: str = ""
    samples: int | None = None
    label_field: str = ""


def is_remote(location: str) -> bool:
    """Whether shards are read from an address (``https:``, ``pipe:``, ...) and not from a file."""
    return bool(_ADDRESS.match(location)) and not location.lower().startswith("file:")


def is_pattern(location: str) -> bool:
    """Whether it stands for several files."""
    return bool(_PATTERN.search(location)) and not is_remote(location) and not Path(location).exists()


def absolute_pattern(location: str) -> str:
    """The pattern as it holds from any folder."""
    return "::".join(str(Path(part).absolute()) for part in location.split("::"))


def locate(text: str, data_root: str | None) -> str:
    """The folder, file, pattern or address that ``wds/...`` names; below ``data_root`` if there is one."""
    name = text.partition("/")[2]
    if name.lower().startswith("file:"):
        name = re.sub("^file:(//)?", "", name, flags=re.IGNORECASE)
    if data_root is None or is_remote(name) or Path(name).is_absolute():
        return name
    below = f"{data_root.rstrip('/')}/{name}"
    if is_remote(data_root) or not name:  # as timm reads it
        return data_root
    return below if _PATTERN.search(name) or Path(below).exists() else data_root


def shard_splits(location: str) -> list[str]:
    """The names of the splits in a folder of shards; none where there is one set of shards alone."""
    folder = Path(location)
    if not folder.is_dir():
        return []
    return [name for name in _read_info(folder) or _by_name(folder) if name]


def find_shards(location: str, split: str | None) -> Shards:
    """The shards of a split.

    Args:
        location: a folder, a shard, or a pattern: ``a-{000..009}.tar``, ``a-*.tar``, ``a.tar::b.tar``.
        split: by any of its names; or a pattern within the folder, and behind ``|`` how many samples it holds.

    Raises:
        ConfigurationError: no such split.
        DataError: there are no shards, or not all of them.
    """
    folder = Path(location)
    if folder.is_dir() and split is not None and (".tar" in split or ".." in split):
        pattern, _, count = split.partition("|")
        named = "::".join(f"{location.rstrip('/')}/{part}" for part in pattern.split("::"))
        return Shards(_expanded(named), pattern, int(count) if count.isdecimal() else None)
    if not folder.is_dir():
        if split is not None:
            raise ConfigurationError(f"{location} has no splits", "leave out `split`")
        return Shards(_expanded(location))
    if info := _read_info(folder):
        chosen = choose_split(location, info, split)
        return _of_info(folder, chosen, info[chosen])
    found = _by_name(folder)
    if not found:
        raise DataError(f"there are no shards in {location}", "shards are .tar files")
    if split is None and "" in found and len(found) > 1:
        raise ConfigurationError(
            f"{location} holds shards of the splits {', '.join(filter(None, found))}, and others: "
            f"{found[''][0].name}",
            "a pattern names those that are meant",
        )
    chosen = choose_split(location, [name for name in found if name], split)
    return Shards(tuple(found[chosen]), chosen)


def _expanded(location: str) -> tuple[Path, ...]:
    """The files that a pattern names, in its order; each must be there, and once."""
    paths: list[Path] = []
    for part in [location] if Path(location).exists() else location.split("::"):
        for name in [part] if Path(part).exists() else _braces(part):
            if Path(name).exists() or not re.search(r"[*?\[]", name):
                paths.append(Path(name))
                continue
            base, pattern = Path(name).anchor, str(Path(name).relative_to(Path(name).anchor))
            found = [path for path in Path(base).glob(pattern) if not path.name.startswith(".")]
            paths += sorted(found, key=lambda path: natural_key(str(path)))
    if not paths:
        raise DataError(f"no shard is called {location}", did_you_mean_path(_folder_of(location)))
    _require_files(paths, location)
    return tuple(paths)


def _braces(text: str) -> list[str]:
    """``a{0..2}`` and ``a{x,y}`` written out, as shells do."""
    try:
        import braceexpand
    except ImportError:
        if "{" not in text:
            return [text]
        raise ConfigurationError(
            "patterns in braces need the package braceexpand", install_line("wds")
        ) from None
    try:
        return list(braceexpand.braceexpand(text))
    except ValueError as error:
        raise ConfigurationError(f"cannot read the pattern {text}: {one_line(error)}") from None


def _folder_of(pattern: str) -> str:
    """The path before the first part of it that is a pattern."""
    before = _PATTERN.split(pattern)[0]
    return before.rpartition("/")[0] if before != pattern else pattern


def _require_files(paths: Sequence[Path], shown: str) -> None:
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"{len(missing)} of {len(paths)} shards of {shown} are not there, first {missing[0]}",
            did_you_mean_path(missing[0]),
        )
    if twice := [path for path, times in Counter(map(Path.resolve, paths)).items() if times > 1]:
        raise DataError(f"{shown} names {twice[0]} twice", "every example must count once")


def _read_info(folder: Path) -> dict[str, Any]:
    """The splits that ``_info.json`` lists; none where there is no such file."""
    file = next((folder / name for name in _INFO if (folder / name).is_file()), None)
    if file is None:
        return {}
    try:
        splits = json.loads(file.read_text("utf-8"))["splits"]
        return {str(name): split for name, split in splits.items() if split["filenames"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"cannot read {file}: {type(error).__name__}: {one_line(error)}",
            "without it the shards are listed and counted",
        ) from None


def _of_info(folder: Path, split: str, info: dict[str, Any]) -> Shards:
    files, count = [str(name) for name in info["filenames"]], info.get("num_samples")
    paths = [folder / name for name in files]
    _require_files(paths, f"{folder} (split {split!r})")
    samples = count if isinstance(count, int) and count > 0 else None
    return Shards(tuple(paths), split, samples, str(info.get("alt_label") or ""))


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """The shards of a folder by the split that is a word of their names, or of the folders they lie in."""
    found: dict[str, list[Path]] = {}
    try:
        names = sorted(
            (p for p in folder.rglob("*") if _is_shard(p, folder)), key=lambda p: natural_key(str(p))
        )
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from None
    for path in names:
        words = re.split(r"[\W_\d]+", str(path.relative_to(folder)).lower())
        splits = [word for word in words if word in ALL_SPLITS]
        found.setdefault(splits[-1] if splits else "", []).append(path)
    return found


def _is_shard(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and (path.suffix.lower() == ".tar" or bool(compression(path))) and path.is_file()
