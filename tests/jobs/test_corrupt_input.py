"""Damaged files of every kind: an error of ours that names the file, or what the undamaged file gives.

Never a traceback, a hang, or a wrong answer taken for right where the format
lets one tell: torch.save's zip files, PNG and tuned folders have checksums.
safetensors, the legacy format of torch.save and JPEG have none; there a
damaged file may read as other numbers, of the same shapes.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import CLASSES, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny

import alphatune
from alphatune.core.errors import AlphatuneError, DataError
from alphatune.data.datasets import open_data
from alphatune.data.decoding import read_image
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.models.checkpoint_loading import load_weights_
from alphatune.models.checkpoints import read_checkpoint
from alphatune.models.sources import build
from alphatune.reports.scores import read_scores
from alphatune.settings import TuneSettings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")  # it warns, then decodes or refuses

SLOWEST = 5.0  # seconds of this processor, for files of a few kilobytes: more is a hang

Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """A way to damage a file: cut it, flip bits, take some out, put some in, or change its head."""
    kind = draw(st.sampled_from(["cut", "flip", "head", "drop", "insert", "zero"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4))
    number = draw(st.integers(1, 255))

    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        for place in places:
            if not changed:
                break
            reach = min(len(changed), 400) if kind == "head" else len(changed)
            at = int(place * reach)
            if kind == "cut":
                del changed[at:]
            elif kind in ("flip", "head"):
                changed[at] ^= 1 << number % 8
            elif kind == "drop":
                del changed[at : at + number]
            elif kind == "insert":
                changed[at:at] = bytes([number]) * (number % 40 + 1)
            else:
                changed[at : at + number] = bytes(len(changed[at : at + number]))
        return bytes(changed)

    return damage


def cases(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many damages, the same ones each time."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        limits = settings(
            max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks
        )
        return limits(given(damage=damages())(test))

    return decorate


class Timed:
    """Fails what takes too long."""

    def __enter__(self) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        assert time.process_time() - self.started < SLOWEST


def is_ours(error: AlphatuneError, name: str = "") -> None:
    """One line that names the file."""
    assert name in error.message
    assert "\n" not in error.message


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return tiny().eval()


def checkpoint(net: torch.nn.Module, kind: str) -> tuple[str, bytes]:
    state = net.state_dict()
    if kind == "safetensors":
        return "a.safetensors", safetensors.torch.save(state)
    file = io.BytesIO()
    content = {"state_dict": state, "epoch": 3, "arch": "tiny"}
    torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    return "a.pth", file.getvalue()


def reads(path: Path) -> torch.nn.Module | None:
    """A model with the file's weights; None where the file is refused, by its name."""
    with Timed():
        try:
            found = read_checkpoint(path)
            model = tiny()
            load_weights_(model, found)
        except AlphatuneError as error:
            is_ours(error, path.name)
            return None
    return model


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@cases(500)
def test_zip_checkpoints(net: torch.nn.Module, tmp_path: Path, damage: Damage) -> None:
    name, data = checkpoint(net, "zip")
    (tmp_path / name).write_bytes(damage(data))
    model = reads(tmp_path / name)
    assert model is None or equal(model, net)


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
@cases(400)
def test_checkpoints_without_checksums(
    net: torch.nn.Module, tmp_path: Path, kind: str, damage: Damage
) -> None:
    name, data = checkpoint(net, kind)
    (tmp_path / name).write_bytes(damage(data))
    reads(tmp_path / name)


