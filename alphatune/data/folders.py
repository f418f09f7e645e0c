"""Open a folder of class folders, or a tar of them, compressed or not."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_reader, get_img_extensions, set_img_extensions
from torchvision.datasets.folder import IMG_EXTENSIONS

from alphatune.data.archive_end import check_end
from alphatune.data.compressed import DecompressedTar, compression
from alphatune.data.examples import Examples, ReaderLoad
from alphatune.errors import ConfigurationError, DataError
from alphatune.suggestions import did_you_mean, did_you_mean_path

_SPLIT_NAMES = (("validation", "val", "valid", "eval", "evaluation"), ("train", "training"))
ALL_SPLITS = {"test", "testing", *(name for names in _SPLIT_NAMES for name in names)}


def open_folder(
    text: str, split: str | None, datasets: Sequence[str] = (), *, labelled: bool = True
) -> Examples:
    """Open a folder or an archive of class folders.

    Args:
        text: where it is.
        split: subfolder, by any of the names a split goes by.
        datasets: names, one of which may have been meant where there is no such path.
        labelled: whether images outside class folders are refused; else every target is 0 where there are some.
    """
    path = Path(text)
    if not path.exists():
        hint = did_you_mean(text, datasets) or did_you_mean_path(
            path, "a timm dataset string starts with torch/, hfds/, hfids/, tfds/ or wds/"
        )
        if text.rpartition(":")[0].endswith(".py"):
            hint = "a loader of your own goes with tune --score"
        raise DataError(f"no such folder, archive or dataset: {text}", hint)
    root = _split_folder(path, split) if path.is_dir() else text
    reader, load, warnings = open_reader(root)
    names = getattr(reader, "class_to_idx", None) or reader.class_name_to_idx
    if "" in names and labelled:
        raise DataError(
            f"{root} holds images outside class folders",
            "expected FOLDER/CLASS/image.jpg; --labels FILE reads the classes from a file",
        )
    classes = () if "" in names else tuple(sorted(names, key=names.__getitem__))
    if Path(root).is_dir():
        targets = [target for _, target in reader.samples]
    else:
        targets = reader.targets
        _refuse_splits_in_archive(root, reader, split)
    return Examples(
        source=text,
        root=root,
        split=Path(root).name if root != text else "",
        classes=classes,
        targets=np.asarray(targets, dtype=np.int64) * ("" not in names),
        indices=np.arange(len(targets)),
        load=load,
        numbered_by_name=True,
        warnings=warnings,
    )


def open_reader(root: str) -> tuple[Any, ReaderLoad, tuple[str, ...]]:
    """timm's reader of all images in a folder or an archive, the same for examples, and what is to be said."""
    path = Path(root)
    if path.is_file() and path.suffix != ".tar" and not compression(path):
        raise DataError(
            f"expected a folder or an archive (.tar, .tar.gz, .tar.bz2, .tar.xz), got the file {root}"
        )
    if path.is_dir() and _has_tars_only(path):
        raise DataError(f"{root} holds .tar files but no images", "name one archive of class folders")
    decompressed = DecompressedTar(path) if path.is_file() and compression(path) else None
    try:
        with _all_image_extensions():
            reader = create_reader("", root=str(decompressed.path) if decompressed else root)
    except (OSError, EOFError, ValueError, RuntimeError, AssertionError, tarfile.TarError) as error:
        if "not enough values" in str(error) or "Found 0 images" in str(error):
            raise DataError(
                f"no images found in {root}",
                f"expected class folders holding files that end in {', '.join(IMG_EXTENSIONS)}",
            ) from None
        raise DataError(f"cannot read {root}: {error}") from None
    warnings: tuple[str, ...] = ()
    if path.is_file():
        members = [inner or member for member, _, inner in reader.samples]
        warnings = check_end(decompressed.path if decompressed else path, members, root)
        counts = Counter(member.path for member, _, _ in reader.samples)
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise DataError(f"{root} holds {name} twice: every image must count once")
    return reader, ReaderLoad(reader, keep=decompressed), warnings


def _split_folder(root: Path, split: str | None) -> str:
    """The subfolder of a split, under any of the names it goes by, or the folder itself.

    A subfolder is a split only if it holds class folders, so that a class may
    be called "valid" or "test".
    """
    folder = find_split(root, split or "validation")
    if folder is not None:
        return str(folder)
    found = splits_of(root)
    if split is not None:
        raise ConfigurationError(
            f"{root} has no split {split!r}", f"it has: {', '.join(found)}" if found else "leave out --split"
        )
    if found:
        raise ConfigurationError(
            f"{root} holds the splits {', '.join(found)} and no validation split", "choose one by --split"
        )
    return str(root)


def find_split(root: Path, split: str) -> Path | None:
    """The subfolder of class folders that is this split, under any of its names."""
    folders = (root / name for name in (split, *synonyms(split)))
    return next((folder for folder in folders if holds_folders(folder)), None)


def splits_of(root: Path) -> list[str]:
    """The subfolders that are splits, by their names."""
    return sorted(p.name for p in root.iterdir() if p.name in ALL_SPLITS and holds_folders(p))


def synonyms(split: str) -> tuple[str, ...]:
    """The names a split goes by."""
    return next((names for names in _SPLIT_NAMES if split in names), (split,))


def holds_folders(folder: Path) -> bool:
    """Whether it is a folder with folders in it, as a split's class folders are."""
    return folder.is_dir() and any(p.is_dir() for p in folder.iterdir())


def _refuse_splits_in_archive(root: str, reader: Any, split: str | None) -> None:
    parts = [Path(member.path).parts for member, _, _ in reader.samples]
    found = sorted({p[-3] for p in parts if len(p) > 2} & ALL_SPLITS)
    if split is not None or found:
        raise ConfigurationError(
            f"{root} is an archive{' of the splits ' + ', '.join(found) if found else ''}, and --split reads folders",
            "unpack it, or archive each split by itself" if found else "leave out --split",
        )


def _has_tars_only(root: Path) -> bool:
    return any(root.glob("*.tar")) and not any(p.is_dir() for p in root.iterdir())


@contextmanager
def _all_image_extensions() -> Iterator[None]:
    """Let timm's readers find every format torchvision reads, not only png and jpeg."""
    before = get_img_extensions()
    set_img_extensions(IMG_EXTENSIONS)
    try:
        yield
    finally:
        set_img_extensions(before)
