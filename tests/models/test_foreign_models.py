"""Whatever a factory gives is worked on, or refused by name: no internal error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from conftest import Run, write_images
from test_outputs import FOREIGN, SIZE
from tiny import tiny
from torch import nn

import alphatune
from alphatune.core.errors import AlphatuneError, UnsupportedModelError
from alphatune.core.versions import EXPORTED_PROGRAM, torch_allows
from alphatune.models.architecture import find_source
from alphatune.models.sources import build
from alphatune.models.weights import left_out, weights_of


def evaluate(run: Run, factory: str, data: Path, *more: object) -> tuple[int, str, str]:
    return run(
        "evaluate",
        f"{FOREIGN}:{factory}",
        "--no-pretrained",
        "--data",
        data,
        *SIZE,
        "--format",
        "json",
        *more,
    )


@pytest.fixture(scope="module")
def weights(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "weights.safetensors"
    state = torch.load(tiny_checkpoint, weights_only=True)["state_dict"]
    safetensors.torch.save_file({key.removeprefix("module."): value for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def plain(weights: Path, image_folder: Path) -> float:
    from alphatune.data.datasets import open_data
    from alphatune.data.loading import Batches
    from alphatune.data.preprocessing import Preprocessing
    from alphatune.evaluation.predictor import evaluate as score
    from alphatune.statistics.scores import summarise

    model = tiny()
    model.load_state_dict(safetensors.torch.load_file(weights))
    preprocessing = Preprocessing((3, 12, 12), (0.5,) * 3, (0.25,) * 3, crop_pct=1.0)
    batches = Batches(open_data(str(image_folder), split=None), preprocessing, 16, torch.device("cpu"))
    return summarise(score(model, batches)).loss


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("parallel", "DataParallel: taken off"),
        ("compiled", "torch.compile: taken off"),
        ("compiled_parallel", "torch.compile and DataParallel: taken off"),
        ("in_place", "torch.compile: taken off"),
        ("fx", ""),
        ("tuple", "gives 3 things; took the network, number 0"),
        ("frozen", ""),
    ],
)
def test_networks_in_a_wrapper_work(
    kind: str, said: str, run: Run, image_folder: Path, weights: Path, plain: float, tmp_path: Path
) -> None:
    code, out, err = evaluate(
        run, "given", image_folder, "--model-kwargs", f"kind={kind}", "--checkpoint", weights
    )
    assert code == 0, err
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(plain, abs=1e-5)
    assert said in err
    folder = tmp_path / "tuned"
    code, _, err = run(
        "tune", f"{FOREIGN}:given", "--model-kwargs", f"kind={kind}", "--checkpoint", weights, "--data", image_folder,
        *SIZE, "--alphas", "0,0.1", "--accept", "best", "--metric", "loss", "--output", folder,
    )  # fmt: skip
    assert code == 0, err
    assert len(json.loads((folder / "result.json").read_text())["model"]["patched"]) == 2
    assert set(safetensors.torch.load_file(folder / "model.safetensors")) == set(tiny().state_dict())


def test_a_compiled_part_is_taken_out_of_its_wrapper(run: Run, image_folder: Path) -> None:
    code, _, err = evaluate(run, "given", image_folder, "--model-kwargs", "kind=inner_compiled")
    assert code == 0, err
    assert "torch.compile: taken off" in err
    model = build(f"{FOREIGN}:given", model_kwargs={"kind": "inner_compiled"}).model
    assert not [key for key in model.state_dict() if "_orig" in key]


@pytest.mark.parametrize("kind", ["double", "bfloat16", "quantised"])
def test_numbers_of_another_kind(kind: str, run: Run, image_folder: Path) -> None:
    code, _, err = evaluate(run, "given", image_folder, "--model-kwargs", f"kind={kind}")
    assert code == 0, err


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("class", 4, "the class Tiny, not an instance"),
        ("script", 4, "TorchScript"),
        ("trace", 4, "TorchScript"),
        ("exported", 4, "exported program"),
        ("exported_module", 4, "no eval mode"),
        ("none", 4, "got NoneType"),
        ("text", 4, "got str"),
        ("state", 4, "weights, which go to --checkpoint"),
        ("dict", 4, "got dict"),
        ("two", 4, "or several"),
        ("list", 4, "a list of nothing"),
        ("function", 4, "got function"),
        ("list_of_modules", 4, "no forward"),
        ("no_forward", 4, "no forward"),
        ("no_move", 2, "is not supported for this model"),
        ("no_eval", 4, "no eval mode"),
        ("no_state", 4, "no state for you"),
    ],
)
@pytest.mark.parametrize("what", ["evaluate", "tune", "inspect", "bench", "train"])
def test_the_rest_is_refused_by_name(
    kind: str, code: int, words: str, what: str, run: Run, image_folder: Path, tmp_path: Path
) -> None:
    model = [f"{FOREIGN}:given", "--model-kwargs", f"kind={kind}", "--device", "cpu"]
    data = ["--data", image_folder] if what in ("evaluate", "tune", "train") else []
    if what in ("evaluate", "tune"):
        data += ["--no-pretrained"]
    if what in ("tune", "train"):
        data += ["--output", tmp_path / "out"]
    found, _, err = run(
        what, *model, *data, "--input-size", "12", *(["--seconds", "0.01"] if what == "bench" else [])
    )
    if kind == "no_state" and what in ("evaluate", "inspect", "bench"):
        assert found == 0, err  # they need none
        return
    assert found == code, err
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("kind", ["exit", "key", "type", "assert", "os", "recursion", "empty"])
def test_a_factory_may_raise_anything(kind: str, run: Run, image_folder: Path) -> None:
    code, _, err = evaluate(run, "raising", image_folder, "--model-kwargs", f"kind={kind}")
    assert code == (3 if kind == "os" else 2), err
    assert "does not take these arguments" not in err


def test_arguments_that_a_factory_needs(run: Run, image_folder: Path) -> None:
    code, _, err = evaluate(run, "needs", image_folder)
    assert code == 2
    assert "depth" in err
    code, _, err = evaluate(run, "needs", image_folder, "--model-kwargs", "depth=6")
    assert code == 0, err


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.engine", "model.tflite"])
def test_graphs_are_no_networks(name: str, run: Run, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"graph")
    code, _, err = run("evaluate", tmp_path / name, "--data", image_folder)
    assert code == 4
    assert "no layers to work on" in err


def test_a_meta_model_takes_a_checkpoint(run: Run, image_folder: Path, weights: Path, plain: float) -> None:
    code, out, err = evaluate(run, "on_meta", image_folder, "--checkpoint", weights)
    assert code == 0, err
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(plain, abs=1e-5)
    code, out, err = evaluate(run, "half_meta", image_folder, "--checkpoint", weights)
    assert code == 0, err
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("factory", ["on_meta", "half_meta", "meta_buffer"])
def test_a_meta_model_without_values_is_refused(
    factory: str, run: Run, image_folder: Path, weights: Path
) -> None:
    more = ("--checkpoint", weights) if factory == "meta_buffer" else ()
    code, _, err = evaluate(run, factory, image_folder, *more)
    assert code == 4
    assert "meta device" in err


def test_lazy_layers_are_initialised(run: Run, image_folder: Path, tmp_path: Path) -> None:
    model = foreign.lazy().train()
    for _ in range(3):
        model(torch.randn(8, 3, 12, 12))
    torch.save(model.state_dict(), tmp_path / "lazy.pt")
    code, _, err = evaluate(run, "lazy", image_folder)
    assert code == 0, err
    folder = tmp_path / "tuned"
    code, _, err = run(
        "tune", f"{FOREIGN}:lazy", "--checkpoint", tmp_path / "lazy.pt", "--data", image_folder, *SIZE,
        "--alphas", "0,0.1", "--accept", "best", "--output", folder,
    )  # fmt: skip
    assert code == 0, err
    assert json.loads((folder / "result.json").read_text())["model"]["patched"] == ["1"]
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        loaded = alphatune.load(folder, trust_code=True)
        alphatune.unpatch_(loaded)
        torch.testing.assert_close(loaded(x), model.eval()(x))
    code, _, err = run(
        "train", f"{FOREIGN}:lazy", "--checkpoint", tmp_path / "lazy.pt", "--data", image_folder, "--epochs", "1",
        "--val-fraction", "0.25", "--device", "cpu", "--input-size", "12", "--batch-size", "8",
        "--output", tmp_path / "trained",
    )  # fmt: skip
    assert code == 0, err
    code, _, err = evaluate(run, "lazy", image_folder, "--input-size", "3,1,1")
    assert code in (0, 2), err


def test_weights_that_a_state_dict_leaves_out_are_kept(run: Run, image_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = foreign.Partial()
    nn.init.uniform_(model.bn1.weight, 0.5, 2.0)
    nn.init.uniform_(model.bn1.running_mean)
    assert set(left_out(model)) == {"bn1.weight", "bn1.running_mean"}
    assert set(weights_of(model)) == set(tiny().state_dict())
    alphatune.patch_(model, 0.1)
    alphatune.save(model, tmp_path / "saved")
    twin = alphatune.load(tmp_path / "saved", model=foreign.Partial())
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(twin(x), model.eval()(x))
    torch.save(
        {k: v for k, v in foreign.Partial().state_dict().items() if k != "note"}, tmp_path / "partial.pt"
    )
    code, _, err = evaluate(run, "partial", image_folder, "--checkpoint", tmp_path / "partial.pt")
    assert code == 0, err
    assert "leaves out 2 of its tensors" in err


def test_shared_and_parametrised_weights_are_all_there() -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    for model in (tied, parametrised, nn.BatchNorm1d(3), timm.create_model("resnet10t", num_classes=3)):
        assert left_out(model) == {}
        assert set(weights_of(model)) == set(model.state_dict())


def test_quantised_weights_are_refused_before_the_work(run: Run, image_folder: Path, tmp_path: Path) -> None:
    code, _, err = run(
        "tune", f"{FOREIGN}:given", "--model-kwargs", "kind=quantised", "--no-pretrained", "--data", image_folder, *SIZE,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 4
    assert "packed" in err
    with pytest.raises(UnsupportedModelError, match="packed"):
        alphatune.save(foreign.quantised(), tmp_path / "saved")


BUILDERS: dict[str, Any] = {
    "timm": (lambda: timm.create_model("resnet10t", num_classes=4), 64),
    "timm grey": (lambda: timm.create_model("resnet10t", num_classes=4, in_chans=1), 64),
    "timm drop": (lambda: timm.create_model("mobilenetv3_small_050", drop_rate=0.2), 64),
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=4), 64),
    "torchvision mobile": (lambda: torchvision.models.mobilenet_v3_small(num_classes=4), 64),
    "torchvision inception": (
        lambda: torchvision.models.inception_v3(num_classes=4, aux_logits=False, init_weights=False), 75,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILDERS)
def test_save_writes_the_architecture(name: str, tmp_path: Path) -> None:
    build_one, side = BUILDERS[name]
    model = build_one().eval()
    alphatune.patch_(model, 0.1)
    alphatune.save(nn.DataParallel(model) if name == "timm" else model, tmp_path / "t")
    loaded = alphatune.load(tmp_path / "t")
    x = torch.randn(2, 1 if "grey" in name else 3, side, side)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_the_commands_take_a_saved_folder(run: Run, image_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=4)
    alphatune.patch_(model, 0.05)
    alphatune.save(model, tmp_path / "t")
    code, _, err = run(
        "evaluate", tmp_path / "t", "--data", image_folder, "--input-size", "32", "--device", "cpu"
    )
    assert code == 0, err
    code, _, err = run("export", tmp_path / "t", "--format", "safetensors", "-o", tmp_path / "t.safetensors")
    assert code == 0, err


@pytest.mark.parametrize(
    "build_one",
    [
        lambda: timm.create_model("resnet18", norm_layer="groupnorm"),
        lambda: timm.create_model("resnet10t", output_stride=16),
        lambda: timm.create_model("resnet10t", act_layer=nn.ReLU6),
        lambda: torchvision.models.resnet18(norm_layer=lambda c: nn.BatchNorm2d(c, eps=0.1)),
        tiny,
    ],
)
def test_an_architecture_is_not_guessed(build_one: Any, tmp_path: Path) -> None:
    model = build_one()
    assert find_source(model) is None
    alphatune.save(model, tmp_path / "t")
    with pytest.raises(AlphatuneError, match="model of your own"):
        alphatune.load(tmp_path / "t")


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    model = transformers.AutoModelForImageClassification.from_config(config).train()
    for _ in range(3):
        model(torch.randn(8, 3, 32, 32))
    folder = tmp_path_factory.mktemp("hf") / "resnet"
    model.save_pretrained(folder)
    preprocessor = {
        "size": {"shortest_edge": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def test_a_folder_of_transformers(transformers_folder: Path, run: Run, tmp_path: Path) -> None:
    import transformers

    image_folder = write_images(tmp_path / "images", side=32)

    code, out, err = run(
        "evaluate", transformers_folder, "--data", image_folder, "--device", "cpu", "--format", "json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert document["model"]["kind"] == "transformers"
    assert document["data"]["preprocessing"]["input_size"] == [3, 32, 32]
    assert document["warnings"] == []
    tuned = tmp_path / "tuned"
    code, _, err = run(
        "tune", transformers_folder, "--data", image_folder, "--device", "cpu", "--alphas", "0,0.1", "--accept", "best",
        "--temperature", "--output", tuned, "--limit", "0",
    )  # fmt: skip
    assert code == 2  # no images
    code, _, err = run(
        "tune", transformers_folder, "--data", image_folder, "--device", "cpu", "--alphas", "0,0.1", "--accept", "best",
        "--output", tuned,
    )  # fmt: skip
    assert code == 0, err
    loaded = alphatune.load(tuned)
    alphatune.unpatch_(loaded)
    stock = transformers.AutoModelForImageClassification.from_pretrained(tuned).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, stock(x).logits)
    alphatune.set_temperature_(stock, 2.0)
    with torch.no_grad():
        torch.testing.assert_close(stock(x).logits, loaded(x).logits / 2)
    if torch_allows(EXPORTED_PROGRAM):
        code, _, err = run("export", tuned, "--format", "pt2", "-o", tmp_path / "m.pt2")
        assert code == 0, err
        assert "model's logits" not in err


def test_save_of_a_model_of_transformers(transformers_folder: Path, tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(transformers_folder).eval()
    alphatune.patch_(model, 0.1)
    alphatune.save(model, tmp_path / "t")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(alphatune.load(tmp_path / "t")(x).logits, model(x).logits)


def test_a_missing_weight_is_not_made_up(
    transformers_folder: Path, run: Run, image_folder: Path, tmp_path: Path
) -> None:
    state = safetensors.torch.load_file(transformers_folder / "model.safetensors")
    state.pop("classifier.1.weight")
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((transformers_folder / "config.json").read_text())
    code, _, err = run("evaluate", tmp_path, "--data", image_folder, "--input-size", "32", "--device", "cpu")
    assert code == 3
    assert "classifier.1.weight" in err


def test_transformers_is_named_where_it_is_missing(
    run: Run, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "resnet", "architectures": ["ResNetForImageClassification"]})
    )
    code, _, err = run("evaluate", tmp_path, "--data", image_folder)
    assert code == 2
    assert "ResNetForImageClassification" in err
    assert "pip install transformers" in err
