"""What a job says of its progress: phases in order, a total that is known early, and who is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import StringIO
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_search import images, model  # noqa: F401  # a fixture
from test_tune import loader, trained
from torch import nn

import alphatune
from alphatune.cli import progress_bar
from alphatune.core.distributed import World
from alphatune.core.progress import Display, Meter, Progress, ShowProgress, as_meter, shows_progress


class Seen(Display):
    """Keeps whatever it is shown."""

    def __init__(self) -> None:
        self.all: list[Progress] = []
        self.closed = 0

    def show(self, progress: Progress) -> None:
        self.all.append(progress)

    def close(self) -> None:
        self.closed += 1

    @property
    def phases(self) -> list[str]:
        return [phase for phase, _ in groupby(p.phase for p in self.all if p.phase)]


def seen_by(metric: str = "loss", n: int = 1200, **how: Any) -> Seen:
    seen = Seen()
    alphatune.tune(trained(), loader(n, 64), metric=metric, progress=seen, **how)
    return seen


def passes(seen: Seen) -> list[Progress]:
    """Of the work itself, which comes after the data were read."""
    return [p for p in seen.all if p.unit == "images" and p.phase]


@pytest.mark.parametrize(
    ("how", "phases"),
    [
        ({"alphas": "0,0.1,0.2"}, ["sweeping alpha"]),
        ({}, ["pilot", "search", "confirming"]),
        ({"curve": "full"}, ["pilot", "search", "confirming"]),
        (
            {"alphas": "0,0.1", "granularity": "stage", "temperature": True, "batch_stats": True},
            [
                "sweeping alpha",
                "unpatched model",
                "temperature",
                "descent: stage",
                "confirming",
                "batch statistics",
            ],
        ),
    ],
    ids=["list", "search", "full", "finer"],
)
def test_phases_come_in_order_and_everything_expected_is_done_in_the_end(
    how: dict[str, Any], phases: list[str]
) -> None:
    seen = seen_by(**how)
    assert seen.phases[0] == "reading the data"
    assert [phase for phase in seen.phases[1:] if phase in phases] == phases
    assert all(p.total is None or p.done <= p.total for p in seen.all)
    assert seen.all[-1].done == seen.all[-1].total
    assert seen.closed == 1


@pytest.mark.parametrize(("shift", "metric", "curve"), [(0.1, "top1", "auto"), (0.3, "loss", "full")])
def test_the_total_of_a_search_is_known_early(
    model: nn.Module,  # noqa: F811
    shift: float,
    metric: Any,
    curve: Any,
) -> None:
    """Of one that finds its optimum where most networks have it, and does not end early."""
    seen = Seen()
    alphatune.tune(model, images(3000, shift=shift), metric=metric, curve=curve, progress=seen)
    work = passes(seen)
    final = work[-1].done
    early = [p.total for p in work if p.total and p.done <= 0.05 * final]
    assert early
    assert all(final / 1.5 <= total <= final * 1.5 for total in early), (early, final)


def test_reading_a_loader_is_counted_apart() -> None:
    reading = [p for p in seen_by(n=128, alphas="0,0.1").all if p.unit == "images read"]
    assert [p.done for p in reading] == [0, 64, 128]
    assert {p.total for p in reading} == {128}


def test_what_follows_is_part_of_the_total() -> None:
    seen = Seen()
    meter = Meter(seen)
    meter.later = 100
    meter.expect(50)
    meter.add(20)
    assert (meter.done, seen.all[-1].total) == (20, 150)
    meter.add(200, resumed=True)  # more than was expected
    assert (seen.all[-1].done, seen.all[-1].total, seen.all[-1].resumed) == (220, 220, 200)
    meter.begin("again")
    assert seen.all[-1] == Progress("again")


@shows_progress
def job(fails: bool = False, world: World | None = None, progress: ShowProgress = None) -> None:
    meter = as_meter(progress)
    meter.phase("working")
    meter.expect(10)
    meter.add(10)
    if fails:
        raise KeyboardInterrupt


def test_a_display_is_closed_whatever_happens_and_only_the_first_process_shows() -> None:
    seen, other = Seen(), Seen()
    with pytest.raises(KeyboardInterrupt):
        job(True, progress=seen)
    assert seen.closed == 1
    job(world=World(1, 2), progress=other)
    assert other.all == []


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, as far as anybody can see."""
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_a_bar_of_tqdm_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    job(progress=False)
    job()  # no notebook
    assert capsys.readouterr().err == ""
    job(progress=True)
    err = capsys.readouterr().err
    assert "working: 100%" in err
    assert "10/10" in err
    alphatune.recalibrate_(trained(), loader(), progress=True)
    assert "averages: 100%" in capsys.readouterr().err


@pytest.mark.usefixtures("kernel")
def test_a_notebook_shows_a_bar_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Progress] = []
    monkeypatch.setattr("alphatune.core.progress._TqdmBar.show", lambda _, progress: shown.append(progress))
    job(progress=False)
    assert shown == []
    job()
    assert shown[-1].done == 10


def drawn(progress: Progress, width: int, rate: float | None = None) -> list[str]:
    """The lines of a bar on a terminal of so many columns."""
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None, soft_wrap=True)
    bar = progress_bar.ProgressBarLine(console, False)
    bar._now = progress
    if rate:
        bar._seen.extend([(0.0, 0), (1.0, round(rate))])
    console.print(bar)
    return file.getvalue().splitlines()


@given(
    st.text(st.sampled_from("abc αδ漢"), min_size=1, max_size=60),
    st.integers(0, 10**9),
    st.none() | st.integers(1, 10**9),
    st.integers(10, 150),
    st.none() | st.integers(1, 10**6),
)
def test_a_bar_is_one_line_at_any_width(
    phase: str, done: int, total: int | None, width: int, rate: int | None
) -> None:
    from rich.cells import cell_len

    lines = drawn(Progress(phase, done, total), width, rate)
    assert len(lines) == 1
    assert cell_len(lines[0]) < width


def test_what_does_not_fit_is_left_out() -> None:
    progress = Progress("search 2 of 4", 300, 1200)
    assert "25 %  0:03 left  300 images/s" in drawn(progress, 80, 300)[0]
    assert "━" in drawn(progress, 80, 300)[0]
    narrow = drawn(progress, 36, 300)[0].split("  ")
    assert [part.strip() for part in narrow if part.strip()] == ["search 2 of 4", "25 %", "0:03 left"]
    assert drawn(progress, 12, 300)[0].strip() == "search 2 o…"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr("alphatune.cli.progress_bar.time.monotonic", lambda: now[0])
    return iter([now])  # type: ignore[return-value]


def test_the_rate_is_that_of_this_run(clock: Iterator[list[float]]) -> None:
    (now,) = clock
    bar = progress_bar.ProgressBarLine(Console(file=StringIO()), False)
    meter = Meter(bar)
    meter.expect(10_000)
    meter.add(5_000, resumed=True)
    for _ in range(10):
        now[0] += 1
        meter.add(100)
    assert bar.rate == pytest.approx(100)
    meter.begin("another kind of work", 100, "images read")
    assert bar.rate is None


def test_nothing_moves_where_a_bar_has_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from alphatune.cli import console

    with console.progress_bar(quiet=False) as display:
        assert display is None
    assert capsys.readouterr() == ("", "")


def test_silent_trackers_count_all_the_same() -> None:
    meter = as_meter(None)
    meter.add(3)
    assert meter.done == 3
