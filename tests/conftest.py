"""Shared fixtures: real data where they lie beside the project, and small made-up ones."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from alphatune.cli.options import NO_BARS
from alphatune.core.versions import TORCH_FOR, torch_allows

sys.path.insert(0, str(Path(__file__).parent))
from blank_figures import blank_figures

os.environ["ALPHATUNE_CACHE"] = "off"  # a test that repeats a run means to run it again

# Threads that share out such small tensors mostly wait for each other: one is faster, and steadier on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Every run tries the same examples, so that a change, not chance, turns a run red; HYPOTHESIS_PROFILE=default searches.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# A test module may use what is defined in another one, in whichever folder.
sys.path += [str(folder) for folder in TESTS.iterdir() if folder.is_dir()]
#: PYTHONPATH of a child that runs a test module
CHILD_PATH = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))

SHARED = Path(os.environ.get("ALPHATUNE_TEST_DATA") or ROOT.parent / "shared" / "data")
TINY = f"{TESTS / 'tiny.py'}:tiny"
CLASSES = ("ant", "bee", "cat", "dog")

Run = Callable[..., tuple[int, str, str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))  # whoever runs it looks at it


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    for name in NO_BARS:  # which a command of a test before may have set, for good
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _blank_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures are drawn only where a module says ``DRAWS_FIGURES``, and in slow tests."""
    drawn = hasattr(request.module, "DRAWS_FIGURES") or request.node.get_closest_marker("slow")
    with contextlib.nullcontext() if drawn else blank_figures():
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: (exit code, stdout, stderr)."""
    from alphatune.cli.main import main

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def slow(*values: object) -> Any:
    """Values of ``parametrize`` that are tried with ``-m slow`` only."""
    return pytest.param(*values, marks=pytest.mark.slow)


def needs_torch(what: str) -> pytest.MarkDecorator:
    """Skip a test of something that the installed torch is too old for."""
    reason = f"{what} needs torch {TORCH_FOR[what]}, this is {torch.__version__}"
    return pytest.mark.skipif(not torch_allows(what), reason=reason)


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the project")
    return path


@pytest.fixture(scope="session")
def cifar_test() -> Path:
    return _shared("cifar10-jpeg-test.tar")


@pytest.fixture(scope="session")
def resnet20_checkpoint() -> Path:
    return _shared("resnet-cifar10/resnet20-12fca82f.th")


@pytest.fixture(scope="session")
def resnet56_checkpoint() -> Path:
    return _shared("resnet-cifar10/resnet56-4bfd9763.th")


@pytest.fixture(scope="session")
def imagenet_val() -> Path:
    return _shared("imagenet-val-1300.tar")


@pytest.fixture(scope="session")
def imagenet_class_map() -> Path:
    return _shared("imagenet-class-map.txt")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of 12×12 images that a model can tell apart by colour."""
    return write_images(tmp_path_factory.mktemp("images"))


def write_images(root: Path, per_class: int = 12, classes: tuple[str, ...] = CLASSES, side: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 160, (side, side, 3)) + 80 * (np.arange(3) == label % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03}.png")
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of tests/tiny.py with moving averages that data of this kind could leave."""
    from tiny import tiny

    torch.manual_seed(1)
    model = tiny().train()
    for _ in range(20):
        model(torch.randn(16, 3, 12, 12))
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    return path
