"""What a file is, by its content: read, or refused by its name with the next step."""

from __future__ import annotations

import bz2
import collections
import datetime
import enum
import functools
import gzip
import io
import json
import lzma
import os
import pathlib
import pickle
import re
import shutil
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from conftest import TINY, Run
from PIL import Image
from tiny import tiny
from torch import nn

from alphatune.core.errors import AlphatuneError, CheckpointError, UntrustedError
from alphatune.models.checkpoint_content import read_content
from alphatune.models.checkpoint_files import files_of_checkpoint
from alphatune.models.checkpoint_loading import load_weights_
from alphatune.models.checkpoints import Checkpoint, read_checkpoint
from alphatune.pickles.pickle_records import Record


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return tiny().state_dict()


def pickled(content: object, how: str = "zip", protocol: int = 2) -> bytes:
    if how == "pickle":
        return pickle.dumps(content, protocol=protocol)
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    return file.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def npz(arrays: dict[str, np.ndarray], save: Callable[..., None] = np.savez) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def module_state() -> nn.Module:
    model = tiny()
    model.load_state_dict(weights())
    return model


def is_read(path: Path) -> Checkpoint:
    """The file holds the weights, and they load."""
    checkpoint = read_checkpoint(path)
    wanted = weights()
    model = tiny()
    load_weights_(model, checkpoint)
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
    assert not checkpoint.unsafe_pickle
    return checkpoint


ZIP, LEGACY, PICKLE = (pickled({"state_dict": weights()}, how) for how in ("zip", "legacy", "pickle"))
READ: dict[str, Callable[[], bytes]] = {
    "zip": lambda: ZIP,
    "legacy": lambda: LEGACY,
    "pickle": lambda: PICKLE,
    "pickle, protocol 5": lambda: pickled(weights(), "pickle", 5),
    "pickle, protocol 4": lambda: pickled(weights(), "pickle", 4),
    "arrays": lambda: pickled({"model": {k: v.numpy() for k, v in weights().items()}, "__author__": "x"}, "pickle"),
    "arrays, protocol 5": lambda: pickled({k: v.numpy() for k, v in weights().items()}, "pickle", 5),
    "arrays, protocol 0": lambda: pickled({k: v.numpy() for k, v in weights().items()}, "pickle", 0),
    "arrays, big-endian": lambda: pickled(
        {k: v.numpy().astype(v.numpy().dtype.newbyteorder(">")) for k, v in weights().items()}
    ),
    "arrays, Fortran": lambda: pickled({k: np.array(v.numpy(), order="F") for k, v in weights().items()}),
    "arrays in a zip": lambda: pickled({k: v.numpy() for k, v in weights().items()}),
    "safetensors": lambda: safetensors.torch.save(weights()),
    "npz": lambda: npz({k: v.numpy() for k, v in weights().items()}),
    "npz, compressed": lambda: npz({k: v.numpy() for k, v in weights().items()}, np.savez_compressed),
    "gzip": lambda: gzip.compress(ZIP),
    "gzip of safetensors": lambda: gzip.compress(safetensors.torch.save(weights())),
    "bzip2": lambda: bz2.compress(LEGACY),
    "xz": lambda: lzma.compress(ZIP),
    "tar": lambda: tarred({"models/best.pth": ZIP, "models/._best.pth": b"junk"}),
    "tar.gz": lambda: tarred({"best.pth": LEGACY}, "w:gz"),
    "zip around one": lambda: zipped({"best.pth": ZIP, "__MACOSX/._best.pth": b"junk"}),
    "zip that was packed again": lambda: repacked(ZIP),
    "module": lambda: pickled(module_state()),
    "module, legacy": lambda: pickled(module_state(), "legacy"),
    "module, half": lambda: pickled({"model": module_state(), "epoch": 3}),
    "data parallel": lambda: pickled(nn.DataParallel(module_state())),
    "traced": lambda: traced(module_state()),
}  # fmt: skip


