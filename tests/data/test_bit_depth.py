"""Pixels of more or fewer than 8 bits: scaled to 8, or refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Run, write_images
from PIL import Image

from alphatune.core.errors import DataError
from alphatune.data.augmented import AugmentedBatches
from alphatune.data.datasets import open_data
from alphatune.data.decoding import read_image
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing

CPU = torch.device("cpu")
DEEP = np.random.default_rng(0).integers(0, 65536, (5, 7, 4)).astype(np.uint16)


def png(pixels: np.ndarray) -> bytes:
    """16 bits a channel; PIL writes grey only."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(
    pixels: np.ndarray, order: str = "<", *, bits: int = 0, samples: int = 1, white: int | None = None,
    planar: int = 1, data: bytes | None = None,
) -> bytes:  # fmt: skip
    """Uncompressed; ``samples`` 1 unsigned, 2 signed, 3 floats; ``white`` 0 where zero is white."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if data is None:
        planes = pixels if planar == 1 else pixels.transpose(2, 0, 1)
        data = planes.astype(pixels.dtype.newbyteorder(order)).tobytes()
    strips = channels if planar == 2 else 1
    tags = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits or pixels.dtype.itemsize * 8] * channels),
        259: ("H", [1]), 262: ("H", [white if white is not None else 1 if channels == 1 else 2]),
        273: ("I", [0] * strips), 277: ("H", [channels]), 278: ("I", [height]),
        279: ("I", [len(data) // strips] * strips), 284: ("H", [planar]), 339: ("H", [samples] * channels),
    }  # fmt: skip
    begin = 8 + 2 + 12 * len(tags) + 4
    outside = sum(size for kind, n in tags.values() if (size := struct.calcsize(kind) * len(n)) > 4)
    tags[273] = ("I", [begin + outside + i * (len(data) // strips) for i in range(strips)])
    entries = more = b""
    for tag, (kind, numbers) in tags.items():
        value = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{order}I", begin + len(more))
        more += value if len(value) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, 3 if kind == "H" else 4, len(numbers)) + place
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + more + data


def read(content: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(read_image(content, mode))


def high(pixels: np.ndarray) -> np.ndarray:
    return (pixels >> 8).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["png", "tiff <", "tiff >", "pgm"])
def test_grey_of_sixteen_bits(kind: str, mode: str) -> None:
    grey = DEEP[..., 0]
    content = {
        "png": png(grey),
        "tiff <": tiff(grey),
        "tiff >": tiff(grey, ">"),
        "pgm": b"P5\n7 5\n65535\n" + grey.astype(">u2").tobytes(),
    }[kind]
    got = read(content, mode)
    np.testing.assert_array_equal(got[..., 0] if mode == "RGB" else got, high(grey))
    if mode == "RGB":
        assert (got == got[..., :1]).all()


@pytest.mark.parametrize("kind", ["png", "tiff <", "tiff >", "ppm"])
def test_colour_of_sixteen_bits(kind: str) -> None:
    colour = DEEP[..., :3]
    content = {
        "png": png(colour),
        "tiff <": tiff(colour),
        "tiff >": tiff(colour, ">"),
        "ppm": b"P6\n7 5\n65535\n" + colour.astype(">u2").tobytes(),
    }[kind]
    if kind != "ppm":  # PIL scales these by itself, and rounds
        np.testing.assert_array_equal(read(content), high(colour))
    assert np.abs(read(content).astype(int) - high(colour)).max() <= 1


def test_transparency_of_sixteen_bits() -> None:
    np.testing.assert_array_equal(read(png(DEEP)), high(DEEP[..., :3]))
    np.testing.assert_array_equal(read(png(DEEP[..., :2]))[..., 0], high(DEEP[..., 0]))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_images_that_come_decoded(mode: str) -> None:
    """What a Dataset or a table hands out."""
    grey = DEEP[..., 0]
    image = Image.fromarray(grey.astype(np.int32)) if mode == "I" else Image.frombytes(
        mode, (7, 5), grey.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    )  # fmt: skip
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(read_image(image, "L")), high(grey))


def test_twelve_bits() -> None:
    values = np.array([[0, 4095, 256, 2048], [16, 32, 1, 3000]])
    pairs = zip(values.ravel()[::2].tolist(), values.ravel()[1::2].tolist(), strict=True)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    got = read(tiff(np.zeros((2, 4), np.uint16), bits=12, data=packed), "L")
    np.testing.assert_array_equal(got, values >> 4)


def test_zero_may_be_white() -> None:
    grey = DEEP[..., 0]
    np.testing.assert_array_equal(read(tiff(grey, white=0), "L"), 255 - high(grey))
    eight = high(grey)
    np.testing.assert_array_equal(read(tiff(eight, white=0), "L"), 255 - eight)


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats(order: str) -> None:
    eight = high(DEEP[..., 0])
    np.testing.assert_array_equal(read(tiff((eight / 255).astype(np.float32), order, samples=3), "L"), eight)
    assert read(tiff(np.zeros((5, 7), np.float32), samples=3), "L").max() == 0


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (tiff(DEEP[..., 0].astype(np.float32), samples=3), "floats from"),
        (tiff(np.full((2, 2), -0.1, np.float32), samples=3), "floats from -0.1"),
        (tiff(np.full((2, 2), np.nan, np.float32), samples=3), "floats from nan"),
        (tiff(DEEP[..., 0].astype(np.int16), samples=2), "signed integers"),
        (tiff(DEEP[..., 0].astype(np.int16), ">", samples=2), "signed integers"),
        (tiff(high(DEEP[..., 0]).view(np.int8), samples=2), "signed integers"),
        (tiff(DEEP[..., 0].astype(np.uint32)), "32-bit integers"),
        (tiff(DEEP[..., 0].astype(np.int32), samples=2), "signed integers"),
        (tiff(DEEP[..., :3], planar=2), "16 bits in separate planes"),
    ],
)
def test_what_is_no_image_of_eight_bits_is_refused_by_name(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tif").write_bytes(content)
    (tmp_path / "b").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "b" / "y.png")
    batches = Batches(open_data(tmp_path), Preprocessing((3, 8, 8), crop_pct=1.0), 1, CPU)
    with pytest.raises(DataError, match=rf"unreadable image a/x\.tif: expected pixels .* got {what}"):
        list(batches.host_batches())


def test_integers_that_come_decoded_and_have_no_range() -> None:
    for value in (-1, 65536):
        with pytest.raises(DataError, match="integers from"):
            read_image(Image.fromarray(np.full((2, 2), value, np.int32)), "RGB")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_eight_bits_and_less_are_as_they_were(mode: str) -> None:
    image = Image.fromarray(high(DEEP[..., :3])).convert(mode)
    for wanted in ("RGB", "L"):
        np.testing.assert_array_equal(
            np.asarray(read_image(image, wanted)), np.asarray(image.convert(wanted))
        )


def test_bits_of_png_below_eight() -> None:
    for bits in (1, 2, 4):
        largest = (1 << bits) - 1
        head = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
        content = png(DEEP)
        values = np.arange(8 // bits) % (largest + 1)
        row = bytes([int("".join(f"{v:0{bits}b}" for v in values), 2)])

        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        content = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(b"\0" + row))
            + chunk(b"IEND", b"")
        )
        np.testing.assert_array_equal(read(content, "L")[0], values * (255 // largest))


def test_palette_and_print_colours() -> None:
    """The colours of the palette, whatever is transparent; inks, not light."""
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 30, 0, 0, 255])
    image.putpixel((1, 0), 1)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=b"\0\x80")
    assert read(file.getvalue()).tolist() == [[[200, 10, 30], [0, 0, 255]]]
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, "JPEG", quality=100)
    assert np.abs(read(file.getvalue())[0, 0].astype(int) - [255, 0, 0]).max() < 8


def same_folders(root: Path) -> tuple[Path, Path]:
    """The same images in 8 bits and in 16."""
    rng = np.random.default_rng(1)
    for name in ("eight", "sixteen"):
        for label in ("a", "b"):
            (root / name / label).mkdir(parents=True)
    for label in ("a", "b"):
        for i in range(3):
            pixels = rng.integers(0, 256, (12, 12)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "eight" / label / f"{i}.png")
            Image.fromarray(pixels.astype(np.uint16) * 257).save(root / "sixteen" / label / f"{i}.png")
    return root / "eight", root / "sixteen"


@pytest.mark.parametrize("workers", [0, 2])
def test_every_path_to_the_pixels(tmp_path: Path, workers: int) -> None:
    """For evaluation and as in training, for colour and grey models, by torchvision's string, in a worker."""
    eight, sixteen = same_folders(tmp_path)
    for preprocessing in (
        Preprocessing((3, 12, 12), crop_pct=1.0),
        Preprocessing((1, 12, 12), (0.5,), (0.5,), crop_pct=1.0),
    ):
        for how in ({}, {"data": "torch/image_folder"}):
            images = []
            for folder in (eight, sixteen):
                examples = open_data(how.get("data", folder), data_root=str(folder))
                plain = Batches(examples, preprocessing, 4, CPU, workers)
                augmented = AugmentedBatches(
                    examples, preprocessing, 4, CPU, workers, augmentation="crop", seed=0
                )
                images.append(
                    [batch.inputs for batches in (plain, augmented) for batch in batches.host_batches()]
                )
            assert all(map(torch.equal, *images))
            assert images[0][0].float().std() > 60


