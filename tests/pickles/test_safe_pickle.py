"""Attacks on the reader of pickles itself: programs that no pickler writes."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

from alphatune.core.errors import CheckpointError
from alphatune.models.checkpoint_content import read_content
from alphatune.models.checkpoints import read_checkpoint
from alphatune.models.pickled_module import state_dict_of
from alphatune.pickles.pickle_records import Global, Record, key_of
from alphatune.pickles.pickled_values import BUILDERS, Storage
from alphatune.pickles.torch_file import read_stream

EVENTS = (
    "pickle.find_class",
    "os.system",
    "exec",
    "compile",
    "import",
    "subprocess.Popen",
    "os.exec",
    "open",
)
_watching: list[str] | None = None


def _audit(event: str, _: object) -> None:
    if _watching is not None and event in EVENTS:
        _watching.append(event)


sys.addaudithook(_audit)


@pytest.fixture
def nothing_runs() -> Iterator[None]:
    """What Python does while a pickle in memory is read: it looks nothing up, imports, opens and runs nothing."""
    global _watching
    _watching = []
    try:
        yield
        assert _watching == []
    finally:
        _watching = None


def read(program: bytes) -> object:
    """What a pickle gives; None where it is refused, within seconds."""
    started = time.process_time()
    try:
        return read_stream(io.BytesIO(program), len(program))[0]
    except Exception:  # read_content makes one error of all of them
        return None
    finally:
        assert time.process_time() - started < 5


def call(name: str, *args: object, opcode: bytes = b"R", then: bytes = b"") -> bytes:
    """A program that calls a name, written ``module name``, with plain values."""
    inside = pickle.dumps(args, protocol=2)[2:-1]
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + inside + opcode + then + b"."


VALUES = (None, True, 0, -1, 2**70, 1.5, "latin1", "f4", b"x", (), (1, 2), [1], [[1, 2]], {"a": 1}, {1})


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("name", list(BUILDERS))
def test_what_is_built_of_wrong_arguments_is_harmless(name: str) -> None:
    for count in range(9):
        for value in VALUES:
            found = read(call(name, *[value] * count))
            assert not isinstance(found, torch.Tensor) or found.numel() < 100
    for opcode in (b"\x81", b"}\x92", b"Nb"):
        read(call(name, opcode=opcode))


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    "name",
    [
        "posix system", "builtins eval", "builtins getattr", "torch load", "torch._utils _rebuild_tensor_v2.__globals__",
        "torch _utils._rebuild_tensor_v2", "collections OrderedDict.__init__", "os system.__call__",
        " ", "torch._utils _rebuild_qtensor", "torch._utils _rebuild_sparse_tensor", "copyreg __newobj_ex__",
        "operator attrgetter", "functools partial", "numpy.core.multiarray fromfile", "numpy memmap",
        "torch.storage UntypedStorage.from_file", "torch.jit load", "torch.serialization _get_layout",
    ],
)  # fmt: skip
@pytest.mark.parametrize("opcode", [b"R", b"\x81", b"}\x92"])
def test_other_names_become_records(name: str, opcode: bytes) -> None:
    found = read(call(name, "echo", opcode=opcode))
    assert isinstance(found, Record)
    assert found.name == name.replace(" ", ".")
    assert found.args == ("echo",)


@pytest.mark.usefixtures("nothing_runs")
def test_a_name_by_itself_is_a_name() -> None:
    found = read(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.")
    assert isinstance(found, Global)
    assert not callable(found)
    assert not callable(read(call("posix system")))


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    "program",
    [
        b"\x82\x01.", b"\x83\x01\0.", b"\x84\x01\0\0\0.",  # extension registry
        b"\x97.", b"Pposix\n.", b"X\x01\0\0\0aQ.",  # buffers and persistent ids
        b"K\x01)R.", b"\x8c\x06system)R.", b"})R.", b"])\x81.",  # calls of what is no name
        b"(K\x01o.", b"cposix\nsystem\nK\x01R.",
        b"]K\x01b.", b"}}b.", b"K\x01}b.", b"cposix\nsystem\n}b.",  # states of what has none
        b"cposix\nsystem\nK\x01a.", b"K\x01K\x02K\x03s.", b"]K\x01K\x02s.", b"}K\x01a.", b"](K\x01\x90.",
        b"a.", b"s.", b"b.", b"R.", b"1.", b"t.", b"e.", b"u.", b"h\x01.", b"q\x01.", b"\x94.", b"2.", b".", b"",
        b"\x85.", b"K\x01\x87.", b"(K\x01d.", b"}(K\x01u.",
        b"T\xff\xff\xff\x7fab.", b"B\xff\xff\xff\xffab.", b"\x8e" + b"\xff" * 7 + b"\x7fab.",
        b"\x96" + b"\xff" * 7 + b"\x7fab.", b"\x8d" + b"\0\0\0\x80\0\0\0\0ab.", b"\x8b\xff\xff\xff\x7fab.",
        b"\x8b\xff\xff\xff\xff.", b"I" + b"9" * 10_000 + b"\n.",
    ],
)  # fmt: skip
def test_instructions_that_make_no_sense_are_refused(program: bytes) -> None:
    assert read(program) is None
    assert read(b"\x80\x04" + program) is None


@pytest.mark.usefixtures("nothing_runs")
def test_what_grows_beyond_the_file_is_refused() -> None:
    fill = b"(" + b"N" * 100_000 + b"l" + b"q\0"  # a list in the memo
    for copy in (b"h\0\x85R", b"h\0\x85\x81"):
        for name in (b"builtins\nlist", b"builtins\nset", b"collections\nOrderedDict", b"torch\nSize"):
            step = b"c" + name + b"\n" + copy + b"0"
            assert read(b"\x80\x02" + fill + step * 10_000 + b".") is None
    data = pickle.dumps("x" * 1_000_000, protocol=2)[2:-1] + b"q\0"
    step = b"c_codecs\nencode\nh\0\x85R0"
    assert read(b"\x80\x02" + data + step * 10_000 + b".") is None


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("wrap", [b"\x85", b"\x86", b"l"])
def test_depth_overflows_no_stack(wrap: bytes) -> None:
    """Hashing or printing such a tuple would end the process, or take for ever."""
    deep = b"()" if wrap != b"l" else b"]"
    step = {b"\x85": b"\x85", b"\x86": b"2\x86", b"l": b"q\0(h\0l"}[wrap]
    program = deep[-1:] + step * 100_000
    found = read(b"\x80\x02}" + program + b"K\x01s.")
    assert found is None or all(isinstance(key, Record) for key in found)  # type: ignore[attr-defined]
    read(b"\x80\x02(" + program + b"\x91.")
    read(b"\x80\x02cposix\nsystem\n" + program + b"\x85R.")


def test_only_what_is_quick_to_hash_is_a_key() -> None:
    for value in ("a", 1, None, (1, "a"), torch.float32):
        assert key_of(value) is value
    for value in (2**70, ((1,),), torch.zeros(1), frozenset(), (1,) * 1000, OrderedDict()):
        assert isinstance(key_of(value), Record)


def saved(storage: torch.UntypedStorage | torch.TypedStorage | torch.Tensor, *args: object) -> object:
    class Rebuilt:
        def __reduce__(self) -> tuple:
            kept = storage.untyped_storage() if isinstance(storage, torch.Tensor) else storage
            typed = torch.TypedStorage(wrap_storage=kept, dtype=torch.float32, _internal=True)  # type: ignore[arg-type]
            return torch._utils._rebuild_tensor_v2, (typed, *args)

    return Rebuilt()


BEYOND = {
    "offset": (1, (4,), (1,)),
    "offset beyond": (5, (1,), (1,)),
    "negative offset": (-1, (2,), (1,)),
    "stride": (0, (2,), (4,)),
    "huge stride": (0, (2, 2), (2**62, 2**62)),
    "negative stride": (3, (4,), (-1,)),
    "size": (0, (5,), (1,)),
    "huge size": (0, (2**62, 2**62), (1, 1)),
    "repeated without end": (0, (2**50,), (0,)),
    "negative sizes": (0, (-2, -2), (1, 1)),
    "dimensions": (0, (2, 2), (1,)),
    "floats": (0, (2.0,), (1,)),
    "booleans": (0, (True,), (1,)),
    "text": (0, "4", (1,)),
    "many dimensions": (0, (1,) * 100, (1,) * 100),
    "many huge dimensions": (0, (2**62,) * 60, (0,) * 60),
    "no offset": (None, (1,), (1,)),
}


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", list(BEYOND))
def test_no_memory_beyond_a_storage_is_read(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / "x.pth"
    write({"w": saved(torch.arange(4.0), *BEYOND[name], False, OrderedDict())}, path, how)
    with pytest.raises(CheckpointError, match="corrupt"):
        read_content(path)


def write(content: object, path: Path, how: str) -> None:
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_views_within_a_storage_are_what_they_were(tmp_path: Path, how: str) -> None:
    base = torch.randn(10)
    z = torch.randn(3, dtype=torch.complex64)
    content = {
        "slice": base[2:7:2], "transposed": torch.randn(2, 3).t(), "expanded": base[:3].expand(4, 3), "all": base,
        "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0), "half": base.half(), "bfloat": base.bfloat16(),
        "complex": z, "conjugate": z.clone().conj(), "negative": z.clone().conj().imag, "bool": base > 0,
        "float8": base.to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(base), "last": base[9:],
    }  # fmt: skip
    unsigned = torch.tensor([1, 65535], dtype=torch.uint16)
    with contextlib.suppress(KeyError):  # torch 2.4 cannot save it
        pickle.dumps(unsigned)
        content["uint16"] = unsigned
    path = tmp_path / "x"
    write(content, path, how)
    found = read_content(path).value
    assert found.keys() == content.keys()
    for key, wanted in content.items():
        assert found[key].dtype == wanted.dtype, key
        if key == "float8":  # which torch 2.4 does not compare
            assert torch.equal(found[key].float(), wanted.float())
        else:
            assert torch.equal(found[key], wanted), key
    if how != "pickle":  # which writes each tensor's storage for itself
        assert found["slice"].untyped_storage().data_ptr() == found["all"].untyped_storage().data_ptr()


def test_memory_that_is_not_filled_yet_is_not_copied(tmp_path: Path) -> None:
    """In the legacy format data follow the pickle: what is computed from them in it would be of garbage."""

    rebuild = getattr(torch._utils, "_rebuild_device_tensor_from_cpu_tensor", None)
    if rebuild is None:
        pytest.skip(f"torch {torch.__version__} saves no tensor of a device so")

    class OnDevice:
        def __reduce__(self) -> tuple:
            return rebuild, (torch.ones(1000), torch.float64, "cpu", False)

    write({"w": OnDevice(), "v": torch.ones(3)}, tmp_path / "x", "legacy")
    found = read_content(tmp_path / "x").value
    assert isinstance(found["w"], Record)
    assert torch.equal(found["v"], torch.ones(3))


def rewritten(path: Path, change: dict[str, bytes], extra: tuple[tuple[str, bytes], ...] = ()) -> None:
    """A checkpoint's zip file with other parts, and valid checksums."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(parts)).partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, change.get(name.removeprefix(root + "/"), data))
        for name, data in extra:
            archive.writestr(f"{root}/{name}", data)