def repacked(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def traced(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model.eval(), torch.zeros(1, 3, 12, 12)), file)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("suffix", ["", ".pth", ".safetensors", ".json"])
@pytest.mark.parametrize("kind", READ)
def test_what_is_read_whatever_its_ending(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(READ[kind]())
    is_read(path)


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "HTML page, titled 'Sign in'", "again"),
    "page with a mark": (b"\xef\xbb\xbf  <HTML lang=en>", "HTML page", "again"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML", "again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs", "git lfs pull"),
    "JSON": (b'{"lr": 0.1, "epochs": 90}', "JSON", "weights"),
    "YAML": (b"lr: 0.1\nepochs: 90\n", "YAML", "weights"),
    "text": (b"Could not find that file, sorry.", "text", "weights"),
    "prose like a pickle": (b"checkpoints of this model are kept elsewhere.", "text", "weights"),
    "UTF-16": ("lr: 0.1\n".encode("utf-16"), "text", "weights"),
    "address": (b"https://example.com/weights.pth\n", "web address", "download"),
    "program": (b"import torch\n\ndef build():\n    pass\n", "source", "MODEL"),
    "PNG": (image("PNG"), "PNG", "DATA"),
    "JPEG": (image("JPEG"), "JPEG", "DATA"),
    "BMP": (image("BMP"), "BMP", "DATA"),
    "WebP": (image("WEBP"), "WebP", "DATA"),
    "GIF": (image("GIF"), "GIF", "DATA"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:\x9a\x01", "ONNX", "exported"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5", "state dict"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(100), "TensorFlow Lite", "state dict"),
    "one array": (npz({"a": np.zeros(3)})[:0] or b"\x93NUMPY\1\0" + bytes(100), "one NumPy array", "npz"),
    "PDF": (b"%PDF-1.7", "PDF", "again"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd", "unpack"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7-Zip", "unpack"),
    "empty": (b"", "empty file", "again"),
    "zeros": (bytes(5000), "zeros", "again"),
    "noise": (bytes(range(1, 256)) * 9, "no format", "PyTorch"),
    "empty zip": (b"PK\5\6" + bytes(18), "empty zip", "again"),
    "tar of images": (tarred({"a.png": b"1", "b.png": b"2"}), "tar archive of 2 files: a.png, b.png", "unpack"),
    "zip of files": (zipped({"config.json": b"{}", "model.weights.h5": b"1"}), "zip archive of 2 files", "unpack"),
    "exported program": (
        zipped({"m/serialized_exported_program.json": b"{}", "m/version": b"3"}), "torch.export", "load",
    ),
    "gzip of a page": (gzip.compress(b"<!DOCTYPE html><html>"), "HTML page", "again"),
    "archives without end": (
        gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"")))), "archive in an archive", "unpack",
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".pth", ".safetensors"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, kind: str, suffix: str) -> None:
    data, name, hint = REFUSED[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    for unsafe in (False, True):
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path, unsafe_pickle=unsafe)
        assert str(path) in error.value.message
        assert name in error.value.message
        assert hint in error.value.hint
        assert "\n" not in str(error.value)
        assert "run" not in error.value.message.replace(str(path), "")


@pytest.mark.parametrize(
    "kind", ["zip", "legacy", "pickle", "safetensors", "npz", "gzip", "tar", "tar.gz", "traced"]
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_downloads_that_were_cut_short(tmp_path: Path, kind: str) -> None:
    data, path = READ[kind](), tmp_path / "x"
    for keep in range(1, len(data) - 1, len(data) // 40):
        path.write_bytes(data[:keep])
        if kind == "tar" and keep > len(ZIP) + 512:
            continue  # nothing but the mark at its end was cut
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            read_checkpoint(path)
    path.write_bytes(ZIP[: len(ZIP) // 2])
    with pytest.raises(CheckpointError, match="incomplete"):
        read_checkpoint(path)


def test_archives_that_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(200_000_000), compresslevel=1))
    with pytest.raises(CheckpointError, match="larger by far"):
        read_checkpoint(path)


def test_nothing_is_left_of_what_was_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "x").write_bytes(tarred({"../../outside.pth": gzip.compress(ZIP)}))
    is_read(tmp_path / "x")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path.parent.parent / "outside.pth").exists()