def test_what_was_done_is_said(tmp_path: Path, tiny_checkpoint: Path, run: Run) -> None:
    eight, sixteen = same_folders(tmp_path)
    assert open_data(eight).warnings == ()
    assert open_data(sixteen).warnings == (
        f"16 bits a channel in 6 of 6 images: scaled to 8 (value >> 8) (in {sixteen})",
    )
    (sixteen / "a" / "0.png").write_bytes(png(DEEP[..., :3]))
    (sixteen / "a" / "1.tif").write_bytes(tiff(np.zeros((4, 4), np.float32), samples=3))
    said = open_data(sixteen).warnings
    assert said[0].startswith("16 bits a channel in 6 of 7 images")
    assert said[1].startswith("floats in 1 of 7 images: scaled to 8 bits (value × 255)")
    for i in range(1100):
        (sixteen / "b" / f"z{i}.png").hardlink_to(sixteen / "b" / "0.png")
    assert "in 200 of 200 images looked at" in "".join(open_data(sixteen).warnings)


def test_the_line_is_in_the_result(tmp_path: Path, tiny_checkpoint: Path, run: Run) -> None:
    images = write_images(tmp_path / "d", per_class=2)
    (images / "ant" / "x.png").write_bytes(png(DEEP[..., :3]))
    code, out, err = run("evaluate", TINY, "--checkpoint", tiny_checkpoint, "--data", images, "--input-size", 12,
                         "--workers", 0, "--format", "json")  # fmt: skip
    assert code == 0, err
    assert "warning: 16 bits a channel in 1 of 9 images" in err
    assert "16 bits a channel in 1 of 9 images" in out


def test_torchcodec_reads_sixteen_bits_alike() -> None:
    pytest.importorskip("torchcodec")
    grey = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    by_torchcodec = np.asarray(read_image(png(grey), "L", "torchcodec"))
    np.testing.assert_array_equal(by_torchcodec, read(png(grey), "L"))