def storage_of(
    key: object, count: object, kind: bytes = b"torch\nFloatStorage", name: str = "storage"
) -> bytes:
    """A pickle that is one storage."""
    values = [pickle.dumps(each, protocol=2)[2:-1] for each in (key, "cpu", count)]
    return (
        b"\x80\x02(" + pickle.dumps(name, protocol=2)[2:-1] + b"c" + kind + b"\n" + b"".join(values) + b"tQ."
    )


@pytest.mark.parametrize(
    ("key", "count"),
    [
        ("../data.pkl", 1), ("0/../../data.pkl", 1), ("/etc/passwd", 1), ("", 1), ("1", 4), ("0", 5), ("0", 3),
        ("0", -1), ("0", 2**70), ("0", 4.0), (None, 4), (("0",), 4), ("0\0", 4), ("٠", 4),
    ],
)  # fmt: skip
def test_storages_that_are_not_there(tmp_path: Path, key: object, count: object) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.arange(4.0)}, path)
    rewritten(path, {"data.pkl": storage_of(key, count)})
    with pytest.raises(CheckpointError, match="corrupt"):
        read_content(path)
    rewritten(path, {"data.pkl": storage_of("0", 4)})
    assert isinstance(read_content(path).value, Storage)


def test_storages_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.arange(4.0)}, path)
    rewritten(path, {"data.pkl": storage_of("0", 4, b"posix\nsystem")})
    assert isinstance(read_content(path).value, Record)
    rewritten(path, {"data.pkl": storage_of("0", 4, name="module")})
    with pytest.raises(CheckpointError, match="corrupt"):
        read_content(path)


