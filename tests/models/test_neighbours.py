"""Code of the user's own imports what lies beside it, whenever it does, and nothing else changes."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_cli import command
from torch import nn
from torch.utils.data import DataLoader

from alphatune.core.errors import ConfigurationError
from alphatune.jobs.custom_code import find_score, open_loader
from alphatune.models.sources import build


@pytest.fixture(autouse=True)
def nothing_else_changes() -> Iterator[None]:
    path, finders = list(sys.path), list(sys.meta_path)
    yield
    assert sys.path == path
    assert sys.meta_path == finders


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(text))
    return folder


INSIDE = {
    "statement": "from blocks_a import channels",
    "whole module": "import blocks_a; channels = blocks_a.channels",
    "renamed": "import blocks_a as b; channels = b.channels",
    "import_module": "import importlib; channels = importlib.import_module('blocks_a').channels",
    "package": "from helpers_a.sizes import channels",
    "dotted": "import helpers_a.sizes; channels = helpers_a.sizes.channels",
    "relative": "from helpers_a import channels",
    "without __init__": "from plain_a.sizes import channels",
    "in a neighbour's function": "import later_a; channels = later_a.find()",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``channels`` is 5 in modules and packages; each test has modules of its own."""
    write(tmp_path / "blocks", blocks_a="channels = 5")
    write(tmp_path / "blocks" / "helpers_a", __init__="from .sizes import channels", sizes="channels = 5")
    write(tmp_path / "blocks" / "plain_a", sizes="channels = 5")
    write(tmp_path / "blocks", later_a="def find():\n    from blocks_a import channels\n    return channels")
    yield tmp_path / "blocks"
    for name in [n for n in sys.modules if n.partition(".")[0].endswith("_a")]:
        del sys.modules[name]


@pytest.mark.parametrize("how", INSIDE)
def test_when_the_factory_is_called(folder: Path, how: str) -> None:
    write(folder, net=f"def net():\n    {INSIDE[how]}\n    return nn.BatchNorm2d(channels)")
    assert build(f"{folder / 'net.py'}:net").model.num_features == 5


@pytest.mark.parametrize("how", [how for how in INSIDE if how != "import_module"])
def test_in_a_forward_long_after(folder: Path, how: str) -> None:
    write(folder, net=f"""
        class Net(nn.BatchNorm2d):
            def __init__(self):
                super().__init__(3)
            def forward(self, x):
                {INSIDE[how]}
                return super().forward(x) * channels
    """)  # fmt: skip
    model = build(f"{folder / 'net.py'}:Net").model.eval()
    assert torch.allclose(model(torch.ones(1, 3, 2, 2)), torch.tensor(5.0), rtol=1e-4)
    assert torch.allclose(copy.deepcopy(model)(torch.ones(1, 3, 2, 2)), torch.tensor(5.0), rtol=1e-4)
    exported = torch.export.export(model, (torch.ones(1, 3, 2, 2),)).module()
    assert torch.allclose(exported(torch.ones(1, 3, 2, 2)), torch.tensor(5.0), rtol=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_and_a_score(folder: Path, workers: int) -> None:
    write(folder, own=f"""
        class Images(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                from helpers_a.sizes import channels
                if index == 4:
                    raise IndexError
                return torch.full((3, 2, 2), float(channels)), index
        def loader():
            import importlib
            batch_size = importlib.import_module("blocks_a").channels - 3
            return torch.utils.data.DataLoader(Images(), batch_size, num_workers={workers})
        def score(outputs, targets):
            import importlib
            from plain_a.sizes import channels
            assert channels == importlib.import_module("blocks_a").channels
            return outputs.mean((1, 2, 3)) * channels
    """)  # fmt: skip
    loader = open_loader(f"{folder / 'own.py'}:loader")
    assert isinstance(loader, DataLoader)
    score = find_score(f"{folder / 'own.py'}:score")
    assert score.__name__ == "score"
    values = [score(images, targets) for images, targets in loader]
    assert torch.equal(torch.cat(values), torch.full((4,), 25.0))


def test_two_folders_have_neighbours_of_one_name(tmp_path: Path) -> None:
    """Whichever was read first, each keeps its own: at import, when it is called, and in every forward."""
    net = """
        from utils import scale
        class Net(nn.BatchNorm2d):
            def __init__(self):
                import importlib
                from utils import scale as late
                assert scale == late == importlib.import_module("utils").scale
                super().__init__(3)
            def forward(self, x):
                import utils
                from helpers.parts import scale as part
                assert utils.scale == scale == part
                return super().forward(x) * scale
    """
    models = []
    for number in (2, 3):
        home = write(tmp_path / str(number), net=net, utils=f"scale = {number}")
        write(home / "helpers", __init__="", parts="import utils\nscale = utils.scale")
        models.append(build(f"{home / 'net.py'}:Net").model.eval())
    ones = torch.ones(1, 3, 2, 2)
    for _ in range(2):
        for model, number in zip(models, (2, 3), strict=True):
            assert torch.allclose(model(ones), torch.tensor(float(number)), rtol=1e-4)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("utils", "helpers")]:
        del sys.modules[name]


