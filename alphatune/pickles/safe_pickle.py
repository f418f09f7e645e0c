"""Unpickle without running anything: no name in the file is looked up, imported or called.

A pickle is a program for a stack machine whose dangerous instructions look up a
name and call it. This machine has no way to do either. Names are compared with
a table of builders that are our own code (pickled_values.py); every other name,
and whatever the file does with it, becomes a ``Record`` that holds the data and
does nothing. Instructions that such a file never needs are refused.

Memory is bounded by the size of the file: what a builder copies is paid for with
bytes read, and sizes that are only claimed are checked before anything is made.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from torch import Tensor

from alphatune.pickles.pickle_records import Global, MalformedError, Record, key_of

MOST_INSTRUCTIONS = 10_000_000
#: bytes that builders may copy for each byte read, and free of charge
COPIES, FREE = 4, 2**20

Builder = Callable[..., Any]


class Source:
    """A stream that is never asked for more than it has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.position = file, size, 0

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.size - self.position:
            raise MalformedError("it ends too early")
        data = self.file.read(count)
        self.position += len(data)
        if len(data) != count:
            raise MalformedError("it ends too early")
        return data

    def readline(self) -> bytes:
        line = self.file.readline(self.size - self.position)
        self.position += len(line)
        return line


class SafeUnpickler:
    """One stream of pickles.

    Args:
        builders: what may be built, by the name in the file.
        values: names that stand for a constant.
        persistent: gives the storage that a persistent id stands for.
    """

    def __init__(
        self,
        source: Source,
        builders: Mapping[str, Builder],
        values: Mapping[str, Any],
        persistent: Callable[[SafeUnpickler, Any], Any] | None = None,
    ) -> None:
        self.source, self.builders, self.values, self.persistent = source, builders, values, persistent
        self.passed_over: dict[str, None] = {}  # names that nobody looked up, in order
        self._instructions = 0
        self._copied = 0

    def load(self) -> Any:
        """The next pickle of the stream; raises MalformedError, or anything else on corrupt bytes."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for code, argument, _ in pickletools.genops(self.source):  # type: ignore[arg-type]
            self._instructions += 1
            if self._instructions > MOST_INSTRUCTIONS:
                raise MalformedError(f"it holds more than {MOST_INSTRUCTIONS:,} objects")
            if code.name in _PUSHED:
                self.stack.append(argument)
            elif code.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[code.name])
            elif step := _STEPS.get(code.name):
                step(self, argument)
            elif code.name not in _IGNORED:
                raise MalformedError(f"its instruction {code.name} is not allowed")
        return self.stack.pop()

    def pay(self, amount: int) -> None:
        """Account for bytes, or items, that are going to be copied."""
        self._copied += amount
        if self._copied > COPIES * self.source.position + FREE:
            raise MalformedError("it would grow far beyond its size")

    def call(self, function: Any, args: Any) -> Any:
        """What a name gives when it is called: built by the table, or a record."""
        if type(args) is not tuple or type(function) not in (Global, Record):
            raise MalformedError("it calls what cannot be called")
        if type(function) is Global and (builder := self.builders.get(function.name)):
            built = builder(self, *args)
            if built is not NotImplemented:
                return built
        self.pass_over(function.name)
        return Record(function.name.replace(" ", "."), args)

    def pass_over(self, name: str) -> None:
        """Note a name of something that was not built."""
        self.passed_over[name.replace(" ", ".")] = None

    # Instructions. A stack or mark that is not there raises IndexError.

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def _pop_all(self, _: Any) -> None:
        self._pop_mark()

    def _tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise MalformedError("its stack is empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _append_all(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (list, Record):
            raise MalformedError("it appends to what is no list")
        (target if type(target) is list else target.items).extend(items)

    def _set_all(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict, Record):
            raise MalformedError("it sets a key of what is no dict")
        entries = target.entries if type(target) is Record else target
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[key_of(key)] = value

    def _add_all(self, _: Any) -> None:
        items, target = self._pop_mark(), self.stack[-1]
        if type(target) is Record:
            target.items.extend(items)
        elif type(target) is set:
            target.update(map(key_of, items))
        else:
            raise MalformedError("it adds to what is no set")

    def _gather(self, container: Callable[[list[Any]], Any]) -> None:
        items = self._pop_mark()
        self.stack.append(container(items))

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._set_all(items)

    def _get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    def _put(self, index: Any) -> None:
        value = self.stack[-1]
        self.memo[int(index)] = value
        if isinstance(value, Unfinished):
            value.places.append(int(index))

    def _global(self, name: str) -> None:
        self.stack.append(self.values[name] if name in self.values else Global(name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise MalformedError("a name in it is no text")
        self._global(f"{module} {name}")

    def _inst(self, name: str) -> None:
        args = tuple(self._pop_mark())
        self.stack.append(self.call(Global(name), args))

    def _obj(self, _: Any) -> None:
        function, *args = self._pop_mark()
        self.stack.append(self.call(function, tuple(args)))

    def _reduce(self, _: Any) -> None:
        args = self.stack.pop()
        self.stack.append(self.call(self.stack.pop(), args))

    def _newobj_ex(self, _: Any) -> None:
        named, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if type(named) is not dict or type(args) is not tuple:
            raise MalformedError("it calls what cannot be called")
        self.stack.append(self.call(function, (*args, named) if named else args))

    def _persistent(self, _: Any) -> None:
        if self.persistent is None:
            raise MalformedError("it refers to data outside of itself")
        self.stack.append(self.persistent(self, self.stack.pop()))

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Record:
            target.state = state
        elif isinstance(target, Unfinished):
            self.stack[-1] = built = target.finish(self, state)
            self.memo.update((place, built) for place in target.places if self.memo[place] is target)
        elif type(target) is OrderedDict:
            metadata = state.get("_metadata") if type(state) is dict else None
            if isinstance(metadata, dict) and all(type(version) is dict for version in metadata.values()):
                target._metadata = metadata  # type: ignore[attr-defined]  # of Module.state_dict: versions
        elif not isinstance(target, Tensor):  # whose attributes are of no interest
            raise MalformedError("it sets the state of what has none")


class Unfinished:
    """Something that a pickle makes in two steps."""

    def __init__(self) -> None:
        self.places: list[int] = []  # in the memo

    def finish(self, unpickler: SafeUnpickler, state: Any) -> Any:
        """What it becomes with its state; raises on a state that makes no sense."""
        raise NotImplementedError


_PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_IGNORED = {"PROTO", "FRAME", "STOP", "READONLY_BUFFER"}
_Step = Callable[[SafeUnpickler, Any], None]
_STEPS: dict[str, _Step] = {
    "EMPTY_LIST": lambda self, _: self.stack.append([]),
    "EMPTY_DICT": lambda self, _: self.stack.append({}),
    "EMPTY_SET": lambda self, _: self.stack.append(set()),
    "LIST": lambda self, _: self._gather(list),
    "TUPLE": lambda self, _: self._gather(tuple),
    "FROZENSET": lambda self, _: self._gather(lambda items: frozenset(map(key_of, items))),
    "TUPLE1": lambda self, _: self._tuple(1),
    "TUPLE2": lambda self, _: self._tuple(2),
    "TUPLE3": lambda self, _: self._tuple(3),
    "APPEND": lambda self, _: self._append_all([self.stack.pop()]),
    "APPENDS": lambda self, _: self._append_all(self._pop_mark()),
    "SETITEM": lambda self, _: self._set_all([self.stack.pop(), self.stack.pop()][::-1]),
    "SETITEMS": lambda self, _: self._set_all(self._pop_mark()),
    "DUP": lambda self, _: self.stack.append(self.stack[-1]),
    "POP_MARK": SafeUnpickler._pop_all,
    "MEMOIZE": lambda self, _: self._put(len(self.memo)),
    "MARK": SafeUnpickler._mark,
    "POP": SafeUnpickler._pop,
    "DICT": SafeUnpickler._dict,
    "ADDITEMS": SafeUnpickler._add_all,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), SafeUnpickler._get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), SafeUnpickler._put),
    "GLOBAL": SafeUnpickler._global,
    "STACK_GLOBAL": SafeUnpickler._stack_global,
    "INST": SafeUnpickler._inst,
    "OBJ": SafeUnpickler._obj,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), SafeUnpickler._reduce),
    "NEWOBJ_EX": SafeUnpickler._newobj_ex,
    "BINPERSID": SafeUnpickler._persistent,
    "BUILD": SafeUnpickler._build,
}