def test_zip_files_that_say_two_things(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"

    def fresh() -> None:
        torch.save({"state_dict": tiny().state_dict()}, path)

    fresh()
    with pytest.warns(UserWarning, match="Duplicate"):
        rewritten(path, {}, (("data.pkl", b"\x80\x02N."),))
    with pytest.raises(CheckpointError, match="same name"):
        read_content(path)
    fresh()
    rewritten(path, {"byteorder": b"big"})
    with pytest.raises(CheckpointError, match="big-endian"):
        read_content(path)
    fresh()
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/bomb", bytes(100_000_000))
    with pytest.raises(CheckpointError, match="beyond its size"):
        read_content(path)
    fresh()  # every entry of the directory points to the first one's data
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    first = struct.unpack_from("<I", data, at + 42)[0]
    while (at := data.find(b"PK\1\2", at + 1)) > 0:
        struct.pack_into("<I", data, at + 42, first)
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read_content(path)


PICKLE = pickle.dumps(
    {
        "state_dict": tiny().state_dict(),
        "n": torch.zeros(3).numpy(),
        "s": {1, (2, 3)},
        "m": tiny(),
        "h": [1.5] * 9,
    },
    protocol=2,
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    places=st.lists(st.integers(0, len(PICKLE) - 1), min_size=1, max_size=6),
    with_=st.binary(min_size=1, max_size=6),
    insert=st.booleans(),
)
def test_damaged_programs_do_nothing_else(places: list[int], with_: bytes, insert: bool) -> None:
    """Whatever comes of them, it is plain data."""
    damaged = bytearray(PICKLE)
    for place in places:
        damaged[place : place if insert else place + len(with_)] = with_
    found = read(bytes(damaged))
    if isinstance(found, dict):
        state_dict_of(found.get("m"))


def module(name: str, **state: object) -> Record:
    record = Record(name)
    record.state = {"_parameters": {}, "_buffers": {}, "_modules": {}, **state}
    return record


def test_modules_that_contain_themselves_come_to_an_end() -> None:
    one = module("a.A")
    one.state["_modules"] = {"again": one}
    with pytest.raises(CheckpointError, match="contains itself"):
        state_dict_of(one)
    two = module("a.A", _parameters={"w": torch.zeros(1)})
    for _ in range(60):
        two = module("a.A", _modules={"a": two, "b": two})
    with pytest.raises(CheckpointError, match="too many parts"):
        state_dict_of(two)
    with pytest.raises(CheckpointError, match="impossible name"):
        state_dict_of(module("a.A", _parameters={"w" * 5000: torch.zeros(1)}))


def test_parts_of_modules_that_are_none() -> None:
    state_dict_of(module("a.A", _parameters=[1], _modules={1: 2, "x": 3, "y": Record("z")}))
    found = state_dict_of(
        module(
            "a.A",
            _parameters={"w": torch.zeros(1), "none": None, "odd": Record("x"), 3: torch.zeros(1)},
            _buffers={"b": torch.zeros(1), "mask": torch.zeros(1)},
            _non_persistent_buffers_set={"mask"},
        )
    )
    assert found is not None
    assert list(found) == ["w", "b"]


def test_the_reader_gives_what_torch_gives(resnet20_checkpoint: Path) -> None:
    wanted = torch.load(resnet20_checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    found = read_checkpoint(resnet20_checkpoint).containers[0].tensors
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
