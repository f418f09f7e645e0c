"""Read pickles of arrays, texts, numbers and containers, and nothing that would run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from alphatune.core.errors import DataError, UntrustedError, one_line, raise_if_machine_failed

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise UntrustedError(f"it asks for {module}.{name}")


def read_pickle(file: BinaryIO, shown: str) -> Any:
    """What ``pickle.dump`` wrote, text of Python 2 as Latin-1.

    Raises:
        UntrustedError: it holds something other than arrays, texts, numbers and containers.
        DataError: it is damaged.
    """
    try:
        content = _ArraysOnly(file, encoding="latin1").load()
    except UntrustedError as error:
        raise UntrustedError(
            f"reading {shown} would run code: {error.message}", "save its arrays as .npz"
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its opcodes come to
        raise DataError(f"cannot read {shown}: {one_line(error) or type(error).__name__}") from None
    _check(content, shown)
    return content


def _check(content: Any, shown: str) -> None:
    for value in content.values() if isinstance(content, dict) else [content]:
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            raise UntrustedError(f"{shown} holds an array of Python objects", "save its arrays as .npz")


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors, numbers and containers.

    Raises:
        UntrustedError: it holds something else.
        DataError: it is damaged.
    """
    from alphatune.pickles.pickle_records import grouped
    from alphatune.pickles.torch_file import read_saved

    try:
        with path.open("rb") as file:
            value, passed_over = read_saved(file, path.stat().st_size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or one_line(error)}") from None
    except Exception as error:  # of a damaged file zipfile, struct and pickletools have errors of their own
        raise_if_machine_failed(error)
        raise DataError(
            f"cannot read {path}: it is no file that torch.save wrote, or damaged: "
            f"{one_line(error) or type(error).__name__}"
        ) from None
    if passed_over:
        raise UntrustedError(
            f"reading {path} would run code: it holds other things than tensors: {grouped(passed_over)}",
            "save the tensors alone",
        )
    return value
