"""What lies in a folder or archive: which files are images, of which class, and what was passed over.

The class of an image is the top folder it lies in, however deep. The same
rules hold for folders and archives, which only differ in how names are found.
"""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alphatune.core.errors import DataError
from alphatune.data.image_formats import HEAD, ending_of, image_endings, looks_like_image

#: folders of programs and systems, in lower case; so is every one whose name begins with a dot
_JUNK_FOLDERS = {
    "__macosx", "@eadir", "__pycache__", "lost+found", "$recycle.bin", "#recycle", "system volume information",
}  # fmt: skip
_JUNK_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_UNREAD = "not read"
_NUMBER = re.compile(r"(\d+)")


@dataclass
class Inventory:
    """The files of a folder or archive, by their paths below it with ``/`` between folders."""

    shown: str  # what the folder or archive is called in messages
    images: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    unread: Counter[str] = field(default_factory=Counter)  # files by ending
    hidden_files: list[str] = field(default_factory=list)
    hidden_folders: list[str] = field(default_factory=list)
    circles: list[str] = field(default_factory=list)  # links to a folder they lie in
    used: set[str] = field(default_factory=set)  # folders with files that are no images

    def add_unread(self, folder: str, kind: str) -> None:
        """Count a file that is no image."""
        self.unread[kind] += 1
        self.used.add(folder)

    def notes(self) -> tuple[str, ...]:
        """What was passed over, a line for each kind."""
        found = []
        if self.unread:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.unread.most_common())
            count = self.unread.total()
            found.append(f"{_count(count, 'file was', 'files were')} {_UNREAD}: {kinds}")
        for names, one, many in (
            (self.hidden_folders, "hidden folder was", "hidden folders were"),
            (self.hidden_files, "hidden file was", "hidden files were"),
            (self.circles, "link to a folder it lies in was", "links to folders they lie in were"),
        ):
            if names:
                found.append(f"{_count(len(names), one, many)} passed over: {_some(names)}")
        return tuple(f"{note} (in {self.shown})" for note in found)


def files_not_read(notes: Sequence[str]) -> str:
    """What the notes of an inventory say of files that are no images; "" for nothing. A class may lie among them."""
    return "; ".join(note for note in notes if f" {_UNREAD}: " in note)


@dataclass(frozen=True)
class Labelled:
    """The class of each image of an inventory."""

    top: str  # the folder that holds the class folders; often "", the root
    classes: tuple[str, ...]  # in natural order
    targets: np.ndarray  # (n,) int64, of the images in natural order
    notes: tuple[str, ...]  # what was passed over or assumed


def sort_images(inventory: Inventory) -> None:
    """Put the images in natural order.

    Raises:
        DataError: there are none.
    """
    if not inventory.images:
        hint = "; ".join(["expected class folders that hold images", *inventory.notes()])
        raise DataError(f"no images found in {inventory.shown}", hint)
    inventory.images.sort(key=natural_key)


def label_images(inventory: Inventory, *, labelled: bool = True) -> Labelled:
    """Sort the images of an inventory, and number their classes.

    An only folder without images of its own is gone into. A class folder that
    holds no file keeps its number; one that holds other files only is no class.

    Args:
        labelled: whether images outside class folders are refused; else all are of class 0, which has no name.

    Raises:
        DataError: no images, or images outside class folders.
    """
    sort_images(inventory)
    notes, images = list(inventory.notes()), inventory.images
    top = ""
    while True:
        names = [path[len(top) :].partition("/") for path in images]
        if not all(slash for _, slash, _ in names):
            if not labelled:
                return Labelled(top[:-1], (), np.zeros(len(images), np.int64), tuple(notes))
            raise DataError(
                f"{inventory.shown} holds images outside class folders",
                "expected FOLDER/CLASS/image.jpg; `labels=FILE` reads the classes from a file",
            )
        folders = _first_of(inventory.folders, top)
        if len(folders) > 1 or not all("/" in rest for _, _, rest in names):
            break
        top += f"{names[0][0]}/"
    labels = [name for name, _, _ in names]
    present = set(labels)
    empty = folders - present - _first_of({f"{folder}/" for folder in inventory.used}, top)
    classes = tuple(sorted(present | empty, key=natural_key))
    if top:
        notes.append(f"the class folders are those in {top[:-1]} (in {inventory.shown})")
    if empty:
        what = _count(
            len(empty), "class folder is empty and keeps its", "class folders are empty and keep their"
        )
        notes.append(f"{what} number: {_some(sorted(empty))} (in {inventory.shown})")
    if others := sorted(folders - present - empty):
        what = _count(
            len(others), "folder holds no images and is no class", "folders hold no images and are no classes"
        )
        notes.append(f"{what}: {_some(others)} (in {inventory.shown})")
    alike = Counter(_folded(name) for name in classes)
    if twins := [name for name in classes if alike[_folded(name)] > 1]:
        notes.append(
            f"class folders differ in case or in the form of Unicode only: {_some(twins)} (in {inventory.shown})"
        )
    index = {name: number for number, name in enumerate(classes)}
    targets = np.fromiter((index[label] for label in labels), np.int64, len(labels))
    return Labelled(top[:-1], classes, targets, tuple(notes))


