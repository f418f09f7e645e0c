"""Results by content: the same job is answered from the cache, any other is measured."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, TINY, Run
from forks import run_captured

from alphatune.jobs import result_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALPHATUNE_CACHE", str(folder))
    return folder


@pytest.fixture
def data(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


@pytest.fixture
def words(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> list[object]:
    weights = shutil.copy(tiny_checkpoint, tmp_path / "tiny.pth")
    code = shutil.copy(TINY.rpartition(":")[0], tmp_path / "tiny_copy.py")
    return ["tune", f"{code}:tiny", "--checkpoint", weights, "--data", data, "--input-size", 12, "--crop-pct", 1,
            "--mean", "0.5", "--std", "0.25", "--workers", 0, "--alphas", "0,0.5", "--accept", "best",
            "--metric", "loss", "--format", "json", "--overwrite", "-o", tmp_path / "out"]  # fmt: skip


def tuned(run: Run, words: list[object], *more: object) -> dict:
    code, out, err = run(*words, *more)
    assert code == 0, err
    return json.loads(out)


OF_THE_RUN = ("cache", "command_line", "artifacts", "gates")


def test_the_same_job_again(run: Run, cache: Path, words: list[object], tmp_path: Path) -> None:
    first = tuned(run, words)
    before = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir() if f.is_file()}
    assert first["cache"] is None
    again = tuned(run, words, "-o", tmp_path / "elsewhere", "--workers", 1)
    assert again["cache"]["key"] in {entry.name for entry in cache.iterdir()}
    assert again["seconds"] == first["seconds"]  # nothing was run
    assert {k: v for k, v in again.items() if k not in OF_THE_RUN} == {
        k: v for k, v in first.items() if k not in OF_THE_RUN
    }
    after = {f.name: f.read_bytes() for f in (tmp_path / "elsewhere").iterdir() if f.is_file()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"run.toml", "result.json"}
    assert "elsewhere" in after["run.toml"].decode()
    for artifact in again["artifacts"]:
        file = tmp_path / "elsewhere" / artifact["path"]
        assert result_cache.sha256(file) == artifact["sha256"]


def test_a_hit_says_so(run: Run, cache: Path, words: list[object]) -> None:
    tuned(run, words)
    _, _, err = run(*words)
    assert "from the cache: measured 20" in err


def test_a_hit_leaves_nothing_to_go_on_from(
    run: Run, cache: Path, words: list[object], tmp_path: Path
) -> None:
    """A run that broke off had kept its state beside the output; an answer from the cache ends it."""
    tuned(run, words)
    state = tmp_path / ".again.alphatune-resume"
    for extra in ([], ["--resume"]):
        state.mkdir()
        (state / "job.json").write_text("{}")
        assert tuned(run, words, "-o", tmp_path / "again", "--overwrite", *extra)["cache"] is not None
        assert not state.exists()


def test_gates_are_judged_anew(run: Run, cache: Path, words: list[object], tmp_path: Path) -> None:
    def page() -> str:
        return (tmp_path / "out" / "report.html").read_text()

    assert tuned(run, words)["gates"] == []
    assert "min-gain" not in page()
    code, out, _ = run(*words, "--min-gain", 100)
    assert code == 1
    found = json.loads(out)
    assert found["cache"] is not None
    assert [g["passed"] for g in found["gates"]] == [False]
    for shown in (page(), (tmp_path / "out" / "report.md").read_text()):
        assert "failed" in shown
        assert "min-gain" in shown
    hashes = {a["path"]: a["sha256"] for a in found["artifacts"]}
    assert hashes["report.html"] == result_cache.sha256(tmp_path / "out" / "report.html")
    written = page()
    assert run("report", tmp_path / "out")[0] == 0  # draws it again as it is
    assert page() == written
    assert tuned(run, words, "--max-regression", "top5=1")["gates"][0]["passed"]
    assert "min-gain" not in page()


@pytest.mark.parametrize(
    "more", [["--metric", "top1"], ["--alphas", "0,0.4"], ["--seed", 1], ["--limit", 40], ["--std", "0.26"],
             ["--batch-size", 8], ["--min-positions", 2], ["--accept", "significant"], ["--thumbnails", 0]],
    ids=lambda more: more[0],
)  # fmt: skip
def test_other_settings_are_another_job(
    run: Run, cache: Path, words: list[object], more: list[object]
) -> None:
    tuned(run, words)
    assert tuned(run, words, *more)["cache"] is None


def test_an_image_that_changed(run: Run, cache: Path, words: list[object], data: Path) -> None:
    tuned(run, words)
    image, other = data / "ant" / "000.png", data / "ant" / "001.png"
    content = image.read_bytes()
    image.write_bytes(other.read_bytes())
    assert tuned(run, words)["cache"] is None
    image.write_bytes(content)
    assert tuned(run, words)["cache"] is not None


def test_weights_that_changed(run: Run, cache: Path, words: list[object], tmp_path: Path) -> None:
    tuned(run, words)
    path = tmp_path / "tiny.pth"
    state = torch.load(path)
    torch.save(state, path)  # the same weights in another file
    assert tuned(run, words)["cache"] is not None
    next(iter(state["state_dict"].values())).view(-1)[0] += 1e-3
    torch.save(state, path)
    assert tuned(run, words)["cache"] is None


def test_code_of_ones_own_that_changed(cache: Path, words: list[object], tmp_path: Path) -> None:
    def cached() -> bool:
        done = run_captured(words, environment={"ALPHATUNE_CACHE": str(cache)})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["cache"] is not None

    assert not cached()
    assert cached()
    with (tmp_path / "tiny_copy.py").open("a") as code:
        code.write("\n# anything\n")
    assert not cached()


EDITS = """
class Edits(Tiny):
    def forward(self, x):
        if len(x) > 8 and os.path.exists(EDITED):  # not where the model is tried
            os.replace(EDITED, IMAGE)
        return super().forward(x)

