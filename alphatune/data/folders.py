"""Open what lies at a path: a folder of class folders, a tar or zip of them, arrays, or a saved data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.core.suggestions import did_you_mean, did_you_mean_path
from alphatune.data.archives import ArchiveLoad, list_tar, list_zip
from alphatune.data.arrays import ARRAY_FILES, find_arrays, find_batches, open_arrays
from alphatune.data.compressed import DecompressedTar, compression
from alphatune.data.examples import Examples, FileLoad, Load
from alphatune.data.inventory import (
    Inventory,
    Labelled,
    holds_images,
    is_hidden_folder,
    label_images,
    list_folder,
    sort_images,
)
from alphatune.data.saved_tables import open_saved, saved_splits
from alphatune.data.split_names import ALL_SPLITS, choose_split, synonyms

ARCHIVES = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip")


def open_path(
    text: str,
    split: str | None,
    datasets: Sequence[str] = (),
    input_key: str | None = None,
    target_key: str | None = None,
    *,
    labelled: bool = True,
    mapped: bool = False,
) -> Examples:
    """Open what lies at a path: class folders, an archive of them, arrays, or a data set that was saved.

    Args:
        text: where it is.
        split: subfolder or part, by any of the names a split goes by.
        datasets: names, one of which may have been meant where there is no such path.
        input_key, target_key: names of images and labels in arrays and tables.
        labelled: whether images outside class folders are refused; else every target is 0 where there are some.
        mapped: whether a class map will say which output each label is.
    """
    path = Path(text)
    if not path.exists():
        hint = did_you_mean(text, datasets) or did_you_mean_path(
            path, "a timm dataset string starts with torch/, hfds/, hfids/, tfds/ or wds/"
        )
        if text.rpartition(":")[0].endswith(".py"):
            hint = "a loader of your own goes with `score` of tune"
        raise DataError(f"no such folder, archive or dataset: {text}", hint)
    if (splits := saved_splits(path)) is not None:
        return open_saved(path, text, splits, split, input_key, target_key, mapped=mapped, labelled=labelled)
    if parts := find_arrays(path, input_key, target_key):
        return open_arrays(parts, text, split, mapped=mapped)
    if path.is_file():
        return _open_archive(path, text, split, labelled=labelled)
    return open_folder(text, split, labelled=labelled)


def open_folder(text: str, split: str | None, *, labelled: bool = True) -> Examples:
    """Open a folder of class folders, or of splits of such."""
    root = _split_folder(Path(text), split)
    inventory = _list_folder(root)
    found = label_images(inventory, labelled=labelled)
    if found.top and (splits := _splits_among(inventory, found)):
        raise ConfigurationError(
            f"{root} holds the splits {', '.join(splits)} in {found.top}", f"name {Path(root) / found.top}"
        )
    name = Path(root).name if root != text else ""
    return _examples(text, root, name, found, FileLoad(inventory.images, root))


def list_images(text: str) -> tuple[Inventory, Load, tuple[str, ...]]:
    """The images of a folder or an archive at any depth, in natural order; how to read them; warnings.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    path = Path(text)
    archive = None if path.is_dir() else _Archive(path, text)
    inventory = archive.inventory if archive else _list_folder(text)
    sort_images(inventory)
    return (
        inventory,
        archive.load() if archive else FileLoad(inventory.images, text),
        archive.notes if archive else (),
    )


def _list_folder(root: str) -> Inventory:
    if _has_tars_only(Path(root)):
        raise DataError(
            f"{root} holds .tar files but no images",
            f"name one archive of class folders; the shards of a WebDataset are wds/{root}",
        )
    return list_folder(root)


class _Archive:
    """A tar or zip: what is in it, and how to read it."""

    def __init__(self, path: Path, text: str) -> None:
        packed = compression(path)
        if not packed and path.suffix.lower() not in ARCHIVES:
            known = ", ".join((*ARCHIVES, *ARRAY_FILES))
            raise DataError(f"expected a folder, an archive or arrays ({known}), got the file {text}")
        self.text, self.is_zip = text, path.suffix.lower() == ".zip"
        self._decompressed = DecompressedTar(path) if packed else None
        self.where = self._decompressed.path if self._decompressed else path
        self.inventory, self._entries, self.notes = (list_zip if self.is_zip else list_tar)(self.where, text)

    def load(self) -> ArchiveLoad:
        """Reads the images in their present order."""
        images = ((name, self._entries[name]) for name in self.inventory.images)
        return ArchiveLoad(self.where, self.text, images, keep=self._decompressed)