def test_a_neighbour_is_called_like_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed ``utils`` stays what it is for everybody else; what this process runs on is never replaced."""
    installed = tmp_path / "installed"
    write(installed / "utils_b", __init__="scale = 1", more="scale = 1")
    monkeypatch.syspath_prepend(str(installed))
    import utils_b  # type: ignore[import-not-found]
    import utils_b.more  # type: ignore[import-not-found]

    home = write(tmp_path / "home", utils_b="scale = 2", timm="scale = 2", json="scale = 2")
    write(home, net="""
        import json
        import timm
        def net():
            import utils_b
            assert hasattr(timm, "create_model") and hasattr(json, "dumps")
            return nn.BatchNorm2d(utils_b.scale)
    """)  # fmt: skip
    (home / "utils_b_data").mkdir()
    assert build(f"{home / 'net.py'}:net").model.num_features == 2
    assert sys.modules["utils_b"] is utils_b
    assert sys.modules["utils_b.more"] is utils_b.more
    assert utils_b.scale == 1


def test_a_folder_of_data_hides_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "installed" / "wandb_c", __init__="scale = 4")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    home = write(
        tmp_path / "home", net="def net():\n    import wandb_c\n    return nn.BatchNorm2d(wandb_c.scale)"
    )
    (home / "wandb_c").mkdir()
    assert build(f"{home / 'net.py'}:net").model.num_features == 4


def test_what_a_neighbour_holds_is_itself_again(folder: Path) -> None:
    """A module is run once, and classes of it can be pickled."""
    write(folder, block_a="class Block(nn.BatchNorm2d):\n    pass")
    write(folder, net="""
        def net():
            import block_a
            from block_a import Block
            assert Block is block_a.Block
            return Block(3)
    """)  # fmt: skip
    first, second = (build(f"{folder / 'net.py'}:net").model for _ in range(2))
    assert type(first) is type(second)
    assert isinstance(pickle.loads(pickle.dumps(first)), nn.BatchNorm2d)


def test_a_module_beside_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, net_a="def net():\n    from blocks_a import channels\n    return nn.BatchNorm2d(channels)")
    monkeypatch.chdir(folder)
    assert build("net_a:net").model.num_features == 5
    monkeypatch.chdir("/")
    write(
        folder,
        late_a="class Net(nn.BatchNorm2d):\n    def forward(self, x):\n        import blocks_a\n        return x",
    )
    monkeypatch.chdir(folder)
    model = build("late_a:Net", model_kwargs={"num_features": 3}).model
    monkeypatch.chdir("/")
    model(torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize("text", ["def net():\n    import nowhere_d", "import nowhere_d", "1 / 0"])
def test_failures_leave_nothing_behind(tmp_path: Path, text: str) -> None:
    home = write(tmp_path, net=text)
    before = set(sys.modules)
    with pytest.raises(ConfigurationError):
        build(f"{home / 'net.py'}:net")
    assert {name for name in set(sys.modules) - before if not name.startswith("_alphatune")} == set()


def test_a_file_of_a_package(tmp_path: Path) -> None:
    home = write(
        tmp_path / "mine",
        __init__="",
        blocks="",
        net="from .blocks import nn\ndef net():\n    return nn.BatchNorm2d(3)",
    )
    with pytest.raises(ConfigurationError, match="relative import") as failed:
        build(f"{home / 'net.py'}:net")
    assert "mine.net:FACTORY" in failed.value.hint


NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    def forward(self, x):
        if self.norm.__class__.__name__ != "BatchNorm2d":
            from blocks_a import scale
        else:
            scale = 1
        return self.norm(self.conv(x)).mean((2, 3)) * scale
"""


@pytest.mark.slow
def test_on_the_command_line(
    folder: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a tuned folder; and a result is not taken for another's whose late neighbour differs."""
    monkeypatch.setenv("ALPHATUNE_CACHE", str(tmp_path / "cache"))
    write(folder, net=NET, blocks_a="scale = 1")
    words = "--input-size 16 --mean 0.5 --std 0.5 --alphas 0,0.5 --metric loss --accept best --workers 0 --limit 24"
    job = ["tune", f"{folder / 'net.py'}:Net", "--data", image_folder, *words.split(), "--format", "json", "--overwrite",
           "-o", tmp_path / "out"]  # fmt: skip
    first = json.loads(succeeded(*job))
    write(folder, blocks_a="scale = 1000")
    assert json.loads(succeeded(*job))["curve"] != first["curve"]
    succeeded("evaluate", tmp_path / "out", "--trust-code", "--data", image_folder, "--workers", 0)


def succeeded(*words: object) -> str:
    done = command(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout
