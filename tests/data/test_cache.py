"""Decoding once: caches, a loader of one's own over several passes, and the way to the device."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TESTS, slow, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from alphatune.core.errors import ConfigurationError, DataError, ResourceError
from alphatune.core.extras import install_line
from alphatune.data import cache as cache_module
from alphatune.data import custom_loader
from alphatune.data.available_memory import available_memory
from alphatune.data.cache import CachedBatches, with_cache
from alphatune.data.custom_loader import LoaderBatches
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples
from alphatune.data.loading import Batch, Batches
from alphatune.data.prefetch import on_device
from alphatune.data.preprocessing import Preprocessing

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing((3, 6, 6), crop_pct=1.0)
COUNT = 40
IMAGES = np.random.default_rng(0).integers(0, 255, (COUNT, 6, 6, 3), dtype=np.uint8)


class Counting:
    """Loads of each image, by its index; some images cannot be read."""

    def __init__(self, broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.loads: Counter[int] = Counter()
        self.broken = broken

    def __call__(self, index: int) -> tuple[Any, str]:
        if index in self.broken:
            return b"not an image", f"image {index}"
        self.loads[index] += 1
        return Image.fromarray(IMAGES[index]), f"image {index}"


def counted(
    batch_size: int = 7, workers: int = 0, broken: set[int] | None = None
) -> tuple[Batches, Counting]:
    load = Counting(broken or set())
    examples = Examples("memory", "", "", (), np.arange(COUNT) % 5, np.arange(COUNT), load=load)
    return Batches(examples, PREPROCESSING, batch_size, CPU, workers), load


def assert_same(one: Iterator[Batch] | Any, other: Iterator[Batch] | Any) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.ids, b.ids)
        assert (a.inputs.dtype, a.targets.dtype, a.ids.dtype) == (b.inputs.dtype, torch.int64, torch.int64)


# --- subsets ---------------------------------------------------------------------------------


def test_a_part_of_batches_is_made_of_the_same_examples() -> None:
    batches, load = counted()
    positions = np.array([0, 3, 4, 9, 20, 21, 22, 23, 24, 39])
    whole = torch.cat([b.inputs for b in batches])
    load.loads.clear()
    part = batches.take(positions)
    assert part.targets.tolist() == (positions % 5).tolist()
    assert [len(b) for b in part] == [7, 3]
    assert torch.equal(torch.cat([b.inputs for b in part]), whole[positions])
    assert load.loads.keys() == set(positions.tolist())
    again = part.take(np.array([1, 9]))
    assert torch.cat([b.ids for b in again]).tolist() == [3, 39]


# --- the cache -------------------------------------------------------------------------------

SUBSETS = st.lists(st.sets(st.integers(0, COUNT - 1), min_size=1), min_size=1, max_size=5)


@pytest.mark.parametrize("where", ["ram", "disk"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(subsets=SUBSETS, batch_size=st.integers(1, 50))
def test_every_image_is_decoded_once_over_overlapping_subsets(
    where: str, subsets: list[set[int]], batch_size: int
) -> None:
    plain, _ = counted(batch_size)
    source, load = counted(batch_size)
    cached = with_cache(source, where)
    seen: set[int] = set()
    for subset in subsets:
        positions = np.array(sorted(subset))
        assert_same(cached.take(positions), plain.take(positions))
        seen |= subset
        assert load.loads == Counter(seen)
    assert_same(cached, plain)
    assert_same(cached, plain)
    assert load.loads == Counter(range(COUNT))


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_nested_parts_and_other_batch_sizes_share_the_images(where: str) -> None:
    source, load = counted()
    cached = with_cache(source, where)
    part = cached.take(np.arange(0, COUNT, 2))
    nested = part.take(np.arange(5, 15))
    plain = counted()[0].take(np.arange(10, 30, 2))
    assert_same(nested, plain)
    assert nested.cache == cached.cache == where
    assert nested.targets.tolist() == plain.targets.tolist()
    assert_same(replace(cached, batch_size=3), counted(3)[0])
    assert load.loads == Counter(range(COUNT))


@pytest.mark.parametrize("kind", ["folder", "stream"])
@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_real_images_by_workers_and_as_a_stream(
    image_folder: Path, tmp_path: Path, kind: str, where: str, workers: int
) -> None:
    if kind == "stream":
        pytest.importorskip("webdataset")
        from test_data import write_webdataset

        examples = open_data(f"wds/pipe:cat {write_webdataset(tmp_path / 'wds', image_folder)}")
    else:
        examples = open_data(image_folder)
    plain = Batches(examples, PREPROCESSING, 5, CPU)
    cached = with_cache(replace(plain, workers=workers), where)
    for positions in (np.arange(3, 20, 4), np.arange(0, 30), np.arange(48)):
        assert_same(cached.take(positions), plain.take(positions))
        assert_same(cached.take(positions), plain.take(positions))


def test_a_stream_is_read_once(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    from test_data import write_webdataset

    from alphatune.data import timm_datasets

    examples = open_data(f"wds/pipe:cat {write_webdataset(tmp_path / 'wds', image_folder)}")
    passes: list[int] = []
    call = timm_datasets._Stream.__call__
    monkeypatch.setattr(timm_datasets._Stream, "__call__", lambda self: passes.append(1) or call(self))
    cached = with_cache(Batches(examples, PREPROCESSING, 5, CPU), "ram")
    for positions in (np.array([2, 7]), np.arange(40), np.arange(48)):
        assert torch.cat([b.ids for b in cached.take(positions)]).tolist() == positions.tolist()
    assert passes == [1]


def test_a_cached_pass_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = counted(workers=2)
    cached = with_cache(source, "ram")
    part = np.arange(5, 33)
    list(cached.take(part))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a DataLoader was made")

    monkeypatch.setattr("alphatune.data.workers.DataLoader", refuse)
    assert_same(cached.take(part[3:20]), list(cached.take(part[3:20])))
    with pytest.raises(AssertionError):
        list(cached)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_an_error_each_time(workers: int) -> None:
    source, _ = counted(batch_size=4, workers=workers, broken={13})
    cached = with_cache(source, "ram")
    assert isinstance(cached, CachedBatches)
    for _ in range(2):
        with pytest.raises(DataError, match="image 13"):
            list(cached)
        assert not cached.store.present[13]
    others = np.delete(np.arange(COUNT), 13)
    assert torch.cat([b.ids for b in cached.take(others)]).tolist() == others.tolist()


def test_a_pass_that_is_given_up_keeps_what_it_had() -> None:
    source, load = counted(batch_size=4)
    cached = with_cache(source, "ram")
    passing = iter(cached)
    next(passing), next(passing)
    passing.close()  # type: ignore[attr-defined]
    assert load.loads == Counter(range(8))
    assert_same(cached, counted(batch_size=4)[0])
    assert load.loads == Counter(range(COUNT))


def test_inputs_of_a_batch_are_the_callers_own() -> None:
    """A model that works in place must not change what is kept."""
    cached = with_cache(counted()[0], "ram")
    for _ in range(2):
        for batch in cached:
            batch.inputs.zero_()
    assert_same(cached, counted()[0])


# --- where the images are kept ---------------------------------------------------------------

SIZE = COUNT * 3 * 6 * 6


def test_auto_is_ram_for_what_is_small_against_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, _ = counted()
    assert with_cache(batches, "auto").cache == "ram"
    assert with_cache(batches, "none") is batches
    for available, where in ((2 * SIZE, "ram"), (2 * SIZE - 1, "none"), (None, "ram")):
        monkeypatch.setattr(cache_module, "available_memory", lambda available=available: available)
        assert with_cache(batches, "auto").cache == where
    monkeypatch.setattr(cache_module, "AUTO_BYTES", SIZE - 1)
    assert with_cache(batches, "auto").cache == "none"
    with pytest.raises(ConfigurationError, match="unknown cache 'device'"):
        with_cache(batches, "device")


def test_ram_that_is_not_there_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, load = counted()
    monkeypatch.setattr(cache_module, "available_memory", lambda: SIZE - 1)
    with pytest.raises(ResourceError, match="40 decoded images take") as error:
        with_cache(batches, "ram")
    assert "`cache=disk`" in error.value.hint
    monkeypatch.setattr(cache_module, "available_memory", lambda: None)
    with pytest.raises(ResourceError, match="do not fit into the memory of cpu"):
        with_cache(replace(batches, preprocessing=Preprocessing((3, 2**22, 2**22))), "ram")
    assert not load.loads


def test_a_disk_without_room_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, load = counted()
    usage = shutil.disk_usage(tempfile.gettempdir())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SIZE - 1))
        with pytest.raises(ResourceError, match="are free in") as error:
            with_cache(batches, "disk")
    assert "TMPDIR" in error.value.hint

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ResourceError, match="No space left"):
            with_cache(batches, "disk")
    assert not load.loads


def test_a_file_system_that_cannot_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    assert_same(with_cache(counted()[0], "disk"), counted()[0])


def test_available_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  5 kB\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 5 * 1024
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 10\ninactive_file 500\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 5 * 1024
    (tmp_path / "memory.max").write_text("4000\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 1500
    assert (available_memory(tmp_path / "none", tmp_path / "none") or 1) > 0


DISK_JOB = """
import os, sys, time
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
import conftest  # which knows the folders of tests
from test_cache import counted
from alphatune.data.cache import with_cache