def _open_archive(path: Path, text: str, split: str | None, *, labelled: bool) -> Examples:
    archive = _Archive(path, text)
    inventory = archive.inventory
    if not inventory.images and not archive.is_zip and (parts := find_batches(archive.where, text)):
        return open_arrays(parts, text, split)
    found = label_images(inventory, labelled=labelled)
    splits, top = _splits_among(inventory, found), found.top.rpartition("/")[2]
    if splits or (split is not None and top not in (split, *synonyms(split))):
        raise ConfigurationError(
            f"{text} is an archive{' of the splits ' + ', '.join(splits) if splits else ''}, and `split` reads folders",
            "unpack it, or archive each split by itself" if splits else "leave out `split`",
        )
    return _examples(text, text, "", found, archive.load(), archive.notes)


def _examples(
    text: str, root: str, split: str, labelled: Labelled, load: Load, notes: tuple[str, ...] = ()
) -> Examples:
    return Examples(
        source=text,
        root=root,
        split=split,
        classes=labelled.classes,
        targets=labelled.targets,
        indices=np.arange(len(labelled.targets)),
        load=load,
        numbered_by_name=bool(labelled.classes),
        warnings=(*notes, *labelled.notes),
    )


def _split_folder(root: Path, split: str | None) -> str:
    """The subfolder of a split, under any of the names it goes by, or the folder itself.

    A subfolder is a split only if it holds class folders, so that a class may
    be called "valid" or "test".
    """
    found = splits_of(root) if split is None else []
    folder = find_split(root, split or "validation")
    if folder is None:
        choose_split(
            str(root), found or splits_of(root), split
        )  # says that there is none, or which there are
    return str(folder or root)


def find_split(root: Path, split: str) -> Path | None:
    """The subfolder of class folders that is this split, under any of its names."""
    folders = (root / name for name in (split, *synonyms(split)))
    return next((folder for folder in folders if holds_folders(folder)), None)


def splits_of(root: Path) -> list[str]:
    """The subfolders that are splits, by their names.

    Raises:
        ConfigurationError: it may as well be a class, being the only one beside folders of images.
    """
    folders = _folders_in(root)
    found = [name for name in folders if name in ALL_SPLITS and holds_folders(root / name)]
    if len(found) == 1:
        for name in folders:
            if name != found[0] and holds_images(str(root / name)):
                raise ConfigurationError(
                    f"{root / found[0]} may be a split, or a class as {name} beside it",
                    f"`split={found[0]}` reads it as a split, `split=.` as a class",
                )
    return found


def own_splits(path: Path, input_key: str | None = None, target_key: str | None = None) -> list[str]:
    """The splits of a folder, a data set that was saved, or arrays, by their names."""
    if (saved := saved_splits(path)) is not None:
        return [name for name in saved if name]
    if parts := find_arrays(path, input_key, target_key):
        return [name for name in parts if name]
    return splits_of(path) if path.is_dir() else []


def holds_folders(folder: Path) -> bool:
    """Whether it is a folder with folders in it, as a split's class folders are."""
    return folder.is_dir() and bool(_folders_in(folder))


def _folders_in(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_hidden_folder(p.name))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from None


def _splits_among(inventory: Inventory, labelled: Labelled) -> list[str]:
    """Class folders that look like splits: by name, and because there are folders in them."""
    top = f"{labelled.top}/" if labelled.top else ""
    named = [f"{top}{name}/" for name in labelled.classes if name in ALL_SPLITS]
    found = {n for n in named if any(p.startswith(n) and "/" in p[len(n) :] for p in inventory.images)}
    return sorted(name[len(top) : -1] for name in found)


def _has_tars_only(root: Path) -> bool:
    return any(root.glob("*.tar")) and not _folders_in(root)
