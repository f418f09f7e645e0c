"""NumPy's arrays and numbers as tensors and numbers: plain dtypes only, from bytes that are there."""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from alphatune.pickles.pickle_records import MalformedError, Record
from alphatune.pickles.safe_pickle import SafeUnpickler, Unfinished

#: kinds of dtype that are numbers, and that torch has
_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}


class NumpyType(Unfinished):
    """A dtype: ``f4`` and the like; its byte order comes with its state."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code, self.order, self.plain = code, "<", code in _NUMBERS

    def finish(self, _unpickler: SafeUnpickler, state: Any) -> NumpyType:
        _, order, *fields = state
        if type(order) is not str or order not in "<>=|":
            raise MalformedError("an array in it has an impossible byte order")
        self.order = ">" if order == ">" else "<"
        self.plain = self.plain and fields[:3] == [None, None, None]  # no fields, no array within
        return self

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of NumPy; raises TypeError where it is none of numbers."""
        if not self.plain:
            raise TypeError("not a dtype of numbers")
        return np.dtype(self.order + self.code)


class NumpyArray(Unfinished):
    """An array whose shape, dtype and bytes come with its state."""

    def finish(self, unpickler: SafeUnpickler, state: Any) -> Tensor | Record:
        _, shape, kind, fortran, data = state
        if type(kind) is not NumpyType or not kind.plain:
            unpickler.pass_over("numpy.ndarray[object]")
            record = Record("numpy.ndarray")
            record.state = state
            return record
        return array(unpickler, bytes_of(data), kind, shape, bool(fortran))


def bytes_of(data: Any) -> bytes | bytearray:
    """Bytes, also where Python 2 wrote them as text."""
    if isinstance(data, str):
        return data.encode("latin-1")
    if isinstance(data, (bytes, bytearray)):
        return data
    raise MalformedError("an array in it has no bytes")


def array(unpickler: SafeUnpickler, data: Any, kind: NumpyType, shape: Any, fortran: bool) -> Tensor:
    """A tensor of its own memory."""
    unpickler.pay(len(data) + 200)
    return as_tensor(data, kind.dtype, shape, fortran)


def as_tensor(data: bytes | bytearray, dtype: np.dtype[Any], shape: Any, fortran: bool) -> Tensor:
    """Bytes as a tensor; raises MalformedError if there are not as many as the shape asks for."""
    if (
        type(shape) is not tuple
        or len(shape) > 32
        or any(type(n) is not int or not 0 <= n < 2**63 for n in shape)
    ):
        raise MalformedError("an array in it has an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise MalformedError("an array in it has another size than its data")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    # In this machine's byte order and, as torch's own are, in C order.
    return torch.from_numpy(np.array(values, dtype.newbyteorder("="), order="C"))


def read_npy(file: BinaryIO, size: int) -> Tensor:
    """One ``.npy`` file of at most ``size`` bytes.

    Raises:
        MalformedError: damaged, or other things than numbers.
    """
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise MalformedError(f"version {version} of NumPy's format is not known")
    shape, fortran, dtype = read_header(file)
    if dtype.str[1:] not in _NUMBERS:
        raise MalformedError(f"an array of {dtype.name} in it holds no plain numbers")
    if math.prod(shape) * dtype.itemsize > size:
        raise MalformedError("it ends too early")
    return as_tensor(file.read(math.prod(shape) * dtype.itemsize), dtype, shape, fortran)


def number(_unpickler: SafeUnpickler, kind: Any, data: Any = b"") -> Any:
    """What ``numpy.float64(…)`` and its like become: a number of Python's."""
    if type(kind) is not NumpyType or not kind.plain:
        return NotImplemented
    return as_tensor(bytes_of(data), kind.dtype, (), False).item()


def dtype(_unpickler: SafeUnpickler, code: Any, *_: Any) -> Any:
    """``numpy.dtype("f4", False, True)``."""
    return NumpyType(code) if type(code) is str else NotImplemented


def empty_array(_unpickler: SafeUnpickler, *_: Any) -> Any:
    """What ``_reconstruct`` makes, before its state is known."""
    return NumpyArray()


def array_from_buffer(unpickler: SafeUnpickler, data: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
    """Pickle's protocol 5."""
    if type(kind) is not NumpyType or not kind.plain:
        return NotImplemented
    return array(unpickler, bytes_of(data), kind, shape, order == "F")


BUILDERS = {
    "numpy dtype": dtype,
    **{f"numpy.{core}.multiarray {name}": builder
       for core in ("core", "_core") for name, builder in (("scalar", number), ("_reconstruct", empty_array))},
    **{f"numpy.{core}.numeric _frombuffer": array_from_buffer for core in ("core", "_core")},
}  # fmt: skip