def sharded(folder: Path, how: str) -> Path:
    """Two files of weights, and their index."""
    state = list(weights().items())
    halves = {"a": dict(state[: len(state) // 2]), "b": dict(state[len(state) // 2 :])}
    names = {}
    for name, half in halves.items():
        file = folder / f"{name}.{how}"
        if how == "safetensors":
            safetensors.torch.save_file(half, file)
        else:
            torch.save(half, file)
        names |= dict.fromkeys(half, file.name)
    index = folder / f"model.{how}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return index


@pytest.mark.parametrize("how", ["safetensors", "bin"])
def test_an_index_of_several_files(tmp_path: Path, how: str) -> None:
    index = sharded(tmp_path, how)
    whole = is_read(index)
    assert is_read(tmp_path).sha256 == whole.sha256
    assert [file.name for file in files_of_checkpoint(tmp_path)] == [index.name, f"a.{how}", f"b.{how}"]
    (tmp_path / f"b.{how}").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"missing: b\.{how}"):
        read_checkpoint(index)
    shutil.copy(tmp_path / f"a.{how}", tmp_path / f"b.{how}")
    with pytest.raises(CheckpointError, match="lacks"):
        read_checkpoint(index)


def test_the_hash_of_an_index_is_of_all_its_files(tmp_path: Path) -> None:
    index = sharded(tmp_path, "safetensors")
    before = read_checkpoint(index).sha256
    half = safetensors.torch.load_file(tmp_path / "b.safetensors")
    half[next(iter(half))] += 1
    safetensors.torch.save_file(half, tmp_path / "b.safetensors")
    assert read_checkpoint(index).sha256 != before


@pytest.mark.parametrize("name", ["../a.bin", "/etc/passwd", "x/a.bin", "..", "", 3, None, "C:a", "a\\b"])
def test_an_index_that_leads_elsewhere(tmp_path: Path, name: object) -> None:
    index = sharded(tmp_path, "bin")
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="beside it"):
        read_checkpoint(index)


def test_an_index_of_itself_or_of_nothing(tmp_path: Path) -> None:
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"weight_map": {"w": index.name}}))
    with pytest.raises(CheckpointError):
        read_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CheckpointError, match="names no files"):
        read_checkpoint(index)
    index.write_text('{"weight_map": ' + "[" * 100_000)
    with pytest.raises(CheckpointError, match="JSON"):
        read_checkpoint(index)


def test_folders(tmp_path: Path) -> None:
    def refused(hint: str) -> None:
        with pytest.raises(CheckpointError, match="folder without an index") as error:
            read_checkpoint(tmp_path)
        assert hint in error.value.hint

    refused("nothing")
    (tmp_path / "best.pth").write_bytes(ZIP)
    refused("best.pth")
    (tmp_path / "data").mkdir()
    (tmp_path / "data.pkl").touch()
    refused("unpacked")
    (tmp_path / "data.pkl").rename(tmp_path / ".metadata")
    (tmp_path / "__0_0.distcp").touch()
    refused("dcp_to_torch")
    safetensors.torch.save_file(weights(), tmp_path / "model.safetensors")
    is_read(tmp_path)


