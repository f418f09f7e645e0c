"""Images that cannot be read: they end the run, or are left out of all of it, by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Run, write_images
from PIL import Image

from alphatune.core.errors import ConfigurationError, DataError
from alphatune.data.datasets import open_data
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.readable import without_unreadable


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    folder = write_images(tmp_path / "images", per_class=6)
    (folder / "ant" / "002.png").write_bytes(b"")
    (folder / "bee" / "000.png").write_text("this is text")
    whole = (folder / "dog" / "005.png").read_bytes()
    (folder / "dog" / "005.png").write_bytes(whole[: len(whole) // 2])
    return folder


BAD = {"ant/002.png", "bee/000.png", "dog/005.png"}


def batches(folder: Path, workers: int = 0) -> Batches:
    preprocessing = Preprocessing((3, 12, 12), crop_pct=1.0)
    return Batches(open_data(folder), preprocessing, 5, torch.device("cpu"), workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_left_out(damaged: Path, workers: int) -> None:
    left, skipped = without_unreadable(batches(damaged, workers), "skip")
    assert {"/".join(Path(image.name).parts[-2:]) for image in skipped} == BAD
    assert all(image.reason for image in skipped)
    assert len(left) == 21
    assert np.bincount(left.targets).tolist() == [5, 5, 6, 5]
    read = list(left.host_batches())
    assert sum(map(len, read)) == 21
    good = write_images(damaged.parent / "whole", per_class=6)
    whole = torch.cat([b.inputs for b in batches(good).host_batches()])
    assert torch.equal(torch.cat([b.inputs for b in read]), whole[torch.cat([b.ids for b in read])])


def test_fail_looks_at_nothing(damaged: Path) -> None:
    left, skipped = without_unreadable(batches(damaged), "fail")
    assert len(left) == 24
    assert skipped == ()
    with pytest.raises(DataError, match=r"ant/002\.png") as error:
        list(left.host_batches())
    assert "`on_bad_image=skip`" in error.value.hint


def test_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no image"):
        without_unreadable(batches(tmp_path), "skip")


def test_a_choice_that_there_is_not(damaged: Path) -> None:
    with pytest.raises(ConfigurationError, match="fail, skip"):
        without_unreadable(batches(damaged), "replace")


def words(data: Path, weights: Path, out: Path) -> list[object]:
    return [TINY, "--checkpoint", weights, "--data", data, "--input-size", 12, "--crop-pct", 1, "--mean", 0.5,
            "--std", 0.25, "--format", "json", "-o", out]  # fmt: skip


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_every_alpha_sees_the_same_images(
    run: Run, damaged: Path, tiny_checkpoint: Path, tmp_path: Path, cache: str
) -> None:
    given = words(damaged, tiny_checkpoint, tmp_path / "a")
    code, _, err = run("tune", *given, "--alphas", "0,0.2,0.4", "--cache", cache)
    assert code == 3
    assert "unreadable image" in err  # whichever is met first: a few from everywhere are looked at
    code, out, err = run("tune", *given, "--alphas", "0,0.2,0.4", "--cache", cache, "--on-bad-image", "skip",
                         "--recalibrate", damaged)  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert result["data"]["n"] == 21
    assert [point["n"] for point in result["curve"]] == [21] * 3
    assert {"/".join(Path(image["name"]).parts[-2:]) for image in result["data"]["skipped"]} == BAD
    assert result["recalibration"]["data"]["n"] == 21
    assert sum("3 of 24 images" in warning for warning in result["warnings"]) == 2
    # The images that are left, by themselves, give the same.
    for name in BAD:
        (damaged / name).unlink()
    code, out, _ = run("tune", *words(damaged, tiny_checkpoint, tmp_path / "b"), "--alphas", "0,0.2,0.4",
                       "--recalibrate", damaged)  # fmt: skip
    assert json.loads(out)["curve"] == result["curve"]


def test_evaluate(run: Run, damaged: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = words(damaged, tiny_checkpoint, tmp_path)[:-2]
    assert run("evaluate", *given)[0] == 3
    code, out, err = run("evaluate", *given, "--on-bad-image", "skip")
    assert code == 0, err
    assert json.loads(out)["metrics"]["n"] == 21
    assert "3 of 24 images" in err


def test_odd_but_whole_images_are_read(tmp_path: Path) -> None:
    """16 bit, palette, CMYK, animated, turned by EXIF, and of 30 megapixels: as PIL reads them, and none left out."""
    folder = tmp_path / "a"
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8))
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(folder / "16bit.png")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.save(folder / "animated.webp", save_all=True, append_images=[picture.rotate(180)])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    picture.save(folder / "exif.jpg", exif=exif)
    Image.new("RGB", (6000, 5000), (10, 200, 30)).save(folder / "large.jpg")
    left, skipped = without_unreadable(batches(tmp_path), "skip")
    assert skipped == ()
    (batch, rest) = left.host_batches()
    assert len(batch) + len(rest) == 6
    large = batches(tmp_path).take(np.array([sorted(p.name for p in folder.iterdir()).index("large.jpg")]))
    (one,) = large.host_batches()
    assert one.inputs.float().mean((0, 2, 3)).tolist() == pytest.approx([10, 200, 30], abs=2)
