"""Open what lies at a path: a folder of class folders, a tar or zip of them, arrays, or a saved data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
)
from alphatune.data.saved_tables import open_saved, saved_splits
from alphatune.data.split_names import ALL_SPLITS, choose_split, synonyms
from alphatune.errors import ConfigurationError, DataError
from alphatune.suggestions import did_you_mean, did_you_mean_path

ARCHIVES = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip")

#: said of class folders in natural order, which a class map makes needless
ORDER_WARNING = (
    "class folders are numbered in natural order (2 before 10), as timm does; torchvision's "
    "ImageFolder would number them as text: if the model was trained with it, pass --class-map"
)


def open_path(
    text: str,
    split: str | None,
    datasets: Sequence[str] = (),
    input_key: str | None = None,
    target_key: str | None = None,
) -> Examples:
    """Open what lies at a path: class folders, an archive of them, arrays, or a data set that was saved.

    Args:
        text: where it is.
        split: subfolder or part, by any of the names a split goes by.
        datasets: names, one of which may have been meant where there is no such path.
        input_key, target_key: names of images and labels in arrays and tables.
    """
    path = Path(text)
    if not path.exists():
        hint = did_you_mean(text, datasets) or did_you_mean_path(
            path, "a timm dataset string starts with torch/, hfds/, hfids/, tfds/ or wds/"
        )
        if text.rpartition(":")[0].endswith(".py"):
            hint = "a loader of your own goes with tune --score"
        raise DataError(f"no such folder, archive or dataset: {text}", hint)
    if (splits := saved_splits(path)) is not None:
        return open_saved(path, text, splits, split, input_key, target_key)
    if parts := find_arrays(path, input_key, target_key):
        return open_arrays(parts, text, split)
    if path.is_file():
        return _open_archive(path, text, split)
    return open_folder(text, split)


def open_folder(text: str, split: str | None) -> Examples:
    """Open a folder of class folders, or of splits of such."""
    path = Path(text)
    root = _split_folder(path, split)
    if _has_tars_only(Path(root)):
        raise DataError(f"{root} holds .tar files but no images", "name one archive of class folders")
    inventory = list_folder(root)
    labelled = label_images(inventory)
    if labelled.top and (found := _splits_among(inventory, labelled)):
        raise ConfigurationError(
            f"{root} holds the splits {', '.join(found)} in {labelled.top}",
            f"name {Path(root) / labelled.top}",
        )
    name = Path(root).name if root != text else ""
    return _examples(text, root, name, labelled, FileLoad(inventory.images, root))


def _open_archive(path: Path, text: str, split: str | None) -> Examples:
    packed = compression(path)
    if not packed and path.suffix.lower() not in ARCHIVES:
        known = ", ".join((*ARCHIVES, *ARRAY_FILES))
        raise DataError(f"expected a folder, an archive or arrays ({known}), got the file {text}")
    decompressed = DecompressedTar(path) if packed else None
    where = decompressed.path if decompressed else path
    inventory, entries, notes = (list_zip if path.suffix.lower() == ".zip" else list_tar)(where, text)
    if not inventory.images and path.suffix.lower() != ".zip" and (parts := find_batches(where, text)):
        return open_arrays(parts, text, split)
    labelled = label_images(inventory)
    found, top = _splits_among(inventory, labelled), labelled.top.rpartition("/")[2]
    if found or (split is not None and top not in (split, *synonyms(split))):
        raise ConfigurationError(
            f"{text} is an archive{' of the splits ' + ', '.join(found) if found else ''}, and --split reads folders",
            "unpack it, or archive each split by itself" if found else "leave out --split",
        )
    images = ((name, entries[name]) for name in inventory.images)
    load = ArchiveLoad(where, text, images, keep=decompressed)
    return _examples(text, text, "", labelled, load, notes)


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
        warnings=(*_order_warning(labelled.classes), *notes, *labelled.notes),
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
                    f"--split {found[0]} reads it as a split, --split . as a class",
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


def _order_warning(classes: Sequence[str]) -> tuple[str, ...]:
    if list(classes) == sorted(classes):
        return ()
    return (ORDER_WARNING,)
