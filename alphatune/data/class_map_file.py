"""Read a class map in the forms that people keep it in; which one it is, its content says."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphatune.core.errors import DataError, one_line
from alphatune.data.tables import Pairs, Table, is_whole, nfc, parse_json, read_text, separated

#: the names of one output, the first being the one that is shown
Names = tuple[str, ...]
#: what is said of an output: where, its number, its names
_Row = tuple[str, int, Names]

_SYNSET = re.compile(r"(n[0-9]{8})(?:\s*[\s,;]\s*)(\S.*)")
#: keys of larger files under which the classes are: Hugging Face's config.json, YOLO's data.yaml, timm's config.json
_WITHIN = ("id2label", "names", "class_to_idx", "label_names", "label2id", "classes")
_INDEX = {
    "index", "idx", "id", "class_id", "class_index", "class_idx", "label", "label_id", "number", "output", "target",
}  # fmt: skip
_HEADINGS = {"name", "names", "class", "classes", "class_name", "classname", "label", "labels", "category"}
_FORMS = "one name a line in the order of the outputs, or index,name, or JSON or YAML that says as much"


def read_class_map(path: str | os.PathLike[str]) -> tuple[Names, ...]:
    """The names of each output, in order.

    One name a line; ``synset words``; index and name, or name and index, between
    commas, tabs, semicolons or spaces, with a header or without; a JSON or YAML list, or
    mapping from index to name or from name to index, or a file that holds one under ``names``,
    ``id2label`` or the like. An entry that is itself a list gives several names.

    Raises:
        DataError: it cannot be read; an index or name that comes twice, or an index left out.
    """
    text = read_text(path, "the class map")
    if not text.strip():
        raise DataError(f"the class map {path} is empty")
    name = f"the class map {path}"
    rows = _structured(text, name, Path(path).suffix.lower())
    if rows is None:
        rows = _table(text, name)
    return _in_order(rows if rows is not None else _lines(text, name), name)


def _in_order(rows: Sequence[_Row], name: str) -> tuple[Names, ...]:
    """The names by index; every index from 0 must be there once, and every first name."""
    by_index: dict[int, tuple[str, Names]] = {}
    seen: dict[str, str] = {}
    for place, index, given in rows:
        names = tuple(nfc(n.strip()) for n in given)
        if not names or not names[0]:
            raise DataError(f"{place} of {name} is empty: every line is a class")
        if names[0] in seen:
            raise DataError(
                f"{place} of {name} repeats {names[0]!r} of {seen[names[0]]}: which output is it?"
            )
        if index in by_index:
            raise DataError(f"{place} of {name} repeats the index {index} of {by_index[index][0]}")
        seen[names[0]], by_index[index] = place, (place, tuple(dict.fromkeys(filter(None, names))))
    if not by_index:
        raise DataError(f"{name} is empty")
    for expected, index in enumerate(sorted(by_index)):
        if index != expected:
            raise DataError(
                f"{name} has no index {expected}: after it comes {index} ({by_index[index][0]})",
                f"the indices of {len(by_index)} outputs run from 0 to {len(by_index) - 1}",
            )
    return tuple(by_index[index][1] for index in range(len(by_index)))


def _choose(readings: Sequence[list[_Row]], name: str) -> list[_Row]:
    """The one reading in which the indices are those of outputs; the first, with its fault, where none is."""
    fit = [r for r in readings if sorted(index for _, index, _ in r) == list(range(len(r)))]
    if any(sorted(r, key=lambda row: row[1]) != sorted(fit[0], key=lambda row: row[1]) for r in fit[1:]):
        raise DataError(
            f"{name} holds two numbers for each class, and either could be the output",
            "give the names alone, one a line, in the order of the outputs",
        )
    return (fit or readings)[0]


# --- JSON and YAML ---------------------------------------------------------------------------


def _structured(text: str, name: str, ending: str) -> list[_Row] | None:
    """The rows of JSON or YAML; None if it is neither."""
    bare = text.strip()
    if ending == ".json" or (bare[0] + bare[-1] in ("{}", "[]") and ending not in (".yaml", ".yml")):
        try:
            value = parse_json(bare)
        except ValueError as error:
            if ending == ".json" or not _looks_like_yaml(bare):
                raise DataError(f"cannot read {name} as JSON: {error}") from None
        else:
            return _from_value(value, name, "entry {}")
    if ending in (".yaml", ".yml") or _looks_like_yaml(text):
        return _from_value(_yaml(text, name), name, "entry {}")
    return None


def _looks_like_yaml(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    if any(re.match(r"names\s*:(\s|$)", line) for line in lines) or text.startswith("---\n"):
        return True
    forms = (r"- ", r"[0-9]+\s*:\s", r".*\S\s*:\s+[0-9]+\s*$", r"[{\[]")
    return any(all(re.match(form, line) for line in lines) for form in forms)


def _yaml(text: str, name: str) -> Any:
    """YAML with every scalar as it is written, so that a class may be called no; mappings as ``Pairs``."""
    import yaml

    try:
        return _plain(yaml.compose(text, Loader=yaml.BaseLoader), name)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"cannot read {name} as YAML: {one_line(error)}") from None


def _plain(node: Any, name: str, depth: int = 0) -> Any:
    kind = getattr(node, "id", "")
    if kind == "scalar":
        return node.value
    if depth > 3:  # deeper than any class map, and an alias may hold itself
        return None
    if kind == "mapping":
        return Pairs((str(k.value), _plain(v, name, depth + 1)) for k, v in node.value)
    return [_plain(inner, name, depth + 1) for inner in node.value] if kind == "sequence" else None


def _from_value(value: Any, name: str, place: str) -> list[_Row]:
    if isinstance(value, Pairs):
        return _from_pairs(value, name, place)
    if isinstance(value, list):
        return [(place.format(i + 1), i, _names(entry, name)) for i, entry in enumerate(value)]
    raise DataError(f"{name} is no list or mapping of classes", _FORMS)


def _from_pairs(pairs: Pairs, name: str, place: str) -> list[_Row]:
    places = [place.format(repr(key)) for key, _ in pairs]
    held = [value for _, value in pairs]
    readings: list[list[_Row]] = []
    if all(is_whole(str(value)) for value in held):
        rows = zip(places, pairs, strict=True)
        readings.append([(p, int(str(value)), (key,)) for p, (key, value) in rows])
    if all(is_whole(key) for key, _ in pairs):
        rows = zip(places, pairs, strict=True)
        readings.append([(p, int(key), _names(value, name)) for p, (key, value) in rows])
    if readings and pairs:
        return _choose(readings, name)
    for key in _WITHIN:
        inner = next((value for k, value in pairs if k == key), None)
        if isinstance(inner, list):
            return _from_value(inner, name, place)
    strange = next((k for k, v in pairs if not is_whole(str(v))), "")
    raise DataError(f"{name} maps {strange!r} to no index of an output", _FORMS)


def _names(entry: Any, name: str) -> Names:
    """The name or names of one output."""
    entries = entry if isinstance(entry, list) and not isinstance(entry, Pairs) else [entry]
    if any(isinstance(e, bool) or not isinstance(e, (str, int)) for e in entries):
        raise DataError(f"{name} has an entry that is no name: {str(entry)[:60]}", _FORMS)
    return tuple(map(str, entries))


# --- lines -----------------------------------------------------------------------------------


def _table(text: str, name: str) -> list[_Row] | None:
    """The rows of a table one of whose columns is the index; None if it is none."""
    for delimiter in "\t,;":
        if delimiter not in text:
            continue
        try:
            table = separated(text, delimiter, name)
        except DataError:  # an apostrophe or quote of a name, in a list
            continue
        if len({len(row) for row in table.rows}) != 1 or len(table.rows[0]) < 2:
            continue
        header: tuple[str, ...] = ()
        if not _whole_columns(table):
            header = tuple(cell.lower().replace(" ", "_") for cell in table.rows[0])
            table = Table(table.rows[1:], table.where[1:])
        if columns := _whole_columns(table):
            named = [c for c in columns if header and header[c] in _INDEX]
            names = [c for c in range(len(table.rows[0])) if c not in columns]
            return _choose([_by_column(table, c, names) for c in (named or columns)], name)
    return None


def _whole_columns(table: Table) -> list[int]:
    if not table.rows:
        return []
    return [c for c in range(len(table.rows[0])) if all(is_whole(row[c]) for row in table.rows)]


def _by_column(table: Table, index: int, names: list[int]) -> list[_Row]:
    """The rows numbered by a column; first the first name that tells all of them apart."""
    others = names or [c for c in range(len(table.rows[0])) if c != index]
    unique = [c for c in others if len(set(table.column(c))) == len(table.rows)]
    first = (unique or others)[0]
    order = [first, *(c for c in others if c != first)]
    return [
        (place, int(row[index]), tuple(row[c] for c in order))
        for place, row in zip(table.where, table.rows, strict=True)
    ]


def _lines(text: str, name: str) -> list[_Row]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    places = [f"line {number}" for number in range(1, len(lines) + 1)]
    filled = [(place, line) for place, line in zip(places, lines, strict=True) if line]
    for form, index, label in ((r"([0-9]{1,9})\s+(\S.*)", 1, 2), (r"(.*\S)\s+([0-9]{1,9})", 2, 1)):
        found = [re.fullmatch(form, line) for _, line in filled]
        if not all(found):
            continue
        cells = [(p, int(m[index]), m[label]) for (p, _), m in zip(filled, found, strict=True) if m]
        if len({cell for *_, cell in cells}) > 1 or len(cells) == 1:  # else "class 0", "class 1", ...
            return [(p, i, _words(cell)) for p, i, cell in cells]
    if lines[0].lower() in _HEADINGS:
        raise DataError(
            f"line 1 of {name} is {lines[0]!r}, which looks like a heading",
            "take it out; a class of that name can be said in JSON",
        )
    synsets = all(_SYNSET.fullmatch(line) for line in lines)
    return [
        (p, i, _words(n) if synsets else (n,)) for i, (p, n) in enumerate(zip(places, lines, strict=True))
    ]


def _words(line: str) -> Names:
    """A synset and its words, as one name and one by one; of anything else the line."""
    found = _SYNSET.fullmatch(line)
    return (found[1], found[2], *re.split(r"\s*,\s*", found[2])) if found else (line,)
