"""Outputs that appear whole or not at all, one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from alphatune.core.errors import ConfigurationError
from alphatune.export.output_file import check_output_file, staged_file
from alphatune.models.output import check_output, claimed, filling, staged
from alphatune.reports.file import check_file

PARTIAL = ".out.alphatune-partial"


def bundle(out: Path, text: str) -> None:
    """Something that passes for a tuned folder."""
    with staged(out, overwrite=True) as stage:
        (stage / "alphatune.json").write_text(text)


def killed_while(doing: str, folder: Path) -> None:
    """A process that dies without a word in the midst of something."""
    code = "import os\nfrom pathlib import Path\nfrom alphatune.models.output import claimed, staged\n"
    code += f"folder = Path({str(folder)!r})\n"
    done = subprocess.run([sys.executable, "-c", code + textwrap.dedent(doing)], timeout=120)
    assert done.returncode == -9


KILLED = """
    with claimed(folder / "out") as stage:
        (stage / "half").write_text("written")
        (stage / "figures").mkdir()
        os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    killed_while(KILLED, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [PARTIAL]
    bundle(tmp_path / "out", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["alphatune.json"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "out") as stage:
        (stage / "half").write_text("written")
        with pytest.raises(ConfigurationError, match="another process is writing"):
            bundle(tmp_path / "out", "other")
        assert (stage / "half").read_text() == "written"  # nobody else emptied it
    assert list(tmp_path.iterdir()) == []
    bundle(tmp_path / "out", "now")


def test_the_name_is_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older output is replaced in one step, not moved away first."""
    if sys.platform != "linux":
        pytest.skip("only Linux swaps two names")
    bundle(tmp_path / "out", "old")

    def no(*_: object) -> None:
        raise AssertionError("moved in two steps")

    monkeypatch.setattr(Path, "rename", no)
    bundle(tmp_path / "out", "new")
    assert (tmp_path / "out" / "alphatune.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("after", ["old", "new"])
def test_where_names_cannot_be_swapped(tmp_path: Path, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two steps, the next process brings the older output back; after them, it finishes."""
    bundle(tmp_path / "out", "old")
    doing = f"""
        import alphatune.models.output as module
        module._swap = lambda one, other: False
        rename = Path.rename
        def dying(self, target):
            if self.name == {PARTIAL!r} and {after == "old"}:
                os.kill(os.getpid(), 9)
            return rename(self, target)
        Path.rename = dying
        module.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), 9)
        with staged(folder / "out", overwrite=True) as stage:
            (stage / "alphatune.json").write_text("new")
    """
    killed_while(doing, tmp_path)
    assert (tmp_path / "out").exists() == (after == "new")
    with claimed(tmp_path / "out"):
        assert (tmp_path / "out" / "alphatune.json").read_text() == after
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    monkeypatch.setattr("alphatune.models.output._swap", lambda one, other: False)
    bundle(tmp_path / "out", "newest")
    assert (tmp_path / "out" / "alphatune.json").read_text() == "newest"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_in_the_place_of_the_hidden_folder(tmp_path: Path) -> None:
    """Its content is not ours to delete."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (tmp_path / PARTIAL).symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigurationError, match="a folder of ours"):
        bundle(tmp_path / "out", "new")
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    assert not (tmp_path / "out").exists()


def test_links_in_what_is_replaced_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    bundle(tmp_path / "out", "old")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "precious")
    killed_while(KILLED, tmp_path)
    (tmp_path / PARTIAL / "link").symlink_to(tmp_path / "precious")
    bundle(tmp_path / "out", "new")
    assert (tmp_path / "precious" / "file").read_text() == "kept"


def test_a_parent_that_went_meanwhile(tmp_path: Path) -> None:
    """The work is not lost: the folder is made again."""
    import shutil

    out = tmp_path / "deep" / "out"
    with claimed(out) as stage:
        shutil.rmtree(tmp_path / "deep")
        with filling(stage, out):
            (stage / "alphatune.json").write_text("new")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_file_is_claimed_as_well(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with staged_file(path, overwrite=True) as partial:
        partial.write_text("half")
        with pytest.raises(ConfigurationError, match="another process"), staged_file(path, overwrite=True):
            pass
        assert [p.name for p in tmp_path.iterdir()] == [".model.onnx.alphatune-partial"]
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_killed_process_holds_nothing_through_its_children(tmp_path: Path) -> None:
    """Processes that read images are forked off, and outlive a main process that is killed by some seconds."""
    doing = """
        import time
        started, says_so = os.pipe()  # a child holds what its parent holds until it first runs
        with claimed(folder / "out") as stage:
            if (child := os.fork()) == 0:
                os.write(says_so, b".")
                time.sleep(60)
                os._exit(0)
            (folder / "child").write_text(str(child))
            os.read(started, 1)
            os.kill(os.getpid(), 9)
    """
    killed_while(doing, tmp_path)
    try:
        bundle(tmp_path / "out", "new")
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_child_lets_its_parent_hold_on(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"):
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(ConfigurationError, match="another process"):
            bundle(tmp_path / "out", "other")


HANGS = "import signal\nsignal.alarm(20)\n"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_where_no_folder_can_be_made() -> None:
    """It says that it can be written to, and that it is not there when one does."""
    code = HANGS + textwrap.dedent("""
        from alphatune.models.output import claimed
        with claimed("/proc/out"):
            pass
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ResourceError: cannot write /proc/out" in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["x" * 240, "x" * 300, "ü" * 125])
def test_a_name_that_is_too_long(name: str, tmp_path: Path) -> None:
    """Refused before anything is measured: the name under which it is written is longer still."""
    with pytest.raises(ConfigurationError, match="at most 236 bytes"):
        check_output(tmp_path / name, overwrite=False)
    with pytest.raises(ConfigurationError, match="at most 236 bytes"):
        check_output_file(tmp_path / f"{name}.onnx", ".onnx", overwrite=False)
    with pytest.raises(ConfigurationError, match="at most 236 bytes"):
        check_file(tmp_path / f"{name}.json", "compare", overwrite=False)
    bundle(tmp_path / ("x" * 236), "fits")


def test_folders_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of a file system, and the folder that one is in."""
    with pytest.raises(ConfigurationError, match="cannot be replaced"):
        check_output(Path("/"), overwrite=True)
    with pytest.raises(ConfigurationError, match="cannot be replaced"):
        check_output(Path("/proc"), overwrite=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be replaced"):
        check_output(Path(), overwrite=True)
