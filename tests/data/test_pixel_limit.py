"""Photographs above PIL's limit: named, with their size and what reads them; and nobody else's limit changes."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from test_cli import command

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.data.datasets import open_data
from alphatune.data.decoding import read_image
from alphatune.data.loading import Batches
from alphatune.data.pixel_limit import TooLargeError
from alphatune.data.preprocessing import Preprocessing


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
    assert before == Image.MAX_IMAGE_PIXELS


def png(width: int, height: int) -> bytes:
    """A black image of any size, packed small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images of 12×12, and one of 40×30."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for label in "abc":
        (root / label).mkdir()
        for number in range(4):
            pixels = generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    Image.fromarray(generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(root / "b" / "large.png")
    return root


@pytest.mark.parametrize("decoder", ["pil", "torchcodec"])
def test_it_is_refused_before_it_is_decoded(decoder: str) -> None:
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec")
    torn = png(20_000, 10_000)[:60]  # whoever decodes it fails in another way
    with pytest.raises(
        TooLargeError, match="20000 × 10000 are 200000000 pixels, more than 178956970"
    ) as refused:
        read_image(torn, "RGB", decoder)
    assert "max_pixels=200000000" in refused.value.hint
    with pytest.raises(TooLargeError):
        read_image(png(20, 10), "RGB", decoder, max_pixels=199)
    assert read_image(png(20, 10), "RGB", decoder, max_pixels=200).size == (20, 10)


@pytest.mark.parametrize("most", [None, 178_956_970, 300_000_000])
def test_pil_neither_warns_nor_refuses_below(most: int | None) -> None:
    """Of 90 megapixels PIL warns."""
    assert read_image(png(9000, 10_000), "L", max_pixels=most).size == (9000, 10_000)
    with pytest.raises(OSError, match="truncated"):
        read_image(png(20_000, 10_000)[:60], "L", max_pixels=200_000_000)


def test_what_the_caller_set_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert read_image(png(10, 10), "L").size == (10, 10)
    with pytest.raises(TooLargeError, match="more than 100"):
        read_image(png(11, 10), "L")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(png(20, 10), "L").size == (20, 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_a_folder(folder: Path, workers: int) -> None:
    examples = open_data(str(folder))
    how = Preprocessing((3, 12, 12), crop_pct=1.0)

    def read(most: int) -> int:
        batches = Batches(examples.at_most(most), how, 4, torch.device("cpu"), workers)
        return sum(len(batch) for batch in batches)

    assert read(1200) == 13
    with pytest.raises(
        DataError, match=r"unreadable image b/large.png: 40 × 30 are 1200 pixels, more than 1199"
    ):
        read(1199)
    with pytest.raises(ConfigurationError):
        examples.at_most(0)


def test_a_data_set_that_opens_images_itself(folder: Path) -> None:
    """Where a data set's own code decodes, PIL refuses, and warns nobody."""
    from dataclasses import replace

    def load(index: int) -> tuple[Image.Image, str]:
        return Image.open(files[index]).convert("RGB"), files[index].name

    files = sorted(folder.rglob("*.png"))
    examples = replace(open_data(str(folder)), load=load)
    how = Preprocessing((3, 12, 12), crop_pct=1.0)
    for most in (1199, 599):
        with pytest.raises(DataError, match=r"large.png|1200 pixels"):
            list(Batches(examples.at_most(most), how, 4, torch.device("cpu"), 0))
    assert len(list(Batches(examples.at_most(1200), how, 4, torch.device("cpu"), 0))) == 4


NET = "alphatune.models.cifar:resnet20"
SHAPE = ["--model-kwargs", "num_classes=3", "--input-size", 16, "--crop-pct", 1, "--mean", 0.5, "--std", 0.25]


@pytest.mark.parametrize("job", ["evaluate", "tune", "inspect", "train"])
def test_on_the_command_line(run: Run, folder: Path, tmp_path: Path, job: str) -> None:
    words: list[object] = [job, NET, "--data", folder, *SHAPE, "--workers", 0]
    words += ["--no-pretrained"] if job in ("evaluate", "tune") else []
    if job == "train":
        words += ["--split", "x", "--epochs", 1, "-o", tmp_path / "out"]
        words = [w for w in words if w not in ("--split", "x")] + ["--val-fraction", 0.25, "--batch-size", 4]
    if job == "tune":
        words += ["--alphas", "0,0.1", "-o", tmp_path / "out"]
    code, _, err = run(*words, "--max-pixels", 1199)
    assert code == 3
    assert "b/large.png: 40 × 30 are 1200 pixels, more than 1199 (--max-pixels 1200 reads it" in err
    if job in ("evaluate", "inspect"):
        code, _, err = run(*words, "--max-pixels", 1200)
        assert code == 0, err


def test_skipped_it_is_named(run: Run, folder: Path) -> None:
    words: list[object] = [
        "evaluate",
        NET,
        "--no-pretrained",
        "--data",
        folder,
        *SHAPE,
        "--workers",
        0,
        "--format",
        "json",
    ]
    code, out, _ = run(*words, "--max-pixels", 1199, "--on-bad-image", "skip")
    assert code == 0
    data = json.loads(out)["data"]
    assert data["n"] == 12
    assert [skipped["name"] for skipped in data["skipped"]] == ["b/large.png"]


@pytest.mark.slow
def test_from_a_configuration_and_in_a_process_of_its_own(run: Run, tmp_path: Path) -> None:
    """Nothing of PIL on stderr; 90 megapixels are read, 200 are refused, as ever."""
    photographs = tmp_path / "photographs"
    for name, size in (("a/1.png", (9000, 10_000)), ("b/2.png", (10, 10)), ("c/3.png", (20_000, 10_000))):
        (photographs / name).parent.mkdir(parents=True)
        (photographs / name).write_bytes(png(*size) if size[0] < 20_000 else png(*size)[:80])
    (tmp_path / "run.toml").write_text("max_pixels = 80000000\n")
    words = [
        "evaluate",
        NET,
        "--no-pretrained",
        "--data",
        photographs,
        *SHAPE,
        "--workers",
        1,
        "--batch-size",
        1,
    ]
    done = command(*words)
    assert done.returncode == 3
    assert (
        "c/3.png: 20000 × 10000 are 200000000 pixels, more than 178956970 (--max-pixels 200000000"
        in done.stderr
    )
    assert "DecompressionBomb" not in done.stderr
    code, _, err = run(*words, "--config", tmp_path / "run.toml")
    assert code == 3
    assert "a/1.png: 9000 × 10000 are 90000000 pixels, more than 80000000" in err