def list_folder(root: str, shown: str = "") -> Inventory:
    """Walk a folder and all below it, links followed.

    Raises:
        DataError: a folder or file in it that cannot be read.
    """
    inventory = Inventory(shown or root)
    known, images = image_endings(), inventory.images
    for folder, files in walk(root, inventory):
        for entry in files:
            name = entry.name
            path = folder + name
            if is_hidden_file(name):
                inventory.hidden_files.append(path)
            elif not (plain := _leads_to(entry.is_file)) and not entry.is_symlink():
                inventory.add_unread(folder[:-1], "no plain file")
            elif ending_of(name) in known:
                images.append(path)  # a link that leads nowhere is named when it is read
            elif not plain:
                inventory.add_unread(folder[:-1], "broken link")
            elif _sniff(entry.path):
                images.append(path)
            else:
                inventory.add_unread(folder[:-1], ending_of(name) or "no ending")
    return inventory


def holds_images(root: str) -> bool:
    """Whether there is a file with an image's ending anywhere below a folder."""
    return any(
        ending_of(entry.name) in image_endings() and not is_hidden_file(entry.name)
        for _, files in walk(root)
        for entry in files
    )


def walk(root: str, inventory: Inventory | None = None) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Each folder below a root that is not hidden, ``""`` first, else ending in ``/``; and its files.

    Raises:
        DataError: a folder that cannot be read.
    """
    inventory = inventory or Inventory(root)
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        folder, above = waiting.pop()
        path = f"{root}/{folder}"
        try:
            status = Path(path).stat()
            if (here := (status.st_dev, status.st_ino)) in above:
                inventory.circles.append(folder[:-1])
                continue
            if folder:
                inventory.folders.add(folder[:-1])
            files = []
            with os.scandir(path) as entries:
                for entry in entries:
                    if not _leads_to(entry.is_dir):
                        files.append(entry)
                    elif is_hidden_folder(entry.name):
                        inventory.hidden_folders.append(folder + entry.name)
                    else:
                        waiting.append((f"{folder}{entry.name}/", above | {here}))
        except OSError as error:
            raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
        yield folder, files


def is_hidden_folder(name: str) -> bool:
    """Whether a folder of this name is a program's or the system's own."""
    return name.startswith(".") or name.lower() in _JUNK_FOLDERS


def is_hidden_file(name: str) -> bool:
    """Whether a file of this name is a program's or the system's own."""
    return name.startswith(".") or name.lower() in _JUNK_FILES


def natural_key(text: str) -> tuple[list[str | int], str]:
    """What to sort texts by so that 2 comes before 10; upper and lower case alike, unless all else is."""
    parts: list[str | int] = list(_NUMBER.split(text.lower()))
    parts[1::2] = [int(part[:4000]) for part in parts[1::2]]  # type: ignore[index]
    return parts, text


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _first_of(paths: set[str], top: str) -> set[str]:
    """The first folder of each path below ``top``, which is empty or ends in ``/``."""
    return {path[len(top) :].partition("/")[0] for path in paths if path.startswith(top)} - {""}


def _leads_to(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def _sniff(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123, faster, and this may be every second file
            head = file.read(HEAD)
        return looks_like_image(head, lambda: Path(path).open("rb"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
