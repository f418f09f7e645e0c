"""Fingerprints of data: the same bytes and labels, and nothing else, give the same one."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from alphatune.core.hashing import files_sha256
from alphatune.data.datasets import open_data
from alphatune.data.fingerprint import fingerprint, tensors_sha256


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def of(data: Path, notes: Path | None = None) -> str:
    found = fingerprint(open_data(data), notes)
    assert found
    return found


def test_a_folder(folder: Path) -> None:
    before = of(folder)
    assert of(folder) == before
    image = folder / "bee" / "003.png"
    data = image.read_bytes()
    os.utime(image)
    assert of(folder) == before  # by content, not by time
    image.write_bytes(data + b"\0")
    assert of(folder) != before
    image.write_bytes(data)
    assert of(folder) == before
    (folder / "bee").rename(folder / "zebra")  # another label
    assert of(folder) != before


def test_only_the_examples_that_are_used_count(folder: Path) -> None:
    examples = open_data(folder)
    some = examples.take(np.arange(5))
    before = fingerprint(some)
    assert before != fingerprint(examples)
    (folder / "dog" / "000.png").write_bytes(b"not among the five")
    assert fingerprint(open_data(folder).take(np.arange(5))) == before


def test_an_archive(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "images")
    before = of(archive)
    assert of(archive) == before
    with archive.open("r+b") as file:
        file.seek(700)
        byte = file.read(1)
        file.seek(700)
        file.write(bytes([byte[0] ^ 1]))
    assert of(archive) != before


def test_notes_spare_reading_what_has_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, notes = tmp_path / "data", tmp_path / "notes"
    file.write_bytes(b"abc")
    first = files_sha256([str(file)], notes)
    assert not notes.exists()  # written to a moment ago: it may be written to again within the same tick
    later = time.time_ns() + 3 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert files_sha256([str(file)], notes) == first
    (note,) = notes.iterdir()
    note.write_text("f" * 64)
    assert files_sha256([str(file)], notes) == "f" * 64  # the note was read, the file was not
    note.write_text("damaged")
    assert files_sha256([str(file)], notes) == first
    file.write_bytes(b"abd")
    assert files_sha256([str(file)], notes) != first


def test_tensors() -> None:
    a = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}
    before = tensors_sha256(a.items())
    assert tensors_sha256({k: v.clone() for k, v in a.items()}.items()) == before
    for changed in (
        a | {"w": a["w"].view(3, 2)},
        a | {"w": a["w"].double()},
        a | {"n": torch.tensor(4)},
        a | {"w": torch.nextafter(a["w"], torch.tensor(9.0))},
        {"v": a["w"], "n": a["n"]},
    ):
        assert tensors_sha256(changed.items()) != before
    assert tensors_sha256(
        {"w": a["w"].to(memory_format=torch.contiguous_format).t().t(), "n": a["n"]}.items()
    )
    assert tensors_sha256([("h", torch.ones(2, dtype=torch.bfloat16))])
