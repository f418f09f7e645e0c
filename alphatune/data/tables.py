"""Lists and tables that people keep in files: of text, JSON, JSON lines or parquet. Every cell is text."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphatune.core.errors import ConfigurationError, DataError, one_line

#: numbers of classes; longer ones are names of something
_WHOLE = re.compile(r"[0-9]{1,9}")
_SCALARS = (str, int, float, type(None))


class Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written, a key that comes twice included."""


@dataclass(frozen=True)
class Table:
    """Rows of cells, and where each comes from ("line 3"); ``header`` where the form gives one."""

    rows: tuple[tuple[str, ...], ...]
    where: tuple[str, ...]
    header: tuple[str, ...] | None = None

    def column(self, number: int) -> list[str]:
        return [row[number] for row in self.rows]


def nfc(text: str) -> str:
    """The composed Unicode form: é is one character, however it was typed."""
    return unicodedata.normalize("NFC", text)


def is_whole(text: str) -> bool:
    """Whether it is a number from 0 in plain digits."""
    return _WHOLE.fullmatch(text) is not None


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """The text of a file in UTF-8 or (with its mark) UTF-16; lines end in a line feed.

    Args:
        what: the file is called, "the class map" for example.
    """
    try:
        raw = Path(path).read_bytes()
        marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16" if marked else "utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {what} {path}: {one_line(error)}") from None
    if "\0" in text:
        raise DataError(f"cannot read {what} {path}: it holds zero bytes and is no text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:
    """What JSON says, objects as ``Pairs``; raises ValueError."""
    try:
        return json.loads(text, object_pairs_hook=Pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def separated(text: str, delimiter: str, name: str) -> Table:
    """Cells between delimiters, quoted or not; blank lines are left out. Rows may have other lengths.

    Raises:
        DataError: quotes that are not closed.
    """
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    rows, where, line = [], [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(tuple(cell.strip() for cell in cells))
                where.append(f"line {line}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"cannot read line {line} of {name}: {error}") from None
    return Table(tuple(rows), tuple(where))


def read_tables(path: str | os.PathLike[str]) -> list[Table]:
    """The rows of a file of labels, once for each way in which its lines can be cut into cells.

    Raises:
        DataError: it cannot be read, is empty, or has rows of several lengths.
        ConfigurationError: parquet without a library that reads it.
    """
    name, ending = f"the labels {path}", Path(path).suffix.lower()
    if ending in (".parquet", ".pq"):
        return [_parquet(path)]
    text = read_text(path, "the labels")
    if not text.strip():
        raise DataError(f"{name} are empty")
    if text.lstrip()[0] in "{[" or ending in (".json", ".jsonl", ".ndjson"):
        return [_json(text, name, by_line=ending in (".jsonl", ".ndjson"))]
    by_line = [(f"line {i}", line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    cut = [separated(text, d, name) for d in "\t,;" if all(d in line for _, line in by_line)]
    tables = [table for table in cut if len({len(row) for row in table.rows}) == 1]
    if cut and not tables:
        _of_one_length(cut[0], name)  # which says where it is not
    if all(len(line.split(None, 1)) == 2 for _, line in by_line):
        for rows in (
            [line.split(None, 1) for _, line in by_line],
            [line.rsplit(None, 1) for _, line in by_line],
        ):
            tables.append(Table(tuple(map(tuple, rows)), _places(by_line)))
    return tables or [Table(tuple((line,) for _, line in by_line), _places(by_line))]


def _places(rows: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    return tuple(place for place, _ in rows)


def _of_one_length(table: Table, name: str) -> Table:
    length = len(table.rows[0])
    for place, row in zip(table.where, table.rows, strict=True):
        if len(row) != length:
            raise DataError(
                f"{place} of {name} has {len(row)} columns, {table.where[0]} has {length}",
                "a cell that holds the separator itself is put in double quotes",
            )
    return table


def _json(text: str, name: str, *, by_line: bool) -> Table:
    try:
        value = None if by_line else parse_json(text)
    except ValueError as error:
        value, problem = None, error
        by_line = text.lstrip().startswith("{")
        if not by_line:
            raise DataError(f"cannot read {name}: {problem}") from None
    if not by_line:
        return _from_value(value, name)
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values.append((f"line {number}", parse_json(line)))
            except ValueError as error:
                raise DataError(f"cannot read line {number} of {name}: {error}") from None
    return _from_rows(values, name)


def _from_value(value: Any, name: str) -> Table:
    """A list of rows, an object of path and label, or of label and paths, or one that holds such a list."""
    if isinstance(value, Pairs) and value:
        held = [inner for _, inner in value]
        pairs: list[Any] = []
        if all(isinstance(inner, _SCALARS) for inner in held):
            pairs = [[key, inner] for key, inner in value]
        elif all(isinstance(inner, list) and all(isinstance(p, str) for p in inner) for inner in held):
            pairs = [[path, key] for key, inner in value for path in inner]
        value = pairs or dict(value).get("labels", dict(value).get("data"))
    if not isinstance(value, list) or isinstance(value, Pairs) or not value:
        raise DataError(f"{name} hold no list of paths and labels")
    return _from_rows([(f"entry {i}", row) for i, row in enumerate(value, 1)], name)


def _from_rows(rows: list[tuple[str, Any]], name: str) -> Table:
    for place, row in rows:
        if isinstance(row, Pairs) and len({key for key, _ in row}) < len(row):
            raise DataError(f"{place} of {name} has the same key twice")
    if all(isinstance(row, Pairs) for _, row in rows):
        keys = dict.fromkeys(key for _, row in rows for key, _ in row)
        objects = [dict(row) for _, row in rows]
        kept = tuple(k for k in keys if all(isinstance(o.get(k), _SCALARS) for o in objects))
        cells = tuple(tuple(_text(o.get(k)) for k in kept) for o in objects)
        return Table(cells, _places(rows), kept)
    if all(isinstance(r, _SCALARS) for _, r in rows):
        return Table(tuple((_text(r),) for _, r in rows), _places(rows))
    for place, row in rows:
        if (
            not isinstance(row, list)
            or isinstance(row, Pairs)
            or not all(isinstance(c, _SCALARS) for c in row)
        ):
            raise DataError(f"{place} of {name} is no row of texts and numbers like those before it")
    return _of_one_length(Table(tuple(tuple(_text(c) for c in r) for _, r in rows), _places(rows)), name)


def _parquet(path: str | os.PathLike[str]) -> Table:
    import pandas

    try:
        frame = pandas.read_parquet(path)
    except ImportError:
        raise ConfigurationError(f"{path} needs the package pyarrow", "pip install pyarrow") from None
    except Exception as error:  # pyarrow has errors of its own
        raise DataError(f"cannot read the labels {path}: {one_line(error)}") from None
    columns = {str(name): frame[name].tolist() for name in frame.columns}
    kept = {k: v for k, v in columns.items() if all(isinstance(cell, _SCALARS) for cell in v)}
    rows = tuple(tuple(map(_text, row)) for row in zip(*kept.values(), strict=True))
    if not rows:
        raise DataError(f"the labels {path} are empty")
    return Table(rows, tuple(f"row {i}" for i in range(1, len(rows) + 1)), tuple(kept))


def _text(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and value != value)
    return "" if missing else str(value).strip()