@pytest.mark.parametrize(
    "url", ["https://example.com/a.pth", "http://x/y", "s3://bucket/a.pth", "gs://b/a", "hf://user/repo/a.bin",
            "hf-hub:/user/x", "file:///etc/passwd"],
)  # fmt: skip
def test_urls(url: str) -> None:
    for path in (url, Path(url)):
        with pytest.raises(CheckpointError, match="is a URL") as error:
            read_checkpoint(path)
        assert "download" in error.value.hint


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such"):
        read_checkpoint(tmp_path / "x")
    with pytest.raises(CheckpointError, match="no such") as error:
        read_checkpoint("somebody/resnet50")
    assert "hf-hub:" in error.value.hint
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_checkpoint(tmp_path / "pipe")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / ("x" * 5000))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(ZIP)

    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match="Permission denied"):
        read_checkpoint(path)


def test_the_command_line_says_so_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_bytes(REFUSED["page"][0])
    for checkpoint in ("https://example.com/a.pth", tmp_path, tmp_path / "page.pth"):
        code, out, err = run("inspect", TINY, "--checkpoint", checkpoint)
        assert (code, out) == (3, "")
        assert err.startswith("error: ")
        assert err.count("\n") <= 2


class Colour(enum.Enum):
    RED = 1


class History:
    """As a framework's logger keeps it."""

    def __init__(self) -> None:
        self.values, self.me = np.arange(3.0), self

    def __reduce__(self) -> tuple:
        return History, (), {"values": self.values, "me": None}, iter([1, 2]), iter([("a", 1)])


class Subclass(torch.Tensor):
    pass


class Config(dict):
    pass


