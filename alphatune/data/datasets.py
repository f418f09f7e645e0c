"""Open a folder, an archive or a timm dataset string as examples to evaluate.

timm's readers find the images; its ``ImageDataset`` is not used, because it
replaces an image that it cannot read by the next one. Here an unreadable image
stops the run and is named.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from timm.data import create_dataset, create_reader, get_img_extensions, set_img_extensions
from torchvision.datasets.folder import IMG_EXTENSIONS

from alphatune.errors import AlphatuneError, ConfigurationError, DataError, one_line

#: prefixes of timm dataset strings; anything else is a folder or archive
PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
_SPLIT_NAMES = (("validation", "val", "valid", "eval", "evaluation"), ("train", "training"))
_ALL_SPLITS = {"test", "testing", *(name for names in _SPLIT_NAMES for name in names)}


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that could not be decoded, on its way out of a worker."""

    name: str
    reason: str


Load = Callable[[int], tuple[Any, str]]


@dataclass(frozen=True)
class Examples:
    """A finite, ordered set of labelled images.

    ``indices`` are positions in the source, in increasing order; they identify
    an example whatever else was left out by ``--limit``.
    """

    source: str
    root: str
    split: str
    classes: tuple[str, ...]  # class names by index where the source knows them
    targets: np.ndarray  # (n,) int64: class index of each example
    indices: np.ndarray  # (n,) int64: position of each example in the source
    load: Load | None  # position -> (PIL image or file, name)
    stream: Callable[[], Iterator[Any]] | None = None  # for sources without random access
    class_map: str = ""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def decoder(self) -> str:
        """What turned bytes into pixels: two decoders must not meet in one comparison."""
        return f"PIL {PIL.__version__}"

    def limit(self, count: int | None, seed: int) -> Examples:
        """At most ``count`` examples, drawn without replacement, stratified by class.

        Every class keeps its share to within one example; the order stays the
        source's, so that a limited run is a subset of the full one.
        """
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise ConfigurationError(f"--limit must be at least 1, got {count}")
        keep = np.sort(_stratified(self.targets, count, np.random.default_rng(seed)))
        return replace(self, targets=self.targets[keep], indices=self.indices[keep])


def open_data(
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    data_root: str | None = None,
    class_map: str | os.PathLike[str] | None = None,
    image_mode: str = "RGB",
    input_key: str | None = None,
    target_key: str | None = None,
) -> Examples:
    """Open DATA: a folder of class folders, a .tar of them, or a timm dataset string.

    Args:
        data: path, or ``torch/NAME``, ``hfds/NAME``, ``wds/PATH``, ...
        split: split or subfolder; by default the validation split, and a folder
            without one is read itself unless it holds other splits.
        data_root: where ``torch/``, ``tfds/`` and ``wds/`` data lie; cache of ``hfds/``.
        class_map: text file with one class name a line; its line is the label.
        image_mode: ``RGB`` or ``L``.
        input_key, target_key: columns of images and labels in ``hfds/`` and ``wds/`` data.

    Raises:
        DataError: missing, empty or unreadable; a class folder the map does not name.
        ConfigurationError: an unknown dataset name or split.
    """
    text = os.fspath(data)
    prefix = text.partition("/")[0].lower() if "/" in text else ""
    is_string = prefix in PREFIXES and not Path(text).exists()
    if is_string:
        examples = _open_string(
            text,
            prefix,
            split or "validation",
            data_root,
            image_mode,
            input_key=input_key,
            target_key=target_key,
        )
    else:
        examples = _open_path(text, split)
    if class_map is not None:
        examples = _apply_class_map(examples, os.fspath(class_map))
    return examples


# --- folders and archives --------------------------------------------------------------------


def _open_path(text: str, split: str | None) -> Examples:
    path = Path(text)
    if not path.exists():
        raise DataError(
            f"no such folder, archive or dataset: {text}",
            f"a timm dataset string starts with one of: {', '.join(p + '/' for p in PREFIXES)}",
        )
    if path.is_file() and path.suffix != ".tar":
        hint = "decompress it first: images are read from it in place" if ".tar" in path.suffixes else ""
        raise DataError(f"expected a folder or an uncompressed .tar archive, got the file {text}", hint)
    root = text
    if path.is_dir():
        root = _split_folder(path, split)
        if _has_tars_only(Path(root)):
            raise DataError(f"{root} holds .tar files but no images", "name one archive of class folders")
    try:
        with _all_image_extensions():
            reader = create_reader("", root=root)
    except (OSError, EOFError, ValueError, RuntimeError, AssertionError, tarfile.TarError) as error:
        if "not enough values" in str(error) or "Found 0 images" in str(error):
            raise DataError(
                f"no images found in {root}",
                f"expected class folders holding files that end in {', '.join(IMG_EXTENSIONS)}",
            ) from None
        raise DataError(f"cannot read {root}: {error}") from None
    names = getattr(reader, "class_to_idx", None) or reader.class_name_to_idx
    classes = tuple(sorted(names, key=names.__getitem__))
    if Path(root).is_dir():
        targets = [target for _, target in reader.samples]
    else:
        targets = reader.targets
        _refuse_splits_in_archive(root, reader, split)
        counts = Counter(member.path for member, _, _ in reader.samples)
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise DataError(f"{root} holds {name} twice: every image must count once")
    return Examples(
        source=text,
        root=root,
        split=Path(root).name if root != text else "",
        classes=classes,
        targets=np.asarray(targets, dtype=np.int64),
        indices=np.arange(len(targets)),
        load=_ReaderLoad(reader),
        warnings=_order_warning(classes),
    )


