"""How images are prepared is said before the work, and images that nobody meant to enlarge stop the run."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Run, write_images
from PIL import Image

from alphatune.core.errors import ConfigurationError
from alphatune.data.datasets import open_data
from alphatune.data.examples import Examples
from alphatune.data.image_sizes import image_sizes
from alphatune.data.preprocessing import CROP_MODES, Preprocessing
from alphatune.jobs.evaluate import run_evaluate
from alphatune.models.cifar import CifarResNet
from alphatune.models.sources import build
from alphatune.settings import EvaluateSettings

#: asks for a model as its factory makes it
RANDOM = ("--no-pretrained",)
#: models of one's own: one that declares 224, one that declares a size and nothing else
MODELS = """
from tiny import tiny

def large():
    model = tiny()
    model.pretrained_cfg = {"input_size": (3, 224, 224), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    return model

def sized():
    model = tiny()
    model.pretrained_cfg = {"input_size": (3, 12, 12), "crop_pct": 1.0}
    return model
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("models") / "small_and_large.py"
    file.write_text(MODELS, encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four classes in images that a size of 224 makes smaller."""
    root = tmp_path_factory.mktemp("large")
    for file in write_images(root / "small", per_class=1).rglob("*.png"):
        target = root / "images" / file.parent.name / file.name
        target.parent.mkdir(parents=True)
        Image.open(file).resize((400, 300)).save(target)
    return root / "images"


# --- how much a resize enlarges --------------------------------------------------------------------


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("wanted", [(3, 24, 24), (3, 16, 40)])
@pytest.mark.parametrize("size", [(12, 12), (10, 30), (30, 10), (80, 50)])
def test_enlargement_is_that_of_the_transform(
    crop_mode: str, wanted: tuple[int, int, int], size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(wanted, crop_pct=0.8, crop_mode=crop_mode)
    height, width = size
    resized = preprocessing.transform().transforms[0](Image.new("RGB", (width, height)))
    by_area = (resized.width * resized.height / (width * height)) ** 0.5
    assert preprocessing.enlargement(height, width) == pytest.approx(by_area, rel=0.05)


# --- the sizes of images, wherever they come from ---------------------------------------------------


def examples_of(kind: str, folder: Path, tmp_path: Path) -> Examples:
    if kind == "folder":
        return open_data(folder)
    if kind == "archive":
        with tarfile.open(tmp_path / "images.tar", "w") as tar:
            tar.add(folder, "images")
        return open_data(tmp_path / "images.tar")
    if kind == "arrays":
        np.savez(tmp_path / "a.npz", images=np.zeros((6, 12, 12, 3), np.uint8), labels=np.arange(6))
        return open_data(tmp_path / "a.npz")
    if kind == "channels first":
        np.savez(tmp_path / "a.npz", images=np.zeros((6, 3, 12, 12), np.uint8), labels=np.arange(6))
        return open_data(tmp_path / "a.npz")
    if kind == "shards":
        with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
            for number, file in enumerate(sorted(folder.rglob("*.png"))):
                (tmp_path / "cls").write_text(str(number % 4))
                tar.add(file, f"{number:03}.png")
                tar.add(tmp_path / "cls", f"{number:03}.cls")
        return open_data(f"wds/{tmp_path / 'a-0.tar'}")
    if kind == "table":
        datasets = pytest.importorskip("datasets")
        datasets.load_dataset("imagefolder", data_dir=str(folder))["train"].save_to_disk(str(tmp_path / "t"))
        return open_data(f"hfds/{tmp_path / 't'}")

    targets = np.zeros(1000, np.int64)
    return Examples("s", "", "", (), targets, np.arange(1000), None, _endless)


def _endless() -> Iterator[Any]:
    while True:
        yield Image.new("RGB", (12, 12)), 0


@pytest.mark.parametrize(
    "kind", ["folder", "archive", "arrays", "channels first", "shards", "table", "stream"]
)
def test_sizes_of_a_few_images(kind: str, image_folder: Path, tmp_path: Path) -> None:
    found = image_sizes(examples_of(kind, image_folder, tmp_path))
    assert 0 < len(found) <= 32
    assert set(found) == {(12, 12)}


def test_images_that_cannot_be_read_are_left_to_whoever_reads_them(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", per_class=2)
    (folder / "ant" / "000.png").write_bytes(b"no image")
    (folder / "bee" / "000.png").write_bytes(b"")
    assert image_sizes(open_data(folder)) == [(12, 12)] * 6


# --- the stop ---------------------------------------------------------------------------------------


def words(command: str, model: str, data: Path, tmp_path: Path) -> list[object]:
    made = ["--output", tmp_path / "out"] if command in ("tune", "train") else []
    return [command, model, "--data", data, "--workers", 0, *made]


@pytest.mark.parametrize("command", ["tune", "evaluate", "train", "inspect"])
@pytest.mark.parametrize("model", ["tiny", "large"])
def test_small_images_stop_the_run(
    run: Run, image_folder: Path, tmp_path: Path, models: str, command: str, model: str
) -> None:
    spec = TINY if model == "tiny" else f"{models}:large"
    code, stdout, stderr = run(*words(command, spec, image_folder, tmp_path))
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("error: the images of ")
    assert "are 12×12, and would be enlarged 21.3-fold" in line
    assert ("the model declares no size" if model == "tiny" else "the model declares --input-size") in line
    assert "--input-size 12 --crop-pct 1" in line
    assert "--input-size 3,224,224" in line
    assert not (tmp_path / "out").exists()


def test_timm_and_a_dry_run(run: Run, image_folder: Path, tmp_path: Path) -> None:
    timm = ["test_resnet", "--no-pretrained", "--model-kwargs", "num_classes=4", "--data", image_folder]
    code, _, stderr = run("tune", *timm, "--dry-run")
    assert code == 2
    assert "the model declares --input-size 3,160,160" in stderr
    assert run("tune", *timm, "--dry-run", "--input-size", 32, "--workers", 0)[0] == 0


def test_whoever_gives_the_size_goes_on(
    run: Run, image_folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """By option, by run.toml and from Python; and the enlarged images are pointed out."""
    given = [TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--workers", 0]
    code, _, stderr = run("evaluate", *given, "--input-size", 48)
    assert code == 0
    assert "images of" in stderr.splitlines()[0]
    assert "are 12×12, and are enlarged 4.5-fold" in stderr.splitlines()[0]
    (tmp_path / "run.toml").write_text('input_size = "48"\n')
    assert run("evaluate", *given, "--config", tmp_path / "run.toml")[0] == 0
    settings: dict[str, Any] = {"model": TINY, "data": str(image_folder), "workers": "0", "pretrained": False}
    run_evaluate(EvaluateSettings(**settings, input_size="48"))
    with pytest.raises(ConfigurationError, match="enlarged"):
        run_evaluate(EvaluateSettings(**settings))


def test_a_tuned_folder_goes_on_as_it_was_tuned(
    run: Run, image_folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    given = ["--checkpoint", tiny_checkpoint, "--data", image_folder, "--workers", 0, "--alphas", "0,0.1"]
    code, _, stderr = run("tune", TINY, *given, "--input-size", 48, "-o", tmp_path / "out")
    assert code == 0, stderr
    again = ["evaluate", tmp_path / "out", "--trust-code", "--data", image_folder, "--workers", 0]
    code, stdout, stderr = run(*again, "--format", "json")
    assert code == 0, stderr
    assert stderr.startswith(f"preprocessing: from the folder {tmp_path / 'out'} --input-size 3,48,48 ")
    assert "4.5-fold" in stderr
    assert json.loads(stdout)["data"]["preprocessing"]["input_size"] == [3, 48, 48]


def test_large_images_are_made_smaller_without_ado(run: Run, large_images: Path) -> None:
    code, _, stderr = run(
        "evaluate", TINY, *RANDOM, "--data", large_images, "--workers", 0, "--input-size", "200"
    )
    assert code == 0, stderr
    assert "enlarged" not in stderr
    code, _, stderr = run("evaluate", TINY, *RANDOM, "--data", large_images, "--workers", 0)
    assert code == 0, stderr  # 224 is assumed, and said
    assert "preprocessing assumed" in stderr


def test_most_images_decide(run: Run, large_images: Path, tmp_path: Path) -> None:
    """A thumbnail among large images is nobody's mistake; large ones among thumbnails are no excuse."""
    many, few = tmp_path / "many", tmp_path / "few"
    for root, thumbnails in ((many, 1), (few, 3)):
        for number, folder in enumerate(sorted(large_images.iterdir())):
            (root / folder.name).mkdir(parents=True)
            for file in folder.iterdir():
                image = Image.open(file)
                (image.resize((16, 12)) if number < thumbnails else image).save(
                    root / folder.name / file.name
                )
    assert run("evaluate", TINY, *RANDOM, "--data", many, "--workers", 0)[0] == 0
    code, _, stderr = run("evaluate", TINY, *RANDOM, "--data", few, "--workers", 0)
    assert code == 2
    assert "are 16×12" in stderr


def test_images_to_measure_averages_on(
    run: Run, image_folder: Path, large_images: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    given = [TINY, "--checkpoint", tiny_checkpoint, "--data", large_images, "--workers", 0]
    code, _, stderr = run("tune", *given, "--recalibrate", image_folder, "-o", tmp_path / "out")
    assert code == 2
    assert f"the images of {image_folder} are 12×12" in stderr


def test_export_compares_as_the_folder_says(run: Run, image_folder: Path, tmp_path: Path) -> None:
    """A folder that records no size has none that anybody chose."""
    from alphatune.models.bundle import save

    source = build(TINY)
    save(source.model.eval(), tmp_path / "own", source=source)
    export = [
        "export",
        tmp_path / "own",
        "--format",
        "pt2",
        "--trust-code",
        "--data",
        image_folder,
        "-o",
        tmp_path / "x.pt2",
    ]
    code, _, stderr = run(*export)
    assert code == 2
    assert "are 12×12, and would be enlarged" in stderr
    code, _, stderr = run(*export, "--input-size", 12)
    assert code == 0, stderr
    assert stderr.startswith("preprocessing: given --input-size 3,12,12\npreprocessing assumed")


# --- what is said, and when -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 20, 56, 110])
def test_our_factories_declare_everything(depth: int) -> None:
    source = build(f"alphatune.models.cifar:resnet{depth}")
    assert isinstance(source.model, CifarResNet)
    assert source.preprocessing == Preprocessing((3, 32, 32), crop_pct=1.0)
    assert source.undeclared == ()
    assert build("alphatune.models.digits:convnet").undeclared == ()


def test_it_is_said_before_the_work_and_once(
    run: Run,
    image_folder: Path,
    models: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import alphatune.jobs.evaluate as job

    before: list[str] = []
    evaluate = job.evaluate

    def watched(*args: Any, **how: Any) -> Any:
        before.append(capsys.readouterr().err)
        return evaluate(*args, **how)

    monkeypatch.setattr(job, "evaluate", watched)
    given = ["evaluate", f"{models}:sized", *RANDOM, "--data", image_folder, "--workers", 0]
    code, _, after = run(*given, "--mean", "0.5")
    assert code == 0
    declared, assumed = before[0].splitlines()
    assert declared == (
        "preprocessing: given --mean 0.5,0.5,0.5, from the model --input-size 3,12,12 --crop-pct 1.0"
    )
    assert assumed == (
        "preprocessing assumed, because the model does not declare it: --std 0.229,0.224,0.225 --interpolation bicubic"
    )
    assert "preprocessing assumed" not in after
    code, stdout, after = run(*given, "--quiet", "--format", "json")
    assert (code, before[1], after) == (0, "", "")
    assert any("preprocessing assumed" in warning for warning in json.loads(stdout)["warnings"])


def test_training_says_it_too(run: Run, image_folder: Path, tmp_path: Path) -> None:
    how = [
        "--input-size",
        12,
        "--crop-pct",
        1,
        "--epochs",
        1,
        "--batch-size",
        16,
        "--workers",
        0,
        "-o",
        tmp_path / "t",
    ]
    code, _, stderr = run("train", TINY, "--data", image_folder, *how)
    assert code == 0, stderr
    lines = stderr.splitlines()
    assert lines[0] == "preprocessing: given --input-size 3,12,12 --crop-pct 1.0"
    assert lines[1].startswith("preprocessing assumed")
    assert lines[2].startswith("epoch ")
    assert sum("preprocessing assumed" in line for line in lines) == 1