@pytest.fixture(scope="module")
def folder(net: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned folder of an architecture that alphatune can build by itself."""
    torch.manual_seed(0)
    source = build("test_resnet", pretrained=False)
    alphatune.patch_(source.model.eval(), 0.1)
    path = tmp_path_factory.mktemp("tuned") / "out"
    return alphatune.save(source.model, path, source=source, preprocessing=Preprocessing((3, 32, 32)))


@pytest.mark.parametrize("name", ["model.safetensors", "alphatune.json", "config.json"])
@cases(150)
def test_tuned_folders(folder: Path, tmp_path: Path, name: str, damage: Damage) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    file = copy / name
    file.write_bytes(damage(file.read_bytes()))
    unchanged = file.read_bytes() == (folder / name).read_bytes()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with Timed():
        try:
            model = alphatune.load(copy)
        except AlphatuneError as error:
            is_ours(error)
            return
    assert name != "model.safetensors" or unchanged  # the weights have a checksum
    with torch.no_grad():
        got, wanted = model(images), alphatune.load(folder)(images)
    if name == "config.json":  # what of it is read can only build another architecture, which does not fit
        assert torch.equal(got, wanted)


@pytest.mark.slow
@cases(100)
def test_run_toml(tmp_path: Path, damage: Damage, capsys: pytest.CaptureFixture[str]) -> None:
    from alphatune.cli.main import main
    from alphatune.settings.saved import to_toml

    config = tmp_path / "run.toml"
    wanted = TuneSettings(model="resnet18", data=str(tmp_path / "no-such-data"), alphas="0,0.1", mean="0.5")
    config.write_bytes(damage(to_toml(wanted).encode()))
    with Timed(), pytest.raises(SystemExit) as stop:
        main(
            [
                "tune",
                "no-such-model",
                "--data",
                "no-such-data",
                "--config",
                str(config),
                "-o",
                str(tmp_path / "o"),
            ]
        )
    assert stop.value.code in (2, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("few"), per_class=2)


@pytest.fixture(scope="module")
def archive(images: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in CLASSES:
            tar.add(images / name, name)
    return file.getvalue()


def pixels(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """All images and labels; None where something is refused."""
    with Timed():
        try:
            batches = Batches(
                open_data(path), Preprocessing((3, 12, 12), crop_pct=1.0), 4, torch.device("cpu"), workers=0
            )
            found = [batch.inputs.numpy() for batch in batches.host_batches()]
        except AlphatuneError as error:
            is_ours(error)
            return None
    return np.concatenate(found), batches.targets


@cases(300)
def test_archives(images: Path, archive: bytes, tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "images.tar"
    path.write_bytes(damage(archive))
    found = pixels(path)
    if found is None:
        return
    wanted = pixels(images)
    assert wanted is not None
    # A member's name has a checksum, and PNG, too: no image is lost, none is another.
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@cases(100)
def test_images(tmp_path: Path, kind: str, damage: Damage) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    (tmp_path / "class").mkdir(exist_ok=True)
    path = tmp_path / "class" / f"image.{'jpg' if kind == 'JPEG' else kind.lower()}"
    path.write_bytes(damage(file.getvalue()))
    batches = Batches(open_data(tmp_path), Preprocessing((3, 8, 8), crop_pct=1.0), 1, torch.device("cpu"))
    with Timed():
        try:
            (batch,) = batches.host_batches()
        except DataError as error:
            is_ours(error, path.name)
            return
    assert batch.inputs.shape == (1, 3, 8, 8)
    if kind == "PNG":
        np.testing.assert_array_equal(np.asarray(read_image(str(path), "RGB")), picture)


@cases(200)
def test_stored_scores(tmp_path: Path, damage: Damage) -> None:
    from alphatune.reports.scores import FILE, StoredScores, write_scores
    from alphatune.statistics.scores import Scores

    rng = np.random.default_rng(0)
    n = 50
    scores = Scores(
        ids=np.arange(n), targets=rng.integers(0, 3, n).astype(np.int32),
        predicted=rng.integers(0, 3, n).astype(np.int32), loss=rng.random(n).astype(np.float32),
        top1=rng.random(n) > 0.5, top5=rng.random(n) > 0.2, confidence=rng.random(n).astype(np.float32),
    )  # fmt: skip
    write_scores(StoredScores({"baseline": scores, "chosen": scores}, ("a", "b", "c")), tmp_path)
    path = tmp_path / FILE
    path.write_bytes(damage(path.read_bytes()))
    with Timed():
        try:
            stored = read_scores(tmp_path)
        except AlphatuneError as error:
            is_ours(error, path.name)
            return
    assert stored is not None
    np.testing.assert_array_equal(stored.chosen.loss, scores.loss)
    np.testing.assert_array_equal(stored.baseline.targets, scores.targets)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_sizes_that_a_file_only_claims_take_no_memory(
    net: torch.nn.Module, tmp_path: Path, kind: str
) -> None:
    """Every eight bytes of the head in turn claim to be a huge number."""
    name, data = checkpoint(net, kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for at in range(0, min(len(data), 600), 4):
        for huge in (2**62, 2**33):
            (tmp_path / name).write_bytes(data[:at] + huge.to_bytes(8, "little") + data[at + 8 :])
            reads(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_a_header_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**30).to_bytes(8, "little") + b"{" * 100)
    assert reads(path) is None


MEMORY = """
import sys, torch
from torch import nn
from alphatune.models.checkpoint_loading import load_weights_
from alphatune.models.checkpoints import read_checkpoint
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
torch.zeros(1); model = nn.Sequential(nn.Linear(5000, 5000, bias=False), nn.BatchNorm1d(5000))
before = peak()
load_weights_(model, read_checkpoint({path!r}))
print((peak() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_reading_takes_at_most_twice_the_file(tmp_path: Path, kind: str) -> None:
    """100 MB of weights, and a model of that size that was there before."""
    net = torch.nn.Sequential(torch.nn.Linear(5000, 5000, bias=False), torch.nn.BatchNorm1d(5000))
    name, data = checkpoint(net, kind)
    (tmp_path / name).write_bytes(data)
    code = MEMORY.format(path=str(tmp_path / name))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2 * len(data) / 2**20 + 10


def test_every_cut_of_an_archive_is_noticed(images: Path, archive: bytes, tmp_path: Path) -> None:
    """Also between two images, where nothing but the mark at the end is missing."""
    path = tmp_path / "images.tar"
    end = len(archive.rstrip(b"\0"))
    for at in range(512, end, 512):
        path.write_bytes(archive[:at])
        try:
            examples = open_data(path)
        except DataError:
            continue
        assert any("end-of-archive" in warning for warning in examples.warnings), at
    path.write_bytes(archive)
    assert open_data(path).warnings == ()


def test_a_damaged_header_does_not_end_the_archive(images: Path, archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    for at in range(0, len(archive), 512):
        block = archive[at : at + 512]
        if block[257:262] != b"ustar":
            continue
        path.write_bytes(archive[:at] + bytes([block[0] ^ 1]) + archive[at + 1 :])
        with pytest.raises(DataError, match=r"images\.tar"):
            open_data(path)


def test_timm_builds_what_was_saved(folder: Path) -> None:
    """The folder that is damaged above is whole to begin with."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert json.loads((folder / "alphatune.json").read_text())["source"]["kind"] == "timm"
    assert len(list(model.parameters())) > 0