def _split_folder(root: Path, split: str | None) -> str:
    """The subfolder of a split, under any of the names it goes by, or the folder itself.

    A subfolder is a split only if it holds class folders, so that a class may
    be called "valid" or "test".
    """
    wanted = split or "validation"
    synonyms = next((names for names in _SPLIT_NAMES if wanted in names), (wanted,))
    for name in (wanted, *synonyms):
        if _holds_folders(root / name):
            return str(root / name)
    found = sorted(p.name for p in root.iterdir() if p.name in _ALL_SPLITS and _holds_folders(p))
    if split is not None:
        raise ConfigurationError(
            f"{root} has no split {split!r}", f"it has: {', '.join(found)}" if found else "leave out --split"
        )
    if found:
        raise ConfigurationError(
            f"{root} holds the splits {', '.join(found)} and no validation split", "choose one by --split"
        )
    return str(root)


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(p.is_dir() for p in folder.iterdir())


def _refuse_splits_in_archive(root: str, reader: Any, split: str | None) -> None:
    parts = [Path(member.path).parts for member, _, _ in reader.samples]
    found = sorted({p[-3] for p in parts if len(p) > 2} & _ALL_SPLITS)
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


def _order_warning(classes: Sequence[str]) -> tuple[str, ...]:
    if list(classes) == sorted(classes):
        return ()
    return (
        "class folders are numbered in natural order (2 before 10), as timm does; torchvision's "
        "ImageFolder would number them as text: if the model was trained with it, pass --class-map",
    )


class _ReaderLoad:
    """Read an image through a timm reader, with file handles of this process only.

    A forked worker that shares an open archive shares its file position, and
    would read another worker's bytes: each process opens its own.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._opened: Any = None
        self._pid = -1

    def __call__(self, index: int) -> tuple[Any, str]:
        if self._pid != os.getpid():
            self._opened = copy.copy(self._reader)
            if hasattr(self._reader, "tar_state"):
                self._opened.tar_state = copy.deepcopy(self._reader.tar_state)
            self._pid = os.getpid()
        return self._opened[index][0], str(self._reader.filename(index))

    def __getstate__(self) -> dict[str, Any]:
        return {"_reader": self._reader, "_opened": None, "_pid": -1}


# --- timm dataset strings --------------------------------------------------------------------


def _open_string(
    text: str, prefix: str, split: str, data_root: str | None, image_mode: str, **keys: str | None
) -> Examples:
    name = text.partition("/")[2]
    root = data_root
    if prefix == "wds" and root is None:
        root = name
    if prefix in ("torch", "tfds") and root is None:
        raise ConfigurationError(f"{text} needs to know where the data lie", "add --data-root FOLDER")
    try:
        dataset = create_dataset(text, root=root, split=split, input_img_mode=image_mode, **keys)
    except ImportError as error:
        raise ConfigurationError(
            f"{prefix}/ data need the package {error.name or prefix}", f'pip install "alphatune[{prefix}]"'
        ) from None
    except AlphatuneError:
        raise
    except Exception as error:  # each back-end has errors of its own
        raise DataError(f"cannot open {text} (split {split!r}): {one_line(error)}") from None
    common: dict[str, Any] = {"source": text, "root": root or "", "split": split}
    if prefix == "torch":
        return _torchvision_examples(dataset, common)
    if prefix == "hfds":
        targets = np.asarray(list(dataset.reader.iter_targets()), dtype=np.int64)
        load: Load = _ReaderLoad(dataset.reader)
        classes = _class_names(dataset.reader.class_to_idx)
        return _indexed(common, classes, targets, load)
    return _streamed_examples(dataset, common)


def _torchvision_examples(dataset: Any, common: dict[str, Any]) -> Examples:
    targets = getattr(dataset, "targets", None)
    if targets is None:  # INaturalist keeps (class, file) pairs
        targets = [target for target, _ in dataset.index]
    labels = np.asarray(targets, dtype=np.int64)
    if labels.ndim == 2:  # QMNIST: the class, and seven columns of provenance
        labels = labels[:, 0]
    classes = tuple(str(c) for c in getattr(dataset, "classes", ()))
    return _indexed(common, classes, labels, _TorchvisionLoad(dataset))


def _indexed(common: dict[str, Any], classes: tuple[str, ...], targets: np.ndarray, load: Load) -> Examples:
    if len(targets) == 0:
        raise DataError(f"{common['source']} (split {common['split']!r}) holds no examples")
    return Examples(**common, classes=classes, targets=targets, indices=np.arange(len(targets)), load=load)


class _TorchvisionLoad:
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, index: int) -> tuple[Any, str]:
        return self._dataset[index][0], f"example {index}"


def _streamed_examples(dataset: Any, common: dict[str, Any]) -> Examples:
    """A source without random access: one pass to learn the labels and their number."""
    stream = _Stream(dataset)
    targets = np.asarray([target for _, target in stream()], dtype=np.int64)
    if len(targets) == 0:
        raise DataError(f"{common['source']} (split {common['split']!r}) holds no examples")
    return Examples(
        **common,
        classes=_class_names(getattr(dataset.reader, "class_to_idx", {})),
        targets=targets,
        indices=np.arange(len(targets)),
        load=None,
        stream=stream,
    )


class _Stream:
    """Iterate over a dataset from its beginning; an unreadable example is an error."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self) -> Iterator[Any]:
        done = 0
        with _no_skipping(lambda: f"unreadable example after {done} others"):
            for example in self._dataset:
                done += 1
                yield example