def tiny():
    return Edits()
"""


def test_an_image_that_changed_meanwhile(
    run: Run, cache: Path, words: list[object], data: Path, tmp_path: Path
) -> None:
    """The key is that of the images before: they are put back, and nothing was kept of them."""
    image, other = (data / name / "000.png" for name in CLASSES[:2])
    content = image.read_bytes()
    edited = shutil.copy(other, tmp_path / "edited")
    with (tmp_path / "tiny_copy.py").open("a") as code:
        code.write(f"import os\nEDITED, IMAGE = {str(edited)!r}, {str(image)!r}\n{EDITS}")
    tuned(run, words)
    assert image.read_bytes() == other.read_bytes()
    image.write_bytes(content)
    assert tuned(run, words)["cache"] is None
    assert tuned(run, words)["cache"] is not None


def test_no_cache(run: Run, cache: Path, words: list[object]) -> None:
    tuned(run, words)
    assert tuned(run, words, "--no-cache")["cache"] is None
    assert tuned(run, words)["cache"] is not None  # and took nothing away
    config = Path(str(words[-1])) / "run.toml"
    assert "no_cache =" not in config.read_text()  # consent to be believed again is the default


def test_off(run: Run, cache: Path, words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    tuned(run, words)
    monkeypatch.setenv("ALPHATUNE_CACHE", "off")
    assert tuned(run, words)["cache"] is None


@pytest.mark.parametrize("damage", ["changed", "gone", "result"])
def test_a_damaged_entry_is_no_hit(run: Run, cache: Path, words: list[object], damage: str) -> None:
    first = tuned(run, words)
    (entry,) = (e for e in cache.iterdir() if len(e.name) == 64)
    if damage == "changed":
        (entry / "scores.npz").write_bytes(b"something else")
    elif damage == "gone":
        (entry / "model.safetensors").unlink()
    else:
        (entry / "result.json").write_text("{")
    again = tuned(run, words)
    assert again["cache"] is None
    assert again["chosen"] == first["chosen"]
    assert tuned(run, words)["cache"] is not None  # it was replaced


def test_a_folder_that_others_can_write_to_is_not_believed(
    run: Run, cache: Path, words: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    tuned(run, words)
    assert list(cache.iterdir()) == []
    said = [record.getMessage() for record in caplog.records if record.name == "alphatune"]
    assert len(said) == 1
    assert f"the cache {cache} is not used" in said[0]


def test_the_oldest_go_first(
    run: Run, cache: Path, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(run, words)
    (first,) = (e for e in cache.iterdir() if len(e.name) == 64)
    size = sum(f.stat().st_size for f in first.rglob("*") if f.is_file())
    monkeypatch.setattr(result_cache, "MOST_BYTES", int(2.5 * size))
    os.utime(first, (1, 1))
    for seed in (1, 2):
        tuned(run, words, "--seed", seed)
        time.sleep(0.02)
    entries = {e.name for e in cache.iterdir() if len(e.name) == 64}
    assert len(entries) == 2
    assert first.name not in entries
    monkeypatch.setattr(result_cache, "MOST_BYTES", size // 2)
    tuned(run, words, "--seed", 3)  # too large to keep: nothing else has to go for it
    assert {e.name for e in cache.iterdir() if len(e.name) == 64} == entries


def test_notes_go_as_well(
    run: Run, cache: Path, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note names every file that a job read: of many jobs on many images they are not small."""
    old = cache / "notes" / f"job-{'0' * 64}.json"
    old.parent.mkdir(parents=True)
    old.write_bytes(b" " * 10_000_000)
    os.utime(old, (1, 1))
    monkeypatch.setattr(result_cache, "MOST_BYTES", 10_000_000)
    tuned(run, words)
    assert not old.exists()
    assert tuned(run, words)["cache"] is not None