BESIDE = {
    "numpy scalar": (np.float64(91.2), ""),
    "numpy bool": (np.bool_(True), ""),
    "numpy text": (np.str_("a"), "numpy"),
    "numpy objects": (np.array([{}, None]), "numpy.ndarray[object]"),
    "numpy records": (np.zeros(2, [("a", "f4")]), "numpy"),
    "numpy dates": (np.array(["2024-01-01"], "datetime64[D]"), "numpy"),
    "path": (pathlib.PurePosixPath("/data"), "pathlib"),
    "date": (datetime.datetime(2024, 1, 1), "datetime.datetime"),
    "default dict": (collections.defaultdict(list, a=[1]), ""),
    "counter": (collections.Counter("aab"), ""),
    "deque": (collections.deque([1]), "collections.deque"),
    "namespace": (types.SimpleNamespace(lr=1), "types.SimpleNamespace"),
    "loss": (nn.CrossEntropyLoss(torch.ones(4)), "torch.nn.modules.loss.CrossEntropyLoss"),
    "function": (functools.partial(torch.nn.functional.relu, inplace=True), "functools.partial"),
    "class": (torch.optim.SGD, ""),
    "member": ({Colour.RED: Colour.RED}, "Colour"),
    "history": (History(), "History"),
    "subclass of dict": (Config(a=1), "Config"),
    "complex": (1 + 2j, ""),
    "bytes": ([b"x", b"", bytearray(b"x")], ""),
    "sets": ({1, "a"}, ""),
    "range": (slice(1, 2), "slice"),
    "generator": (torch.Generator().get_state(), ""),
    "device": ([torch.device("cuda", 1), torch.Size([1, 2]), torch.float16], ""),
    "sparse": (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    "meta": (torch.zeros(3, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
    "tensor subclass": (torch.zeros(3).as_subclass(Subclass), "Subclass"),
    "optimizer": (torch.optim.Adam(tiny().parameters()).state_dict(), ""),
}


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_stands_beside_the_weights(tmp_path: Path, kind: str, how: str) -> None:
    value, passed_over = BESIDE[kind]
    path = tmp_path / "x"
    path.write_bytes(pickled({"state_dict": weights(), "extra": value}, how))
    checkpoint = is_read(path)
    assert bool(checkpoint.warnings) == bool(passed_over)
    for line in checkpoint.warnings:
        assert passed_over in line
        assert "\n" not in line


def test_what_is_plain_is_what_it_was(tmp_path: Path) -> None:
    plain = {
        "number": np.float32(0.5), "flag": np.bool_(True), "array": np.arange(6).reshape(2, 3), "complex": 1 + 2j,
        "bytes": b"ab", "set": {1, "a"}, "size": torch.Size([1, 2]), "device": torch.device("cuda", 1),
        "dtype": torch.bfloat16, "nested": [(1, [2.5, None, True])], "counter": collections.Counter("aab"),
        "scalar": np.array(3), "empty": np.zeros((0, 2)),
    }  # fmt: skip
    (tmp_path / "x").write_bytes(pickled(plain))
    content = read_content(tmp_path / "x")
    found = content.value
    assert content.passed_over == ()
    for key in plain:
        if isinstance(plain[key], np.ndarray):
            assert torch.equal(found.pop(key), torch.from_numpy(plain[key]))
        else:
            assert found.pop(key) == plain[key]
    assert found == {}


def test_records_keep_what_they_were_made_of(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pickled(History()))
    record = read_content(tmp_path / "x").value
    assert isinstance(record, Record)
    assert record.name.endswith("History")
    assert (record.items, record.entries, record.attributes["me"]) == ([1, 2], {"a": 1}, None)
    assert record.attributes["values"].tolist() == [0, 1, 2]


class Wrapped(nn.Module):
    """Shared parts, a buffer that is not saved, none at all, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.again = self.first
        self.plain = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_parameter("none", None)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = nn.Parameter(self.first[0].weight[:, :, 0, 0].detach()[:, [0, 1, 2, 0]])


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("build", [Wrapped, lambda: torchvision.models.mobilenet_v3_small(num_classes=3)])
def test_a_whole_module_gives_its_state_dict(
    tmp_path: Path, how: str, build: Callable[[], nn.Module]
) -> None:
    model = build()
    (tmp_path / "x").write_bytes(pickled({"model": model}, how))
    found, wanted = read_checkpoint(tmp_path / "x").containers[0].tensors, model.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    model = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval())
    torch.jit.save(model, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    wanted = model.state_dict()
    assert checkpoint.containers[0].tensors.keys() == wanted.keys()
    assert all(torch.equal(checkpoint.containers[0].tensors[key], wanted[key]) for key in wanted)
    (line,) = checkpoint.warnings
    assert "TorchScript" in line
    torch.jit.save(torch.jit.freeze(model), tmp_path / "x")
    with pytest.raises(CheckpointError, match="TorchScript") as error:
        read_checkpoint(tmp_path / "x")
    assert "state dict" in error.value.hint


def test_the_oldest_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(tarred(dict.fromkeys(("sys_info", "pickle", "storages", "tensors"), b"")))
    with pytest.raises(UntrustedError, match=r"before 0\.2"):
        read_checkpoint(tmp_path / "x")


def test_many_names_are_one_short_line(tmp_path: Path) -> None:
    classes = {f"{i}": type(f"C{i}", (), {"__module__": f"package{i}.x"}) for i in range(50)}
    program = b"\x80\x02}(" + b"".join(
        b"X\x02\0\0\0%02dc%s\n%s\n)\x81" % (int(i), c.__module__.encode(), b"N" * 300)
        for i, c in classes.items()
    )
    state = pickle.dumps({"w": torch.zeros(1)}, protocol=2)[2:-1]
    (tmp_path / "x").write_bytes(program + b"X\x0a\0\0\0state_dict" + state + b"u.")
    (line,) = read_checkpoint(tmp_path / "x").warnings
    assert "and 44 more" in line
    assert len(line) < 600 + len(str(tmp_path))


def test_errors_are_ours(tmp_path: Path) -> None:
    """Also of the pickles that torch itself cannot unpickle with consent."""
    (tmp_path / "x").write_bytes(b"\x80\x02cno.such\nmodule\n)R.")
    for unsafe in (False, True):
        with pytest.raises(AlphatuneError) as error:
            read_checkpoint(tmp_path / "x", unsafe_pickle=unsafe)
        assert error.value.exit_code == 3
