"""``alphatune tune --score``: files, streams and exit codes, and the example of the documentation."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, Run
from test_cli import command

import alphatune
from alphatune.models.sources import build

DOCS = ROOT / "docs" / "other-tasks.md"

OWN = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

print("importing")


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    for _ in range(5):
        model(2 * torch.randn(8, 3, 6, 6))
    return model.eval()


class Marked(DataLoader):
    pass


def loader(n=40):
    print("loading")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 6, 6, generator=generator) + 3 * torch.randn(n, 3, 1, 1, generator=generator)
    return Marked(TensorDataset(x, torch.zeros(n, 2, 2)), 16)


def flatness(outputs, targets):
    print("scoring")
    return -outputs.mean((2, 3)).abs().sum(1)


def nan(outputs, targets):
    return outputs.mean((1, 2, 3)) * float("nan")


def mean(outputs, targets):
    return outputs.mean()


def broken():
    yield torch.zeros(4, 3, 6, 6), 0
    raise OSError("disk gone")


def flat():
    return nn.Flatten()


def fails():
    raise ValueError("no data here")


def number():
    return 3


instance = [(torch.ones(4, 3, 6, 6), None)]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def job(own: Path, score: str = "flatness", data: str = "loader", model: str = "net") -> list[object]:
    return [
        "tune",
        f"{own}:{model}",
        "--data",
        f"{own}:{data}",
        "--score",
        f"{own}:{score}",
        "--alphas",
        "0,0.2,0.5",
    ]


def test_the_folder_and_one_json_object(run: Run, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, err = run(*job(own), "-o", out, "--format", "json")
    assert code == 0, err
    result = json.loads(stdout)
    assert result == json.loads((out / "result.json").read_text())
    assert "scoring" in err  # what own code prints is no result
    assert result["metric"] == "score"
    assert result["score"] == {"source": f"{own}:flatness", "name": "flatness"}
    assert result["data"] == {"source": f"{own}:loader", "n": 40}
    assert [p["alpha"] for p in result["curve"]] == [0, 0.2, 0.5]
    assert result["chosen"]["alpha"] > 0
    assert result["gain"]["significant"]
    assert result["gain"]["metric"] == "score"
    assert result["env"]["batch_size"] == 16
    assert (result["search"], result["refinement"], result["deployment"], result["batch_statistics"]) == (
        None,
    ) * 4
    assert not any("prepared" in w for w in result["warnings"])  # no image was prepared here
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "alphatune.json", "run.toml", "result.json", "curve.csv", "report.md",
        "report.html", "figures",
    }  # fmt: skip
    curve = pd.read_csv(out / "curve.csv")
    assert list(curve) == ["alpha", "measured", "n", "score", "score_delta_low", "score_delta_high"]
    assert curve["score"].tolist() == pytest.approx([p["score"] for p in result["curve"]])
    report = (out / "report.md").read_text()
    assert "| 0.2 |" in report
    assert "own.py:flatness" in report.replace("\\", "")
    model = alphatune.load(out, trust_code=True)
    library = alphatune.tune_score(
        build(f"{own}:net").model, _loader(own), _attribute(own, "flatness"), alphas="0,0.2,0.5"
    )
    assert library.alpha == result["chosen"]["alpha"]
    assert library.chosen == result["chosen"]["metrics"]["score"]
    x = torch.randn(2, 3, 6, 6)
    alphatune.patch_(reference := build(f"{own}:net").model, library.alpha)
    assert torch.equal(model(x), reference(x))


def _attribute(own: Path, name: str):
    from alphatune.models.sources import find_factory

    return find_factory(f"{own}:{name}")


def _loader(own: Path):
    return _attribute(own, "loader")()


def test_run_toml_repeats_the_run_and_a_tuned_folder_is_tuned_again(
    run: Run,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(own.parent)
    relative = [str(a).replace(f"{own.parent}/", "") for a in job(own)]
    code, _, err = run(*relative, "--accept", "best", "-o", tmp_path / "a")
    assert code == 0, err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = run("tune", "--config", tmp_path / "a" / "run.toml", "-o", tmp_path / "b")
    assert code == 0, err
    again = [*job(own), "-o", tmp_path / "c"]
    again[1] = tmp_path / "a"
    code, _, err = run(*again)
    assert code == 3
    assert "--trust-code" in err
    code, _, err = run(*again, "--trust-code")
    assert code == 0, err
    a, b, c = (json.loads((tmp_path / n / "result.json").read_text()) for n in "abc")
    assert a["curve"] == b["curve"] == c["curve"]
    assert a["score"] == b["score"]


def test_the_three_come_from_one_import(run: Run, own: Path, tmp_path: Path) -> None:
    _, _, err = run(*job(own), "-o", tmp_path / "out", "-q")
    assert err.count("importing") == 1
    assert err.count("loading") == 1


def test_what_is_shown(run: Run, own: Path, tmp_path: Path) -> None:
    code, stdout, _ = run(*job(own), "-o", tmp_path / "out")
    assert code == 0
    assert "flatness" in stdout
    assert stdout.startswith("Use α = 0.5\n")
    assert "expected on new images" in stdout
    assert "Next:\n" in stdout
    assert "lowest bar" in run(*job(own), "-o", tmp_path / "more", "-v")[1]
    assert "scoring" not in stdout
    code, stdout, _ = run(*job(own), "-o", tmp_path / "quiet", "--format", "quiet")
    assert stdout == f"{tmp_path / 'quiet'}\n"
    code, stdout, err = run(*job(own), "-o", tmp_path / "plan", "--dry-run")
    assert code == 0
    assert "Plan" in stdout
    assert "scoring" not in err
    assert not (tmp_path / "plan").exists()
    _, stdout, _ = run(*job(own), "-o", tmp_path / "plan", "--dry-run", "--format", "json")
    plan = json.loads(stdout)
    assert plan["model"]["patched"] == ["0", "2"]
    assert plan["alphas"] == [0, 0.2, 0.5]


def test_a_loader_may_be_an_object(run: Run, own: Path, tmp_path: Path) -> None:
    code, stdout, err = run(*job(own, data="instance"), "-o", tmp_path / "out", "--format", "json")
    assert code == 0, err
    assert json.loads(stdout)["data"]["n"] == 4
    assert "too few" in err


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"score": "mean"}, 2, "mean to return one score an example"),
        ({"score": "nan"}, 6, "nan is nan for example 0 at α = 0"),
        ({"score": "flatnes"}, 2, "did you mean flatness"),
        ({"score": "instance"}, 2, "must name a function"),
        ({"data": "broken"}, 3, "disk gone"),
        ({"data": "fails"}, 2, "no data here"),
        ({"data": "number"}, 2, "must give an iterable"),
        ({"model": "flat"}, 4, "no normalisation layer"),
    ],
)
def test_exit_codes(run: Run, own: Path, tmp_path: Path, change: dict, code: int, message: str) -> None:
    found, stdout, _ = run(*job(own, **change), "-o", tmp_path / "out", "--format", "json")
    assert found == code
    error = json.loads(stdout)["error"]
    assert error["code"] == code
    assert message in f"{error['message']} ({error['hint']})"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "miou"], "package.module:function or file.py:function"),
        (["--score", "nowhere.at_all:f"], "cannot import"),
        (["--score", "missing.py:f"], "no such file"),
        (["--data", "photos/val"], "a loader of your own"),
        (["--metric", "loss"], "--metric does not go with --score"),
        (["--split", "test"], "--split does not go with --score"),
        (["--mean", "0.5"], "--mean does not go with --score"),
        (["--batch-stats"], "--batch-stats does not go with --score"),
        (["--alphas", "2"], "alpha must lie in"),
    ],
)
def test_usage(run: Run, own: Path, tmp_path: Path, options: list, message: str) -> None:
    argv = job(own)
    if options[0] == "--data":  # a second one would be a further condition
        place = argv.index("--data")
        argv = [*argv[:place], *argv[place + 2 :]]
    code, _, err = run(*argv, *options, "-o", tmp_path / "out")
    assert code == 2
    assert message in err


def test_a_loader_without_a_score(run: Run, own: Path, tmp_path: Path) -> None:
    code, _, err = run("tune", f"{own}:net", "--data", f"{own}:loader", "-o", tmp_path / "out")
    assert code in (2, 3)
    assert "a loader of your own goes with --score" in err


def test_the_input_is_never_overwritten(run: Run, own: Path, tmp_path: Path) -> None:
    run(*job(own), "-o", tmp_path / "out", "-q")
    (tmp_path / "out" / "score.py").write_text(OWN)
    args = job(own)
    args[5] = f"{tmp_path / 'out' / 'score.py'}:flatness"
    code, _, err = run(*args, "-o", tmp_path / "out", "--overwrite")
    assert code == 2
    assert "holds the input" in err
    assert run(*job(own), "-o", tmp_path / "out")[0] == 2
    assert run(*job(own), "-o", tmp_path / "out", "--overwrite", "-q")[0] == 0


def test_several_processes_are_refused(
    run: Run,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run(*job(own), "-o", tmp_path / "out")
    assert code == 2
    assert "one process" in err


@pytest.mark.slow
def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real entry point, and in Python."""
    page = DOCS.read_text(encoding="utf-8")
    own, library, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (line,) = re.findall(r"```bash\n(alphatune tune .*?)```", page, re.DOTALL)
    (tmp_path / "segmentation.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "segmentation", raising=False)
    namespace: dict = {}
    exec(own, namespace)
    network = namespace["model"]().train()
    with torch.no_grad():
        for images, _ in namespace["loader"]():
            network(images)
    torch.save(network.state_dict(), "best.pth")
    done = command(*shlex.split(line.replace("\\\n", " "))[1:], "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["data"]["n"] == 24
    assert [p["alpha"] for p in result["curve"]] == [0, 0.02, 0.05]
    assert 0 < result["curve"][0]["score"] < 1
    exec(library, {})
    assert (tmp_path / "tuned-by-hand" / "model.safetensors").is_file()


def test_the_other_scores_of_the_documentation() -> None:
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[2]
    namespace: dict = {}
    exec(code, namespace)
    assert namespace["regression"](torch.ones(3, 1), torch.zeros(3)).tolist() == [-1, -1, -1]
    truth = {"depth": torch.zeros(2, 4, 4), "known": torch.ones(2, 4, 4)}
    assert namespace["depth"]((torch.ones(2, 1, 4, 4), None), truth).tolist() == [-1, -1]
    masks = torch.arange(32).view(2, 4, 4) % 2
    rows = namespace["accuracy"](torch.stack([torch.ones(2, 4, 4), torch.zeros(2, 4, 4)], 1), masks)
    assert namespace["accuracy"].value(rows.numpy()) == 0.5


def test_torchvision_segmentation_needs_no_download() -> None:
    source = build("torchvision:lraspp_mobilenet_v3_large", pretrained=False)
    assert source.kind == "torchvision"
    assert source.preprocessing is None