cached = with_cache(counted()[0], "disk")
list(cached)
print(os.listdir(os.environ["TMPDIR"]), flush=True)
if sys.argv[2] == "raise":
    raise ValueError("on purpose")
time.sleep(60)
"""


@pytest.mark.parametrize("end", ["raise", slow(signal.SIGINT), slow(signal.SIGTERM), slow(signal.SIGKILL)])
def test_the_file_is_gone_however_the_process_ends(tmp_path: Path, end: str | signal.Signals) -> None:
    how = end if isinstance(end, str) else "wait"
    with subprocess.Popen(
        [sys.executable, "-c", DISK_JOB, str(TESTS), how],
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "[]"  # it has no name even while it is used
        if not isinstance(end, str):
            process.send_signal(end)
        assert process.wait(timeout=60) != 0
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_with_the_batches() -> None:
    def open_files() -> int:
        maps = Path("/proc/self/maps").read_text()
        return sum("alphatune-" in line or f"{tempfile.gettempdir()}/#" in line for line in maps.splitlines())

    if not Path("/proc/self/maps").exists():
        pytest.skip("reads /proc")
    before = open_files()
    cached = with_cache(counted()[0], "disk")
    part = cached.take(np.arange(3))
    list(part)
    assert open_files() > before
    del cached, part
    assert open_files() == before


# --- a loader of one's own -------------------------------------------------------------------

INPUTS = torch.arange(23 * 2, dtype=torch.float32).reshape(23, 2)
LABELS = torch.arange(23) % 3


class Reiterable:
    """Counts how often it is read; refills one buffer, as a careless loader may."""

    def __init__(self, order: list[np.ndarray] | None = None) -> None:
        self.passes = 0
        self._order = order or [np.arange(23)]
        self._buffer = torch.empty(5, 2)

    def __iter__(self) -> Iterator[Any]:
        order = self._order[min(self.passes, len(self._order) - 1)]
        self.passes += 1
        for start in range(0, len(order), 5):
            rows = order[start : start + 5]
            self._buffer[: len(rows)] = INPUTS[rows]
            yield self._buffer[: len(rows)], LABELS[rows]


def assert_rows(batches: Any, rows: Any, lengths: list[int]) -> None:
    got = [Batch(b.inputs.clone(), b.targets, b.ids) for b in iter(batches)]
    assert [len(b) for b in got] == lengths
    assert torch.equal(torch.cat([b.inputs for b in got]), INPUTS[rows])
    assert torch.equal(torch.cat([b.targets for b in got]), LABELS[rows])
    assert torch.cat([b.ids for b in got]).tolist() == np.arange(23)[rows].tolist()


PART = np.array([0, 3, 4, 5, 9, 10, 11, 12, 20, 21, 22])


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("first", ["iterate", "len", "targets", "take", "batch_size"])
def test_passes_over_a_loader(keeps: bool, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not keeps:
        monkeypatch.setattr(custom_loader, "KEPT_BYTES", 60)  # two batches are not enough
    loader = Reiterable()
    batches = LoaderBatches(loader, CPU)
    {
        "iterate": lambda: assert_rows(batches, slice(None), [5, 5, 5, 5, 3]),
        "len": lambda: len(batches),
        "targets": lambda: batches.targets,
        "take": lambda: batches.take(PART),
        "batch_size": lambda: batches.batch_size,
    }[first]()
    assert loader.passes == 1
    assert len(batches) == 23
    assert batches.targets.dtype == np.int64
    assert batches.targets.tolist() == LABELS.tolist()
    part = batches.take(PART)
    assert (len(part), part.targets.tolist()) == (11, LABELS[PART].tolist())
    assert_rows(part, PART, [5, 5, 1])
    assert_rows(part.take(np.arange(1, 7)), PART[1:7], [5, 1])
    assert_rows(batches, slice(None), [5, 5, 5, 5, 3])
    assert loader.passes == (1 if keeps else 4)


@given(rows=st.sets(st.integers(0, 22), min_size=1))
def test_any_part_of_a_loader_comes_in_full_batches(rows: set[int]) -> None:
    positions = np.array(sorted(rows))
    full, rest = divmod(len(positions), 5)
    assert_rows(LoaderBatches(Reiterable(), CPU).take(positions), positions, [5] * full + [rest] * bool(rest))


def test_a_pass_over_a_loader_that_is_given_up_counts_for_nothing() -> None:
    loader = Reiterable()
    batches = LoaderBatches(loader, CPU)
    next(iter(batches))
    assert_rows(batches, slice(None), [5, 5, 5, 5, 3])
    assert_rows(batches, slice(None), [5, 5, 5, 5, 3])
    assert loader.passes == 2


@pytest.mark.parametrize("given_up", [False, True])
def test_an_iterator_is_kept_at_any_size(given_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_loader, "KEPT_BYTES", 0)
    batches = LoaderBatches(iter(Reiterable()), CPU)
    if given_up:
        passing = iter(batches)
        next(passing), next(passing)
        del passing
    for _ in range(2):
        assert_rows(batches, slice(None), [5, 5, 5, 5, 3])
    assert_rows(batches.take(PART), PART, [5, 5, 1])


SHUFFLED = np.random.default_rng(1).permutation(23)


@pytest.mark.parametrize("second", [SHUFFLED, np.arange(22), np.append(np.arange(23), 0)])
def test_a_loader_that_gives_others_the_second_time_is_refused(
    second: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Reiterable([np.arange(23), second])
    assert_rows(LoaderBatches(loader, CPU), slice(None), [5, 5, 5, 5, 3])
    monkeypatch.setattr(custom_loader, "KEPT_BYTES", 0)
    batches = LoaderBatches(Reiterable([np.arange(23), second]), CPU)
    assert len(batches) == 23
    with pytest.raises(ConfigurationError, match="same examples in the same order") as error:
        list(iter(batches))
    assert "shuffle" in error.value.hint


def test_a_shuffled_loader_that_is_kept_has_the_order_of_its_first_pass() -> None:
    loader = DataLoader(TensorDataset(INPUTS, LABELS), 4, shuffle=True, num_workers=2)
    batches = LoaderBatches(loader, CPU)
    assert_same(iter(batches), list(iter(batches)))
    inputs = torch.cat([b.inputs for b in batches])
    assert torch.equal(inputs[:, 0].sort().values, INPUTS[:, 0])
    assert torch.equal(LABELS[(inputs[:, 0] / 2).long()], torch.from_numpy(batches.targets))


def test_inputs_of_several_shapes_are_not_joined() -> None:
    items = [(torch.zeros(2, 3, size, size), [0, 1]) for size in (4, 4, 6, 6)]
    part = LoaderBatches(items, CPU).take(np.array([0, 2, 4, 5, 6]))
    assert [tuple(b.inputs.shape[:3]) for b in part] == [(2, 3, 4), (2, 3, 6), (1, 3, 6)]


@pytest.mark.parametrize(
    "item", [torch.zeros(2, 3), (torch.zeros(2, 3), torch.full((2,), 0.5)), (torch.zeros(2, 3), [1])]
)
def test_a_loader_of_something_else_is_refused(item: object) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        len(LoaderBatches([item], CPU))


def test_an_empty_loader() -> None:
    batches = LoaderBatches([], CPU)
    assert (len(batches), list(batches), batches.targets.dtype) == (0, [], np.int64)


# --- to the device ---------------------------------------------------------------------------


def test_on_the_cpu_nothing_is_fetched_ahead() -> None:
    drawn: list[int] = []

    def source() -> Iterator[Batch]:
        for i in range(4):
            drawn.append(i)
            yield Batch(torch.full((2,), float(i)), torch.zeros(2, dtype=torch.int64), torch.arange(2))

    for i, batch in enumerate(on_device(source(), CPU, lambda _: lambda x: x + 1)):
        assert drawn == list(range(i + 1))
        assert batch.inputs.tolist() == [i + 1, i + 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["none", "ram", "disk"])
def test_on_cuda_the_next_batch_is_copied_beside_the_model(where: str) -> None:
    """Slow work on the present batch meets neither the next one's copy nor its memory."""
    cuda = torch.device("cuda")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (96, 64, 64, 3), dtype=np.uint8)
    examples = Examples(
        "memory", "", "", (), np.arange(96) % 7, np.arange(96),
        load=lambda index: (Image.fromarray(images[index]), ""),
    )  # fmt: skip
    plain = Batches(examples, Preprocessing((3, 64, 64), crop_pct=1.0), 8, CPU)
    loaded = with_cache(replace(plain, device=cuda), where)
    weight = torch.randn(4096, 4096, device=cuda)
    for _ in range(2):
        results = []
        for batch in loaded:
            assert batch.inputs.device.type == "cuda"
            assert batch.ids.device.type == "cpu"
            for _ in range(20):
                weight = weight @ weight
                weight = weight / weight.norm()
            results.append((batch.inputs.clone(), batch.targets.clone()))
            del batch
        for (inputs, targets), expected in zip(results, plain, strict=True):
            torch.testing.assert_close(inputs.cpu(), expected.inputs, rtol=1e-6, atol=1e-6)
            assert torch.equal(targets.cpu(), expected.targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_one_batch_is_fetched_ahead_and_the_host_does_not_wait() -> None:
    drawn: list[int] = []

    def source() -> Iterator[Batch]:
        for i in range(4):
            drawn.append(i)
            yield Batch(
                torch.full((2,), float(i)).pin_memory(), torch.zeros(2, dtype=torch.int64), torch.arange(2)
            )

    for i, batch in enumerate(on_device(source(), torch.device("cuda"))):
        assert len(drawn) == min(4, i + 2)
        assert batch.inputs.tolist() == [i, i]
    parts = [b.inputs.tolist() for b in LoaderBatches([(INPUTS, LABELS)], torch.device("cuda")).take(PART)]
    assert parts == [INPUTS[PART].tolist()]


# --- another decoder -------------------------------------------------------------------------


def test_the_decoder_is_recorded(image_folder: Path) -> None:
    examples = open_data(image_folder)
    assert examples.decoder == f"PIL {Image.__version__}"
    with pytest.raises(ConfigurationError, match="unknown decoder 'ffmpeg'"):
        examples.decoded_by("ffmpeg")


def test_a_decoder_that_is_not_installed(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ConfigurationError, match="needs the package torchcodec") as error:
        open_data(image_folder).decoded_by("torchcodec")
    assert error.value.hint == install_line("torchcodec")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["none", "ram"])
