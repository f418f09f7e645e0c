"""What may be built from a checkpoint's pickle: tensors, numbers, and plain containers.

Each builder takes what the file gave to the name in the table and checks it. It
returns NotImplemented where it knows of such a thing and cannot make it, so that
a record is kept of it, and raises where the file makes no sense.
"""

from __future__ import annotations

import codecs
import io
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alphatune.pickles import numpy_values
from alphatune.pickles.pickle_records import Global, MalformedError, Record, key_of
from alphatune.pickles.safe_pickle import Builder, SafeUnpickler

#: elements of a tensor that repeats those of a small storage, as ``expand`` makes them
MOST_REPEATED = 2**24
_MOST_DIMENSIONS = 64
#: what a tensor costs at least, in memory and in a well-behaved file
_TENSOR = 200


@dataclass(frozen=True, eq=False, repr=False)
class Storage:
    """Memory that tensors share."""

    data: Tensor  # uint8, one dimension
    dtype: torch.dtype


_NAMED = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
    # Only a quantized tensor says what its integers mean; that is kept as a record.
    "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32,
}  # fmt: skip
#: dtypes of storages, by the name of their class
STORAGES: dict[str, torch.dtype] = {
    **{f"{module} {name}Storage": dtype for name, dtype in _NAMED.items() for module in ("torch", "torch.cuda")},
    "torch.storage UntypedStorage": torch.uint8,
    "torch.storage _UntypedStorage": torch.uint8,
}  # fmt: skip
#: names that stand for a constant
VALUES: dict[str, Any] = {
    f"torch {name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}


def tensor(unpickler: SafeUnpickler, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``: a view of a storage, of its dtype."""
    if isinstance(storage, Record):  # of a kind that is not read
        return NotImplemented
    return _view(unpickler, storage, offset, size, stride, None, rest[2:3])


def tensor_of_dtype(
    unpickler: SafeUnpickler, storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any,
    dtype: Any, *metadata: Any,
) -> Any:  # fmt: skip
    """``_rebuild_tensor_v3``: a view of a storage that has no dtype."""
    if type(dtype) is not torch.dtype:
        return NotImplemented
    return _view(unpickler, storage, offset, size, stride, dtype, metadata)


def _view(
    unpickler: SafeUnpickler, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None,
    metadata: tuple[Any, ...],
) -> Tensor:  # fmt: skip
    """A tensor that lies within its storage, or MalformedError."""
    if type(storage) is not Storage:
        raise MalformedError("a tensor in it has no storage")
    dims, steps = _whole_numbers(size), _whole_numbers(stride)
    if type(offset) is not int or offset < 0 or len(dims) != len(steps) or len(dims) > _MOST_DIMENSIONS:
        raise MalformedError("a tensor in it has an impossible shape")
    unpickler.pay(_TENSOR)
    dtype = dtype or storage.dtype
    there = storage.data.numel() // dtype.itemsize
    count = math.prod(dims)
    if count == 0:
        return torch.empty(dims, dtype=dtype)
    if offset + sum((n - 1) * step for n, step in zip(dims, steps, strict=True)) >= there:
        raise MalformedError("a tensor in it reaches beyond its storage")
    if count > max(there, MOST_REPEATED):
        raise MalformedError("a tensor in it is far larger than its storage")
    whole = storage.data[: there * dtype.itemsize].view(dtype)
    found = whole.as_strided(dims, steps, offset)
    flags = metadata[0] if metadata and type(metadata[0]) is dict else {}
    # Both are views: the data may come later in the file than this.
    if flags.get("conj") is True and dtype.is_complex:
        found = found.conj()
    return torch._neg_view(found) if flags.get("neg") is True else found


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list, torch.Size) or any(
        type(n) is not int or not 0 <= n < 2**63 for n in values
    ):
        raise MalformedError("a tensor in it has an impossible shape")
    return tuple(values)


def parameter(_unpickler: SafeUnpickler, data: Any, *_: Any) -> Any:
    """A parameter is its tensor."""
    return data if isinstance(data, Tensor) else NotImplemented


def tensor_of_type(unpickler: SafeUnpickler, function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """A subclass of Tensor that has a storage is a plain tensor here."""
    if type(function) is not Global or function.name not in _TENSORS:
        return NotImplemented
    if type(kind) is Global and kind.name not in _PLAIN_TENSORS:
        unpickler.pass_over(kind.name)
    return unpickler.call(function, args)


def tensor_of_device(_unpickler: SafeUnpickler, data: Any, dtype: Any, *_: Any) -> Any:
    """A tensor of a device without storages of its own, e.g. XLA's."""
    # A conversion would be of data that may come later in the file than this.
    return data if isinstance(data, Tensor) and data.dtype is dtype else NotImplemented


def storage_from_bytes(unpickler: SafeUnpickler, data: Any) -> Any:
    """What ``pickle.dump`` makes of a tensor's storage: a file of torch.save within the file."""
    from alphatune.pickles.torch_file import read_stream  # it uses this table

    data = numpy_values.bytes_of(data)
    unpickler.pay(len(data))
    builders = {name: builder for name, builder in BUILDERS.items() if builder is not storage_from_bytes}
    value, _ = read_stream(io.BytesIO(data), len(data), builders)
    return value if type(value) is Storage else NotImplemented


def ordered_dict(unpickler: SafeUnpickler, pairs: Any = ()) -> Any:
    """``OrderedDict()``, filled later; Python 2 gives a list of pairs."""
    return OrderedDict(_pairs(unpickler, pairs))


def plain_dict(unpickler: SafeUnpickler, content: Any = ()) -> Any:
    """``dict`` and ``Counter``."""
    if type(content) in (dict, OrderedDict):
        unpickler.pay(64 * len(content))
        return dict(content)
    return dict(_pairs(unpickler, content))


def default_dict(unpickler: SafeUnpickler, _factory: Any = None, content: Any = ()) -> Any:
    """A plain dict: what makes its defaults is a name."""
    return plain_dict(unpickler, content)


def _pairs(unpickler: SafeUnpickler, pairs: Any) -> list[tuple[Any, Any]]:
    items = _items(unpickler, pairs)
    if any(type(pair) not in (tuple, list) or len(pair) != 2 for pair in items):
        raise MalformedError("a dict in it is none of pairs")
    return [(key_of(key), value) for key, value in items]


def _items(unpickler: SafeUnpickler, values: Any) -> list[Any]:
    if type(values) not in (tuple, list, set, frozenset):
        raise MalformedError("a container in it is made of what is none")
    unpickler.pay(64 * len(values))
    return list(values)


def plain_set(unpickler: SafeUnpickler, values: Any = ()) -> Any:
    """A set of what can be a key."""
    return {key_of(value) for value in _items(unpickler, values)}


def frozen_set(unpickler: SafeUnpickler, values: Any = ()) -> Any:
    """A frozen set of what can be a key."""
    return frozenset(plain_set(unpickler, values))


def plain_list(unpickler: SafeUnpickler, values: Any = ()) -> Any:
    """A list."""
    return _items(unpickler, values)


def size_of(unpickler: SafeUnpickler, values: Any = ()) -> Any:
    """``torch.Size``."""
    unpickler.pay(8 * len(values))
    return torch.Size(_whole_numbers(values))


def device(_unpickler: SafeUnpickler, kind: Any, index: Any = None) -> Any:
    """``torch.device``."""
    if type(kind) is not str or not re.fullmatch(r"cpu|cuda|mps|meta|xpu|xla", kind):
        return NotImplemented
    return torch.device(kind) if type(index) is not int else torch.device(kind, index % 128)


def encoded(unpickler: SafeUnpickler, text: Any, encoding: Any = "latin1") -> Any:
    """Bytes, which pickle writes as text in old protocols."""
    if type(text) is not str or type(encoding) is not str or encoding not in ("latin1", "latin-1"):
        return NotImplemented
    unpickler.pay(len(text))
    return codecs.latin_1_encode(text)[0]


def plain_bytes(unpickler: SafeUnpickler, data: Any = b"", *_: Any) -> Any:
    """``bytes`` and ``bytearray``."""
    data = numpy_values.bytes_of(data)
    unpickler.pay(len(data))
    return bytes(data)


def complex_number(_unpickler: SafeUnpickler, real: Any = 0.0, imaginary: Any = 0.0) -> Any:
    """``complex``."""
    if type(real) not in (int, float) or type(imaginary) not in (int, float):
        return NotImplemented
    return complex(real, imaginary)


def instance(unpickler: SafeUnpickler, kind: Any, *rest: Any) -> Any:
    """``copyreg``'s way to make an object in old protocols: a record of its class."""
    if type(kind) is not Global or kind.name in BUILDERS:
        return NotImplemented
    unpickler.pass_over(kind.name)
    made = Record(kind.name.replace(" ", "."), rest)
    if isinstance(content := rest[-1] if rest else None, dict):  # a subclass of dict
        made.entries |= content
        unpickler.pay(64 * len(content))
    return made


_TENSORS: dict[str, Builder] = {
    "torch._utils _rebuild_tensor": tensor,
    "torch._utils _rebuild_tensor_v2": tensor,
    "torch._utils _rebuild_tensor_v3": tensor_of_dtype,
    "torch._utils _rebuild_parameter": parameter,
    "torch._utils _rebuild_parameter_with_state": parameter,
    "torch._utils _rebuild_device_tensor_from_numpy": tensor_of_device,
    "torch._utils _rebuild_xla_tensor": tensor_of_device,
    "torch._utils _rebuild_device_tensor_from_cpu_tensor": tensor_of_device,
}
_PLAIN_TENSORS = (
    "torch Tensor",
    "torch._tensor Tensor",
    "torch.nn.parameter Parameter",
    "torch.nn.parameter Buffer",
)
_BUILTINS: dict[str, Builder] = {
    "dict": plain_dict, "list": plain_list, "set": plain_set, "frozenset": frozen_set,
    "bytes": plain_bytes, "bytearray": plain_bytes, "complex": complex_number,
}  # fmt: skip
BUILDERS: dict[str, Builder] = {
    **_TENSORS,
    **numpy_values.BUILDERS,
    "torch._tensor _rebuild_from_type": tensor_of_type,
    "torch._tensor _rebuild_from_type_v2": tensor_of_type,
    "torch.storage _load_from_bytes": storage_from_bytes,
    "torch Size": size_of,
    "torch device": device,
    "collections OrderedDict": ordered_dict,
    "collections defaultdict": default_dict,
    "collections Counter": plain_dict,
    "_codecs encode": encoded,
    "copyreg _reconstructor": instance,
    "copy_reg _reconstructor": instance,
    "copyreg __newobj__": instance,
    "copy_reg __newobj__": instance,
    **{
        f"{module} {name}": builder
        for module in ("builtins", "__builtin__")
        for name, builder in _BUILTINS.items()
    },
}