def test_how_long_inference_takes_is_asked_of_this_machine(
    run: Run, cache: Path, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate is not judged by another runner's clock; without such a gate another runner's answer will do."""
    gate = ["--max-latency-ratio", 100]
    tuned(run, words, *gate)
    assert tuned(run, words, *gate)["cache"] is not None
    tuned(run, words)
    monkeypatch.setattr("platform.node", lambda: "another runner")
    assert tuned(run, words)["cache"] is not None
    assert tuned(run, words, *gate)["cache"] is None


@pytest.mark.parametrize("off", ["off", "OFF", "0", "false", "No"])
def test_the_cache_can_be_switched_off(off: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALPHATUNE_CACHE", off)
    assert result_cache.results_folder() is None
    assert list(tmp_path.iterdir()) == []


def test_averages_measured_first(
    run: Run, cache: Path, words: list[object], data: Path, tmp_path: Path
) -> None:
    more = ["--recalibrate", data]
    first = tuned(run, words, *more)
    again = tuned(run, words, *more)
    assert again["cache"] is not None
    assert again["recalibration"] == first["recalibration"]
    code, out, _ = run("evaluate", tmp_path / "out", "--trust-code", "--data", data, "--workers", 0,
                       "--format", "json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(first["chosen"]["metrics"]["loss"], abs=1e-6)


def test_preprocessing_that_comes_with_the_weights(
    run: Run, cache: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose config.json was edited holds the same weights, and other images."""
    from alphatune.core import hashing
    from alphatune.data.preprocessing import Preprocessing
    from alphatune.models.bundle import save
    from alphatune.models.sources import build

    monkeypatch.setattr(hashing, "UNSETTLED", -(10**18))  # so that a job is noted although its files are new
    source = build("test_resnet", pretrained=False, model_kwargs={"num_classes": 4})
    folder = save(source.model, tmp_path / "m", source=source, preprocessing=Preprocessing((3, 16, 16)))
    (folder / "alphatune.json").unlink()
    given = ["tune", f"local-dir:{folder}", "--data", data, "--workers", 0, "--alphas", "0,0.2", "--format", "json",
             "--overwrite", "-o", tmp_path / "out"]  # fmt: skip
    first = tuned(run, given)
    assert tuned(run, given)["cache"] is not None
    config = folder / "config.json"
    text = config.read_text()
    assert text.count("0.485") == 1
    config.write_text(text.replace("0.485", "0.385"))
    again = tuned(run, given)
    assert again["cache"] is None
    assert again["data"]["preprocessing"]["mean"][0] == 0.385
    assert again["baseline"] != first["baseline"]


SCALED = """
import json
import pathlib
from torch import nn

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.settings = json.loads(pathlib.Path(__file__).with_name("scale.json").read_text())

    def forward(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3)) * self.settings["scale"]
"""


def test_what_a_model_of_ones_own_has_read(
    run: Run, cache: Path, words: list[object], tmp_path: Path
) -> None:
    """Numbers that are neither weights nor shown: the file that they come from is nowhere named."""
    (tmp_path / "scaled.py").write_text(SCALED)
    scale = tmp_path / "scale.json"
    scale.write_text('{"scale": 1.0}')
    weights = tmp_path / "scaled.pth"
    generator = torch.Generator().manual_seed(0)
    torch.save(
        {
            "conv.weight": torch.randn(4, 3, 3, 3, generator=generator), "conv.bias": torch.zeros(4),
            "norm.weight": torch.ones(4), "norm.bias": torch.zeros(4), "norm.running_mean": torch.zeros(4),
            "norm.running_var": torch.ones(4), "norm.num_batches_tracked": torch.tensor(1),
        },
        weights,
    )  # fmt: skip
    given = ["tune", f"{tmp_path / 'scaled.py'}:Scaled", "--checkpoint", weights, *words[4:]]
    first = tuned(run, given)
    assert tuned(run, given)["cache"] is not None
    scale.write_text('{"scale": 3.0}')
    again = tuned(run, given)
    assert again["cache"] is None
    assert again["baseline"]["loss"] != first["baseline"]["loss"]


def test_code_beside_a_models_layers(cache: Path) -> None:
    """An installed package is no library whose version the key holds: all of it that is loaded is looked at."""
    from alphatune.jobs.job_key import code_of

    model = torch.nn.Sequential(torch.nn.ReLU())
    model[0].__class__ = type("Own", (torch.nn.ReLU,), {"__module__": "safetensors.layers"})
    names = {Path(file).name for file in code_of(model, "resnet50")}
    assert "torch.py" in names  # safetensors.torch, which alphatune has loaded
    assert {Path(file).name for file in code_of(torch.nn.ReLU(), "safetensors.torch:load")} == names
    assert not set(code_of(torch.nn.ReLU(), "resnet50"))