def _class_names(class_to_idx: dict[str, int]) -> tuple[str, ...]:
    return tuple(str(c) for c in sorted(class_to_idx, key=class_to_idx.__getitem__))


@contextmanager
def _no_skipping(where: Callable[[], str]) -> Iterator[None]:
    """Turn timm's "ignoring this broken sample" log line into the error it is."""

    class Refuse(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Ignoring" in record.getMessage():
                raise DataError(f"{where()}: {one_line(record.getMessage())}")

    logger, handler = logging.getLogger("timm.data.readers"), Refuse(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


# --- shared ----------------------------------------------------------------------------------


def _apply_class_map(examples: Examples, path: str) -> Examples:
    """Relabel by name. A class the map does not know is an error: timm would drop its images."""
    class_to_idx = _read_class_map(path)
    if not examples.classes:
        raise ConfigurationError(f"{examples.source} has no class names that a class map could map")
    unknown = [name for name in examples.classes if name not in class_to_idx]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(examples.classes)} class folders are not in {path}, e.g. {unknown[0]!r}"
        )
    table = np.asarray([class_to_idx[name] for name in examples.classes], dtype=np.int64)
    names = [""] * (max(class_to_idx.values()) + 1)
    for name, index in class_to_idx.items():
        names[index] = str(name)
    return replace(
        examples, classes=tuple(names), targets=table[examples.targets], class_map=path, warnings=()
    )


def _read_class_map(path: str) -> dict[str, int]:
    """One class name a line; the number of the line, from 0, is the label."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the class map {path}: {one_line(error)}") from None
    class_to_idx: dict[str, int] = {}
    for index, name in enumerate(line.strip() for line in lines):
        if not name:
            raise DataError(f"line {index + 1} of the class map {path} is empty: every line is a class")
        if name in class_to_idx:
            raise DataError(f"line {index + 1} of the class map {path} repeats {name!r}: which output is it?")
        class_to_idx[name] = index
    if not class_to_idx:
        raise DataError(f"the class map {path} is empty")
    return class_to_idx


def _stratified(targets: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of ``count`` examples: whole shares first, then one each at random."""
    members = [np.flatnonzero(targets == c) for c in np.unique(targets)]
    share = np.array([len(m) for m in members]) * count / len(targets)
    take = np.floor(share).astype(int)
    extra = rng.permutation(len(members))
    extra = extra[np.argsort(-(share - take)[extra], kind="stable")][: count - take.sum()]
    take[extra] += 1
    return np.concatenate([rng.choice(m, size=k, replace=False) for m, k in zip(members, take, strict=True)])


def read_image(source: Any, image_mode: str) -> Image.Image:
    """Decode fully and convert; raises OSError and its kin on a broken file."""
    if isinstance(source, Image.Image):
        return source.convert(image_mode)
    if isinstance(source, (bytes, bytearray)):
        source = io.BytesIO(source)
    try:
        with Image.open(source) as image:
            return image.convert(image_mode)
    finally:
        if hasattr(source, "close"):
            source.close()