def test_torchcodec_reads_what_pil_reads(
    image_folder: Path, tmp_path: Path, workers: int, where: str
) -> None:
    torchcodec = pytest.importorskip("torchcodec")
    shutil.copytree(image_folder, tmp_path / "d")
    rng = np.random.default_rng(2)
    smooth = np.cumsum(rng.integers(-2, 3, (30, 41, 3)), axis=1) % 256
    for suffix in ("jpg", "webp"):
        Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "d" / "ant" / f"x.{suffix}")
    examples = open_data(tmp_path / "d")
    plain = Batches(examples, PREPROCESSING, 5, CPU)
    other = replace(plain, examples=examples.decoded_by("torchcodec"), workers=workers)
    assert other.examples.decoder == f"torchcodec {torchcodec.__version__}"
    assert_same(with_cache(other, where).take(np.arange(20)), plain.take(np.arange(20)))


def test_torchcodec_turns_photos_upright_and_pil_does_not(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    (tmp_path / "a").mkdir()
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8] = 255
    turned = Image.Exif()
    turned[274] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a" / "x.jpg", exif=turned)
    examples = open_data(tmp_path)
    (by_pil,) = Batches(examples, PREPROCESSING, 1, CPU)
    (by_torchcodec,) = Batches(examples.decoded_by("torchcodec"), PREPROCESSING, 1, CPU)
    assert torch.equal(by_torchcodec.inputs, by_pil.inputs.flip(2, 3))
    assert not torch.equal(by_torchcodec.inputs, by_pil.inputs)


