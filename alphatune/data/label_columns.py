"""Which columns of a table of labels hold the images and the classes: found by content, or as told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.core.suggestions import did_you_mean
from alphatune.data.tables import Table, is_whole

#: how headings call what an image is found by, and its class; in lower case, without separators
_PATHS = {
    "path", "filepath", "file", "filename", "fname", "image", "imagepath", "imagefile", "imagename", "imageid",
    "img", "imgpath", "imgid", "imgname", "id", "name", "key", "url", "uri", "stem",
}  # fmt: skip
CLASS_HEADINGS = {
    "label", "labels", "class", "classes", "cls", "classname", "classid", "classindex", "category", "categoryid",
    "categoryname", "target", "targets", "y", "labelname", "labelid", "wnid", "synset", "dx", "diagnosis",
    "species", "breed", "finelabel", "predictionstring", "groundtruth", "gt", "annotation",
}  # fmt: skip

#: the images that a cell may mean, by number or path; empty: none
Find = Callable[[str], Sequence[object]]


@dataclass(frozen=True)
class Columns:
    """Images and labels of each row; no image where a row is a label alone, no label where it is an image alone."""

    images: list[str] | None
    labels: list[str] | None
    where: tuple[str, ...]
    remark: str


def choose_columns(
    tables: Sequence[Table],
    find: Find,
    name: str,
    path_column: str | None,
    label_column: str | None,
    *,
    labelled: bool = True,
    begin: str = "in the data",
) -> Columns:
    """The columns of the first way to cut lines into cells in which one names images.

    Args:
        find: the images that a cell may mean.
        path_column, label_column: heading, or number from 1, where the columns are known.
        labelled: whether a column of labels is wanted.
        begin: where paths begin, for the message.

    Raises:
        ConfigurationError: more than one column may be meant, or there is no such column.
        DataError: no column names images.
    """
    best: tuple[int, int, Table] | None = None  # how many images are named, the column, and by which cut
    for table in tables:
        told = _find_column(_headings(table), path_column, name) if path_column is not None else None
        count, column = _path_column(table, find, told)
        if count > (best[0] if best else 0) or (told is not None and best is None):
            best = count, column, table
    alone = len(tables[0].rows[0]) == 1 and path_column is None
    if alone and labelled and 2 * (best[0] if best else 0) <= len(tables[0].rows):
        return _labels_alone(tables[0], name)
    if best is None:
        raise DataError(
            f"no column of {name} names images {begin}: {tables[0].where[0]} is {_shown(tables[0].rows[0])}",
            "paths are relative; of the images of a folder, with `labels`, they may lack folders and the ending",
        )
    _, path, table = best
    if path_column is None:
        _refuse_coincidence(table, path, find, name)
    width = len(table.rows[0])
    header = table.header
    if header is None and _is_header(table, path, find, path_column, label_column):
        header, table = table.rows[0], Table(table.rows[1:], table.where[1:], table.rows[0])
    if not table.rows:
        raise DataError(f"{name} hold a heading and nothing else")
    named = header or tuple(str(number) for number in range(1, width + 1))
    label = None
    if label_column is not None:
        label = _find_column(named, label_column, name)
    elif width > 1 and labelled:
        label = _label_column(table, path, header, named, name)
    remark = f"images by column {named[path]!r}"
    remark += "" if label is None else f", labels by column {named[label]!r}"
    labels = None if label is None else table.column(label)
    return Columns(table.column(path), labels, table.where, remark)


def _headings(table: Table) -> tuple[str, ...]:
    return table.header or table.rows[0]


def _find_column(named: Sequence[str], wanted: str, name: str) -> int:
    if wanted in named:
        return list(named).index(wanted)
    if is_whole(wanted) and 1 <= int(wanted) <= len(named):
        return int(wanted) - 1
    raise ConfigurationError(
        f"{name} have no column {wanted!r}: {_shown(named)}",
        did_you_mean(wanted, named, f"or its number, from 1 to {len(named)}"),
    )


def _path_column(table: Table, find: Find, told: int | None) -> tuple[int, int]:
    """How many different images the best column names, and which it is.

    Of columns that name equally many, the one whose heading says so, or whose cells are written as paths: the
    label 0 is also the name of ``0.png`` without its ending.
    """
    ranks = []
    for number in range(len(table.rows[0])) if told is None else [told]:
        cells = table.column(number)
        found = {tuple(f) for cell in cells if (f := find(cell))}
        called = plain_heading(_headings(table)[number]) in _PATHS
        ranks.append((len(found), called, sum("/" in cell or "." in cell for cell in cells), -number))
    count, *_, number = max(ranks)
    return count, -number


def _refuse_coincidence(table: Table, path: int, find: Find, name: str) -> None:
    """Refuse words that are names of images where another column holds paths, of images that are elsewhere.

    The label 0 is the name of ``0.png`` without its ending: /data/x/0.png would become the class of images/0.png.
    """
    if any(map(_is_path, table.column(path))) or plain_heading(_headings(table)[path]) in _PATHS:
        return
    for other in range(len(table.rows[0])):
        cells = [cell for cell in table.column(other)[1:] or table.column(other) if cell]
        if other != path and cells and all(_is_path(cell) and find(_file_name(cell)) for cell in cells):
            raise ConfigurationError(
                f"which column of {name} names the images? {_shown(cells[:1])} is written as a path, but no image in "
                f"the data has it; {_shown([cell for cell in table.column(path) if find(cell)][:1])} is the name of one",
                "`path_column=NAME` says it",
            )


def _is_path(cell: str) -> bool:
    return "/" in cell or "\\" in cell or PurePosixPath(cell).suffix[1:].isalpha()


def _file_name(cell: str) -> str:
    return PurePosixPath(cell.replace("\\", "/")).name


def _is_header(
    table: Table, path: int, find: Find, path_column: str | None, label_column: str | None
) -> bool:
    """Whether the first row names the columns: it names no image, and is called as headings are or as was told."""
    first = table.rows[0]
    if any(told in first for told in (path_column, label_column) if told and not is_whole(told)):
        return True
    return not find(first[path]) and any(plain_heading(cell) in _PATHS | CLASS_HEADINGS for cell in first)


def _label_column(
    table: Table, path: int, header: Sequence[str] | None, named: Sequence[str], name: str
) -> int:
    others = [c for c in range(len(named)) if c != path and any(table.column(c))]
    if header is not None and len(others) > 1:
        others = [c for c in others if plain_heading(header[c]) in CLASS_HEADINGS] or others
    if header is None and len(others) > 1:  # a class beside the numbers of a box
        others = [c for c in others if not all(map(is_whole, table.column(c)))] or others
    if len(others) == 1:
        return others[0]
    which = _shown([named[c] for c in others]) if others else f"none but {named[path]!r}"
    raise ConfigurationError(
        f"which column of {name} holds the labels? There is {which}", "`label_column=NAME` says it"
    )


def _labels_alone(table: Table, name: str) -> Columns:
    if table.header is not None:
        raise DataError(f"{name} have one column, {table.header[0]!r}, and it names no images of the data")
    return Columns(None, table.column(0), table.where, "one label a line")


def first_of_boxes(labels: Sequence[str], where: Sequence[str], name: str) -> list[str] | None:
    """The classes of labels that are all "class x y w h", once or several times; None if they are not.

    Raises:
        DataError: boxes of several classes in one image.
    """
    found = []
    for place, label in zip(where, labels, strict=True):
        words = label.split()
        if len(words) < 5 or len(words) % 5 or not all(map(_is_number, words[1:5])):
            return None
        classes = set(words[::5])
        if len(classes) > 1:
            raise DataError(f"{place} of {name} has boxes of several classes: {_shown(sorted(classes))}")
        found.append(words[0])
    return found


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).isdecimal()


def plain_heading(heading: str) -> str:
    """A heading in lower case, without separators."""
    return "".join(c for c in heading.lower() if c.isalnum())


def _shown(cells: Sequence[str]) -> str:
    return ", ".join(map(repr, cells[:6])) + (", ..." if len(cells) > 6 else "")
