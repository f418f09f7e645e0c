"""WebDatasets in files: tars in which the members of a sample are neighbours of one name (00001.jpg, 00001.cls).

Only headers and labels are read beforehand; images by their place, in any order and by any process.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alphatune.core.errors import AlphatuneError, ConfigurationError, DataError, one_line
from alphatune.core.suggestions import did_you_mean
from alphatune.data.archives import Entry, list_members
from alphatune.data.array_labels import to_targets
from alphatune.data.compressed import DecompressedTar, compression
from alphatune.data.examples import Examples
from alphatune.data.image_formats import image_endings
from alphatune.data.label_columns import CLASS_HEADINGS, plain_heading
from alphatune.data.shards import find_shards

#: keys of labels, the likeliest first; .txt may be a caption
_LABELS = ("cls", "label", "class", "target")
_LAST = "txt"
#: 007 is a name to a class map
_PLAIN_NUMBER = re.compile("0|-?[1-9][0-9]{0,8}")


@dataclass(slots=True)
class _Sample:
    """The members of a sample by their keys; ``shard`` is a number."""

    shard: int
    name: str
    members: dict[str, Entry] = field(default_factory=dict)


class ShardLoad:
    """Read images by their place in the shards. ``keep`` are decompressed shards, which must outlive the images."""

    encoded = True

    def __init__(
        self, shards: Sequence[tuple[Path, Path]], images: Sequence[tuple[int, Entry]], keep: Any = None
    ) -> None:
        self._shown = [str(shown) for shown, _ in shards]
        self._paths = [str(path) for _, path in shards]
        self._names = np.array(
            [os.fsencode(entry.name) for _, entry in images]
        )  # blocks that forked workers share
        self._places = np.array([(shard, entry.start, entry.size) for shard, entry in images])
        self._keep = keep

    def __call__(self, index: int) -> tuple[Any, str]:
        shard, start, size = self._places[index].tolist()
        with Path(self._paths[shard]).open("rb") as file:
            file.seek(start)
            content = file.read(size)
        name = f"{Path(self._shown[shard]).name}/{os.fsdecode(self._names[index])}"
        if len(content) != size:
            raise DataError(f"{self._shown[shard]} is cut short: {name} is not all there")
        return content, name

    def files(self, indices: np.ndarray) -> list[str]:
        """The shards that hold these images."""
        return [self._shown[shard] for shard in np.unique(self._places[indices, 0])]

    def shares_shards(self, other: ShardLoad) -> bool:
        """Whether a shard is in both."""
        return not set(map(os.path.realpath, self._shown)).isdisjoint(map(os.path.realpath, other._shown))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_keep": None}


def open_web_samples(
    text: str,
    location: str,
    split: str | None,
    input_key: str | None,
    target_key: str | None,
    *,
    mapped: bool = False,
    labelled: bool = True,
) -> Examples:
    """The examples of one split, shard by shard.

    Args:
        text: what the data are called.
        location: a folder, a shard or a pattern of shards.
        input_key: key of the images, or several with ``;`` between: ``jpg;png``.
        target_key: key of the labels, or a field of the samples' JSON.
        mapped: whether a class map will say which output each label is.
        labelled: whether labels matter; without, every target is 0 where there are none.

    Raises:
        ConfigurationError: no such split or key, or several that may be meant.
        DataError: a damaged shard; a sample without an image or a label.
    """
    shards = find_shards(location, split)
    keep = [DecompressedTar(path) if compression(path) else None for path in shards.paths]
    files = [(path, packed.path if packed else path) for path, packed in zip(shards.paths, keep, strict=True)]
    samples, notes = _list_samples(files)
    if not samples:
        raise DataError(f"the {len(files)} shards of {text} hold no samples")
    if shards.samples not in (None, len(samples)):
        notes.append(
            f"{text} holds {len(samples)} samples, and its _info.json or pattern says {shards.samples}"
        )
    where = _Where(files, samples)
    images, said = _images(samples, where, text, input_key)
    targets = np.zeros(len(samples), dtype=np.int64)
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    try:
        labels, by = _labels(samples, where, text, target_key, shards.label_field)
        targets, classes, remarks = to_targets(labels, text, mapped=mapped, where=where)
        said += by
    except AlphatuneError:
        if labelled:
            raise
    return Examples(
        source=text,
        root=location,
        split=shards.split,
        classes=classes,
        targets=targets,
        indices=np.arange(len(samples)),
        load=ShardLoad(files, images, keep),
        numbered_by_name=bool(classes),
        warnings=(*notes, *([f"{text}: {', '.join(said)}"] if said else []), *remarks),
    )


class _Where:
    """What a sample is called: by its key and its shard."""

    def __init__(self, files: Sequence[tuple[Path, Path]], samples: Sequence[_Sample]) -> None:
        self._files, self._samples = files, samples

    def __call__(self, index: int) -> str:
        sample = self._samples[index]
        return f"{sample.name} in {self._files[sample.shard][0]}"

    def members(self, index: int) -> str:
        return f"{self(index)}, which has {', '.join(self._samples[index].members)}"

    def read(self, key: str) -> Iterator[bytes]:
        """The member of this key of each sample, a shard open at a time."""
        for shard, group in itertools.groupby(self._samples, key=lambda sample: sample.shard):
            with self._files[shard][1].open("rb") as file:
                for sample in group:
                    entry = sample.members[key]
                    file.seek(entry.start)
                    yield file.read(entry.size)


def _list_samples(files: Sequence[tuple[Path, Path]]) -> tuple[list[_Sample], list[str]]:
    """The samples of all shards by their headers; a name is one sample within a shard."""
    samples: list[_Sample] = []
    notes: list[str] = []
    for number, (shown, path) in enumerate(files):
        entries, said = list_members(path, str(shown))
        notes += said
        known: dict[str, _Sample] = {}
        for entry in entries:
            name, key = _split_name(entry.name)
            if entry.folder or entry.link is not None or not key:
                continue
            if name not in known:
                known[name] = _Sample(number, name)
                samples.append(known[name])
            if key in known[name].members:
                raise DataError(f"{shown} holds {entry.name} twice", "every example must count once")
            known[name].members[key] = entry
    return samples, notes


def _split_name(path: str) -> tuple[str, str]:
    """``("a/00001", "seg.png")`` of ``a/00001.seg.png``: a key begins at the first dot, and is in small letters."""
    folder, slash, name = path.rpartition("/")
    stem, dot, key = name.partition(".")
    if not dot or not stem or stem.startswith("__"):  # hidden, or about the shard
        return "", ""
    return f"{folder}{slash}{stem}", key.lower()


# --- images ----------------------------------------------------------------------------------


def _images(
    samples: Sequence[_Sample], where: _Where, text: str, wanted: str | None
) -> tuple[list[tuple[int, Entry]], list[str]]:
    """The image of each sample, and by which keys if those were guessed."""
    told = tuple(key.strip().lstrip(".").lower() for key in wanted.split(";")) if wanted else ()
    found: list[tuple[int, Entry]] = []
    keys: dict[str, None] = {}
    lacking: list[int] = []
    for index, sample in enumerate(samples):
        among = [key for key in told if key in sample.members][:1] if told else _image_keys(sample)
        if len(among) > 1:
            raise ConfigurationError(
                f"which member is the image of {where(index)}? There is {', '.join(among)}",
                "`input_key` names it",
            )
        if among:
            keys[among[0]] = None
            found.append((sample.shard, sample.members[among[0]]))
        else:
            lacking.append(index)
    if len(lacking) == len(samples) and told:
        there = list(dict.fromkeys(key for sample in samples for key in sample.members))
        raise ConfigurationError(
            f"{text} has no images of the key {wanted}; its keys are {', '.join(there)}",
            did_you_mean(told[0], there, "`input_key` and `target_key` name the keys"),
        )
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(samples)} samples of {text} have no image, first {where.members(lacking[0])}",
            "every sample needs one; `input_key` names its key",
        )
    usual = told or keys.keys() <= {"jpg", "jpeg", "png", "webp"}
    return found, [] if usual else [f"images by key {' or '.join(map(repr, keys))}"]


def _image_keys(sample: _Sample) -> list[str]:
    """The keys that are endings of images; of several those that are nothing else."""
    known = image_endings()
    among = [key for key in sample.members if f".{key.rpartition('.')[2]}" in known]
    return [key for key in among if "." not in key] or among


# --- labels ----------------------------------------------------------------------------------


def _labels(
    samples: Sequence[_Sample], where: _Where, text: str, wanted: str | None, of_info: str
) -> tuple[list[Any], list[str]]:
    """The label of each sample, and by what they were found if that was guessed."""
    there = list(dict.fromkeys(key for sample in samples for key in sample.members))
    name, field_name = (wanted or "").lstrip(".").lower(), wanted or of_info
    key = name if name in there else "json" if field_name and "json" in there else ""
    if not key and not field_name:
        key = next((key for key in _LABELS if key in there), "")
    if not key and not field_name and "json" in there:
        field_name = _label_field(list(_contents("json", samples, where, text)))
        key = "json" if field_name else ""
    if not key and not field_name and _LAST in there:
        key = _LAST
    if not key:
        called = f" of the key or field {field_name}" if field_name else ""
        raise ConfigurationError(
            f"{text} has no labels{called}; its keys are {', '.join(there)}",
            did_you_mean(
                field_name,
                there,
                "`input_key` and `target_key` name the keys; a tar of class folders is read without wds/",
            ),
        )
    found = list(_contents(key, samples, where, text))
    if key == "json" and name != "json":
        said = [] if wanted else [f"labels by field {field_name!r} of json"]
        return _of_field(found, field_name, where), said
    if all(isinstance(label, str) and _PLAIN_NUMBER.fullmatch(label) for label in found):
        found = [int(label) for label in found]
    return found, [] if wanted or key == "cls" else [f"labels by key {key!r}"]


def _contents(key: str, samples: Sequence[_Sample], where: _Where, text: str) -> Iterator[Any]:
    """What the member of this key says in each sample, which must have one."""
    lacking = [index for index, sample in enumerate(samples) if key not in sample.members]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(samples)} samples of {text} have no label ({key}), first {where.members(lacking[0])}",
            "every sample needs one; `target_key` names its key",
        )
    for index, content in enumerate(where.read(key)):
        yield _decoded(content, key, index, where)


def _decoded(content: bytes, key: str, index: int, where: Callable[[int], str]) -> Any:
    """JSON as it is; any other text without what surrounds it."""
    try:
        text = content.decode("utf-8-sig").strip()
        if "\0" in text:
            raise ValueError("it holds zero bytes and is no text")
        return json.loads(text) if key.rpartition(".")[2] == "json" else text
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read the label ({key}) of {where(index)}: {one_line(error)}") from None


def _label_field(found: Sequence[Any]) -> str:
    """The field of JSON that is called "label", or the only one by a known name; "" where there is none."""
    fields = list(dict.fromkeys(name for value in found if isinstance(value, dict) for name in value))
    among = [name for name in fields if plain_heading(name) in CLASS_HEADINGS]
    if len(among) > 1 and "label" not in among:
        raise ConfigurationError(
            f"which field of json holds the labels? There is {', '.join(map(repr, among))}",
            "`target_key` names it",
        )
    return "label" if "label" in among else "".join(among)


def _of_field(found: Sequence[Any], name: str, where: Callable[[int], str]) -> list[Any]:
    """The field of each object; null where it is null."""
    values, lacking = [], []
    for index, value in enumerate(found):
        for part in [name] if isinstance(value, dict) and name in value else name.split("."):
            if not isinstance(value, dict) or part not in value:
                lacking.append(index)
                break
            value = value[part]
        else:
            values.append(value)
    if len(lacking) == len(found):
        there = [str(key) for key in found[0]] if isinstance(found[0], dict) else []
        raise ConfigurationError(
            f"there are no labels of the key or field {name}; the fields of json are {', '.join(there) or 'none'}",
            did_you_mean(name, there, "`target_key` names it"),
        )
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(found)} samples have no field {name} in their json, first {where(lacking[0])}",
            "every sample needs one",
        )
    return values