@pytest.mark.parametrize("content", [b"", b"this is text", "truncated", "bmp"])
def test_torchcodec_names_what_it_cannot_read(tmp_path: Path, content: bytes | str) -> None:
    pytest.importorskip("torchcodec")
    folder = write_images(tmp_path / "d", per_class=2)
    victim = folder / "bee" / "001.png"
    if content == "bmp":
        Image.new("RGB", (8, 8)).save(victim, "BMP")
    else:
        victim.write_bytes(victim.read_bytes()[:200] if isinstance(content, str) else content)
    examples = open_data(folder).decoded_by("torchcodec")
    with pytest.raises(DataError, match=r"bee/001\.png") as error:
        list(Batches(examples, PREPROCESSING, 5, CPU))
    assert "\n" not in str(error.value)


def test_torchcodec_reads_grey_and_the_first_frame(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    (tmp_path / "a").mkdir()
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a" / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    examples = open_data(tmp_path)
    for mode in (PREPROCESSING, PREPROCESSING.override(input_size=(1, 6, 6), mean=(0.5,), std=(0.5,))):
        (by_pil,) = Batches(examples, mode, 1, CPU)
        (by_torchcodec,) = Batches(examples.decoded_by("torchcodec"), mode, 1, CPU)
        assert (by_torchcodec.inputs - by_pil.inputs).abs().max() <= 1.01 / 255 / min(mode.std)


def test_images_that_come_decoded_have_no_other_decoder() -> None:
    pytest.importorskip("torchcodec")
    with pytest.raises(ConfigurationError, match="come decoded already"):
        counted()[0].examples.decoded_by("torchcodec")
